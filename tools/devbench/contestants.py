# SPDX-License-Identifier: Apache-2.0
"""Who is measured, and what each needs."""

from collections.abc import Iterable
import dataclasses

from devbench import cases

PLAIN_PUT, BEST_PUT = 'plain PUT', 'best PUT'
NOVA_LIVE, NOVA_COLD, NOVA_OFF = 'Nova live', 'Nova cold', 'Nova shut off'
BACKUP, COMPRESSED = 'backup', 'backup, compressed'
LIBVIRT_DRIVER = 'LibvirtDriver live'

#: Bytes of the pieces that Glance swallows fastest.
BEST_PIECE = 128 * 1024

#: Every strategy may be asked for; and images are qcow2 whatever the disk is,
#: so that all contestants of a case send the same.
SETTINGS = ('snapext.requestable=auto,backup,external,internal,cold,native',
            'libvirt.snapshot_image_format=qcow2')


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One way to get a guest's disk into Glance.

    :param name: what it is called
    :param strategy: to ask for; None: Nova is left as it is
    :param settings: of nova-compute
    :param off: whether the guest is shut off
    :param piece: for a ready-made file, the most that one read gives, in
        bytes, and 0 for what the client asks for; None: a snapshot
    """

    name: str
    strategy: str | None = None
    settings: tuple[str, ...] = ()
    off: bool = False
    piece: int | None = None

    @property
    def is_put(self) -> bool:
        return self.piece is not None

    @property
    def needs(self) -> tuple[tuple[str, ...], bool]:
        """What it takes time to change."""
        return self.settings, self.off


ALL = (
    Contestant(BEST_PUT, piece=BEST_PIECE),
    Contestant(PLAIN_PUT, piece=0),
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
    # To be seen once, that Nova's own through the strategy costs the same.
    Contestant(LIBVIRT_DRIVER, settings=(
        'DEFAULT.compute_driver=libvirt.LibvirtDriver',)),
)

BY_NAME = {one.name: one for one in ALL}

#: Who takes part unless others are named.
USUAL = tuple(one.name for one in ALL if one.name != LIBVIRT_DRIVER)

SMOKE = (BEST_PUT, PLAIN_PUT, BACKUP, NOVA_LIVE)


def of(case: cases.Case, names: Iterable[str]) -> list[Contestant]:
    """Those of the named who can serve a case."""
    return [BY_NAME[name] for name in names if name not in case.without]
