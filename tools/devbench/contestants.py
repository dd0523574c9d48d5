# SPDX-License-Identifier: Apache-2.0
"""The contestants, and their settings."""

from collections.abc import Iterable
import dataclasses

from devbench import cases

PLAIN_PUT, BEST_PUT = 'plain PUT', 'best PUT'
NOVA_LIVE, NOVA_COLD, NOVA_OFF = 'Nova live', 'Nova cold', 'Nova shut off'
BACKUP, COMPRESSED = 'backup', 'backup, compressed'
NOT_NICE, LIBVIRT_DRIVER = 'backup, niceness 0', 'LibvirtDriver live'

#: Bytes of the chunks that Glance stores fastest.
BEST_CHUNK = 128 * 1024

#: Allow all strategies. Make all images qcow2, whatever the disk is, so that
#: all contestants of a case send the same.
SETTINGS = ('snapext.allowed_image_strategies='
            'auto,backup,external,internal,cold,native',
            'libvirt.snapshot_image_format=qcow2')


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One way to upload a guest's disk to Glance.

    :param name: its name in commands and results
    :param strategy: strategy to request; None: do not request one
    :param settings: of nova-compute
    :param off: whether the guest is shut off
    :param chunk: maximum bytes of one read of a ready-made file; 0: the
        client decides; None: take a snapshot, do not upload a file
    """

    name: str
    strategy: str | None = None
    settings: tuple[str, ...] = ()
    off: bool = False
    chunk: int | None = None

    @property
    def is_put(self) -> bool:
        return self.chunk is not None

    @property
    def needs(self) -> tuple[tuple[str, ...], bool]:
        """Return the conditions that take time to change."""
        return self.settings, self.off


ALL = (
    Contestant(BEST_PUT, chunk=BEST_CHUNK),
    Contestant(PLAIN_PUT, chunk=0),
    Contestant(BACKUP, 'backup'),
    Contestant('external', 'external'),
    Contestant('internal', 'internal'),
    Contestant('cold', 'cold'),
    Contestant(NOVA_LIVE, 'native'),
    Contestant('cold, shut off', 'cold', off=True),
    Contestant(NOVA_OFF, 'native', off=True),
    Contestant(NOVA_COLD, 'native', (
        'workarounds.disable_libvirt_livesnapshot=True',)),
    Contestant(COMPRESSED, 'backup', ('libvirt.snapshot_compression=True',)),
    # Shows what the low priority of its threads costs, and spares the guests.
    Contestant(NOT_NICE, 'backup', ('snapext.worker_niceness=0',)),
    # Shows that Nova's own costs the same without our driver as with it.
    Contestant(LIBVIRT_DRIVER, settings=(
        'DEFAULT.compute_driver=libvirt.LibvirtDriver',)),
)

BY_NAME = {one.name: one for one in ALL}

#: The contestants that take part unless others are named.
USUAL = tuple(one.name for one in ALL
              if one.name not in (NOT_NICE, LIBVIRT_DRIVER))

SMOKE = (BEST_PUT, PLAIN_PUT, BACKUP, NOVA_LIVE)


def of(case: cases.Case, names: Iterable[str]) -> list[Contestant]:
    """Return those of the named contestants that support a case."""
    taking_part = [name for name in names if name not in case.without]
    if case.neighbours and BACKUP in taking_part:
        taking_part.append(NOT_NICE)
    return [BY_NAME[name] for name in dict.fromkeys(taking_part)]
