# SPDX-License-Identifier: Apache-2.0
"""The cases: guests with disks that are difficult in different ways."""

from collections.abc import Callable
import dataclasses
import pathlib

from devcloud import layout

from devbench import content

GIB = 1 << 30

#: Bytes a second that a guest rewrites, if it does.
REWRITE_RATE = 20_000_000

#: Size of the area that it rewrites again and again, in bytes.
REWRITTEN = 256 * layout.MIB

#: A function that writes the data of a disk. Arguments: file, offset and size
#: of the partition, size of the data, and a directory for temporary files.
Fill = Callable[[pathlib.Path, int, int, int, pathlib.Path], None]


@dataclasses.dataclass(frozen=True)
class Case:
    """One guest.

    :param name: its name in commands and results
    :param title: its description for people
    :param disk: virtual size of its disk, in GiB
    :param data: bytes of data on it, without the small guest itself
    :param fill: writes this data
    :param settings: of nova-compute, for `tools/cloud configure`
    :param overlays: number of overlays on top of its disk
    :param rewrites: bytes a second that it rewrites during the snapshot
    :param without: contestants that do not support it, and would be refused
    :param is_block: whether its disk is a block device
    :param is_busy: whether it uses all of its CPU
    :param neighbours: number of other guests on its host, which do so
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
    is_busy: bool = False
    neighbours: int = 0

    def scaled(self, divisor: int) -> 'Case':
        """Return the same case with less data."""
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
    # The file system has space for its own tables, and some free space.
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
    Case('system', '2 GiB of files of a system disk', 5, 2 * GIB, _system),
    Case('chain', '1 GiB below 8 overlays', 4, GIB, _noise, overlays=8,
         # Nova's own refuses a backing file that has a backing file.
         without=('Nova live',)),
    Case('raw', '1 GiB in a raw file', 4, GIB, _noise,
         ('libvirt.images_type=raw',), without=('internal',)),
    Case('block', 'a block device of 8 GiB with 256 MiB of data', 8,
         256 * layout.MIB, _noise, ('libvirt.images_type=lvm',),
         # Nova's own is never live for block devices.
         without=('internal', 'Nova live'), is_block=True),
    Case('sparse', '1 TiB with 1 GiB scattered in it', 1024, GIB,
         _scattered),
    Case('fragmented', '1 GiB in chunks of 64 KiB', 6, GIB, _fragmented),
    Case('rewriting', '1 GiB; the guest rewrites 20 MB/s', 4, GIB,
         _noise, rewrites=REWRITE_RATE),
    Case('busy', '1 GiB; 8 other guests use all CPUs', 4, GIB, _noise,
         # Guests take minutes to boot here.
         without=('internal', 'cold', 'cold, shut off', 'Nova shut off',
                  'Nova cold'), neighbours=8),
)

BY_NAME = {case.name: case for case in CASES}

#: One of the other guests.
NEIGHBOUR = Case('neighbour', 'a guest that uses all of its CPU', 2,
                 layout.MIB, _noise, is_busy=True)

#: Only for checking that the benchmark works.
SMOKE = Case('smoke', '16 MiB, to check that the benchmark works', 2,
             16 * layout.MIB, _noise)
