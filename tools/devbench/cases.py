# SPDX-License-Identifier: Apache-2.0
"""The cases: guests whose disks are hard in one way each."""

from collections.abc import Callable
import dataclasses
import pathlib

from devcloud import layout

from devbench import content

GIB = 1 << 30

#: Bytes a second that a guest rewrites, where it does.
REWRITE_RATE = 20_000_000

#: Bytes that it rewrites, over and over.
REWRITTEN = 256 * layout.MIB

#: Writes the data of a disk: file, offset and size of the partition, size of
#: the data, and a directory for scratch.
Fill = Callable[[pathlib.Path, int, int, int, pathlib.Path], None]


@dataclasses.dataclass(frozen=True)
class Case:
    """One guest.

    :param name: what it is called
    :param title: what it is, for people
    :param disk: virtual size of its disk, in GiB
    :param data: bytes of data on it, beside the small guest itself
    :param fill: writes this data
    :param settings: of nova-compute, as `tools/cloud configure` takes them
    :param overlays: how many overlays are put onto its disk
    :param rewrites: bytes a second that it rewrites meanwhile
    :param without: contestants that can't serve it, and would be refused
    :param is_block: whether its disk is a block device
    """

    name: str
    title: str
    disk: int
    data: int
    fill: Fill
    settings: tuple[str, ...] = ()
    overlays: int = 0
    rewrites: int = 0
    without: tuple[str, ...] = ()
    is_block: bool = False

    def scaled(self, divisor: int) -> 'Case':
        """The same, with less data."""
        if divisor == 1:
            return self
        return dataclasses.replace(
            self, data=max(self.data // divisor, 16 * layout.MIB))


def _noise(disk: pathlib.Path, offset: int, _span: int, size: int,
           _scratch: pathlib.Path) -> None:
    content.noise(disk, offset, size)


def _system(disk: pathlib.Path, offset: int, _span: int, size: int,
            scratch: pathlib.Path) -> None:
    file = scratch / 'system.ext4'
    # The filesystem's own tables, and what doesn't fill it, beside the data.
    content.system(file, size * 5 // 4, scratch)
    content.copy_sparse(file, disk, offset)
    file.unlink()


def _scattered(disk: pathlib.Path, offset: int, span: int, size: int,
               _scratch: pathlib.Path) -> None:
    content.scattered(disk, offset, span, size, layout.MIB)


def _fragmented(disk: pathlib.Path, offset: int, span: int, size: int,
                _scratch: pathlib.Path) -> None:
    content.scattered(disk, offset, min(span, 3 * size), size)


CASES = (
    Case('incompressible', '2 GiB of incompressible data', 5, 2 * GIB,
         _noise),
    Case('system', '2 GiB of what a system disk holds', 5, 2 * GIB, _system),
    Case('chain', '1 GiB below 8 overlays', 4, GIB, _noise, overlays=8,
         # Nova's own refuses a backing file that has one itself.
         without=('Nova live',)),
    Case('raw', '1 GiB in a raw file', 4, GIB, _noise,
         ('libvirt.images_type=raw',), without=('internal',)),
    Case('block', 'a block device of 8 GiB with 256 MiB of data', 8,
         256 * layout.MIB, _noise, ('libvirt.images_type=lvm',),
         # Nova's own is never live there.
         without=('internal', 'Nova live'), is_block=True),
    Case('sparse', '1 TiB with 1 GiB scattered in it', 1024, GIB,
         _scattered),
    Case('fragmented', '1 GiB in pieces of 64 KiB', 6, GIB, _fragmented),
    Case('rewriting', '1 GiB, of a guest that rewrites 20 MB/s', 4, GIB,
         _noise, rewrites=REWRITE_RATE),
)

BY_NAME = {case.name: case for case in CASES}

#: Sees that the benchmark works, and says nothing of anything else.
SMOKE = Case('smoke', '16 MiB, to see that the benchmark works', 2,
             16 * layout.MIB, _noise)
