# SPDX-License-Identifier: Apache-2.0
"""Defects of QEMU and libvirt that a snapshot must not walk into.

A strategy names the mechanisms of QEMU and libvirt that it uses. It is refused
for a guest if one of them is defective there, before anything is changed.

This module imports nothing of Nova and libvirt: ``nova-snapext check`` and the
documentation use its table, too.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
import dataclasses
import enum
import typing as ty

from lxml import etree

from nova_snapext.hypervisor import confinement

#: A version as QEMU and libvirt count, such as ``(8, 2, 3)``. The second
#: number of a pre-release is 50 or more, so that it is older than its release.
Version: ty.TypeAlias = tuple[int, ...]

ANY: Version = (0, 0, 0)


class Mechanism(enum.Enum):
    """What a strategy uses of QEMU and libvirt while the guest has a QEMU."""

    BACKUP_JOB = 'backup job'   # pull mode: QEMU's own NBD server exports it
    ACTIVE_COMMIT = 'commit of an overlay'  # into its disk, then the pivot
    INTERNAL_SNAPSHOT = 'internal snapshot'     # with the memory
    SUSPEND_AND_RESUME = 'suspend and resume'   # managed save; on an overlay


#: The strategies of this package that use a mechanism. They declare it
#: themselves; this is for those who read about a defect.
STRATEGIES: dict[Mechanism, tuple[str, ...]] = {
    Mechanism.BACKUP_JOB: ('backup',),
    Mechanism.ACTIVE_COMMIT: ('external', 'cold'),
    Mechanism.INTERNAL_SNAPSHOT: ('internal',),
    Mechanism.SUSPEND_AND_RESUME: ('cold',),
}


@dataclasses.dataclass(frozen=True)
class Range:
    """Versions with a defect.

    :ivar first: the first version that has it
    :ivar fixed: the first version that does not have it any more; None if
        there is none yet
    :ivar backports: of each older stable series with the fix, its first
        release that has it, such as ``(10, 0, 9)``
    """

    first: Version = ANY
    fixed: Version | None = None
    backports: tuple[Version, ...] = ()

    def __contains__(self, version: Version) -> bool:
        return (self.first <= version and
                (self.fixed is None or version < self.fixed) and
                not any(version[:2] == backport[:2] and version >= backport
                        for backport in self.backports))

    def __str__(self) -> str:
        text = 'all' if self.first == ANY else (
            f'{version_text(self.first)} and newer')
        if self.fixed is not None:
            end = f'older than {version_text(self.fixed)}'
            text = end if self.first == ANY else f'{text}, {end}'
        for backport in self.backports:
            text += (f'; not {version_text(backport)} and newer of '
                     f'{version_text(backport[:2])}')
        return text


@dataclasses.dataclass(frozen=True)
class Subject:
    """What the conditions of defects look at.

    :ivar definition: libvirt's live definition of the guest
    :ivar target: the guest's name of its root disk, such as ``vda``
    :ivar paused: its CPUs are stopped
    :ivar inactive: its QEMU may not have opened its disks for writing yet, as
        after a restore or a migration of a paused guest
    """

    definition: etree._Element
    target: str
    paused: bool
    inactive: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Defect:
    """A defect of QEMU or libvirt.

    :ivar name: short and unique; [snapext]fixed_defects contains it
    :ivar guests: which guests have it, in words
    :ivar condition: the same, as a function
    :ivar consequence: what happens to the guest
    :ivar refused: the mechanisms that are refused. None are if every other
        way to take the snapshot has the same defect, Nova's own included, if
        only something that nobody does to an instance in a snapshot brings it
        about, or if it is worked around
    :ivar certain: it happens every time. Otherwise it is a race, and a guest
        whose QEMU can't be identified is assumed to run the installed QEMU
    :ivar qemu: QEMU's versions
    :ivar libvirt: libvirt's versions; a guest has the defect if both QEMU and
        libvirt have one of these versions
    :ivar sources: commits, release notes and reports
    """

    name: str
    guests: str
    condition: Callable[[Subject], bool]
    consequence: str
    refused: frozenset[Mechanism]
    certain: bool = True
    qemu: Range = Range()
    libvirt: Range = Range()
    sources: tuple[str, ...]

    def affects(self, qemu: Version | None, libvirt: Version) -> bool:
        """Return whether two versions have it.

        :param qemu: None if unknown: then every version is assumed
        """
        return libvirt in self.libvirt and (qemu is None or qemu in self.qemu)

    def refused_strategies(self) -> str:
        """Return the names of the strategies that are refused, as text."""
        names = {name for mechanism in self.refused
                 for name in STRATEGIES[mechanism]}
        return ', '.join(sorted(names)) or 'nothing'


def version_text(version: Version) -> str:
    return '.'.join(map(str, version))


def _has_iothread(subject: Subject) -> bool:
    """Return whether a thread of its own serves the root disk.

    https://libvirt.org/formatdomain.html#hard-drives-floppy-disks-cdroms: the
    attribute ``iothread`` or the element ``iothreads`` of the driver of a
    virtio disk, or of the virtio-scsi controller that the disk is on.
    """
    disks = [disk for disk in subject.definition.findall('./devices/disk')
             if disk.find(f"./target[@dev='{subject.target}']") is not None]
    for disk in disks:
        address = disk.find("./address[@type='drive']")
        index = None if address is None else address.get('controller')
        # A disk without an address is on some controller: any of them counts.
        controllers = [
            controller for controller in subject.definition.findall(
                "./devices/controller[@type='scsi']")
            if index in (None, controller.get('index'))
        ] if disk.find("./target[@bus='scsi']") is not None else []
        for element in (disk, *controllers):
            for driver in element.findall('./driver'):
                if 'iothread' in driver.attrib or driver.find(
                        './iothreads') is not None:
                    return True
    # Without the root disk in the definition, nothing is known about it.
    return not disks


def _has_no_iothread(subject: Subject) -> bool:
    return not _has_iothread(subject)


def _is_inactive(subject: Subject) -> bool:
    return subject.paused and subject.inactive


def _is_paused(subject: Subject) -> bool:
    return subject.paused


def _runs(subject: Subject) -> bool:
    return not subject.paused


def _is_any(_subject: Subject) -> bool:
    return True


def _is_confined_by_apparmor(subject: Subject) -> bool:
    return confinement.apparmor_profile(subject.definition) is not None


#: The guest is paused while a commit starts in a QEMU that may have this.
MISSED_WRITES = Defect(
    name='missed-writes',
    guests='guests that write while a commit, or Nova\'s own live snapshot, '
           'starts',
    condition=_runs,
    consequence='QEMU does not copy some of these writes. An image of native '
                'may lack them, and so may the disk after a commit. '
                'Therefore external and cold pause the guest while their '
                'commit starts, mostly for less than 0.1 seconds, and commit '
                'nothing as long as they can\'t pause it',
    refused=frozenset(),
    certain=False,
    qemu=Range(first=(8, 2, 0), fixed=(10, 2, 2), backports=((10, 0, 9),)),
    sources=(
        'QEMU commit 058cfca5645a (8.2.0), "block/mirror: move dirty bitmap '
        'to filter": has it first',
        'QEMU commit 0f51f9c342 (11.0.0, stable 10.2.2 and 10.0.9), "mirror: '
        'Fix missed dirty bitmap writes during startup"',
        'https://gitlab.com/qemu-project/qemu/-/issues/3273',
        'https://bugs.debian.org/1129349',
        'seen with QEMU 10.0.2, and not with 7.2.22, 10.0.13 and 11.1.3',
    ),
)

#: The first one of a guest is reported: the worst ones come first.
DEFECTS: tuple[Defect, ...] = (
    MISSED_WRITES,
    Defect(
        name='nbd-iothread',
        guests='guests whose root disk has an iothread',
        condition=_has_iothread,
        consequence='QEMU dies when the second client of its NBD server '
                    'disconnects, and the guest with it',
        refused=frozenset({Mechanism.BACKUP_JOB}),
        qemu=Range(fixed=(8, 2, 3)),
        sources=(
            'QEMU commit f816310d0c32 (9.0.0, stable 8.2.3), "nbd/server: '
            'only traverse NBDExport->clients from main loop thread"',
            'QEMU commit 7075d235114b (9.0.0, stable 8.2.3)',
            'QEMU commit 9c707525cbb1 (9.0.0, stable 8.2.3), "nbd/server: '
            'Fix race in draining the export"',
        ),
    ),
    Defect(
        name='inactive-disks',
        guests='paused guests that were restored or migrated while they were '
               'paused, and have not run since',
        condition=_is_inactive,
        consequence='QEMU refuses the job of the paused guest ("Inactive ... '
                    'can\'t be a backing child of active ..."), and an '
                    'overlay could not be merged until the guest runs',
        refused=frozenset({Mechanism.BACKUP_JOB, Mechanism.ACTIVE_COMMIT,
                           Mechanism.INTERNAL_SNAPSHOT}),
        qemu=Range(first=(10, 0, 0)),
        # The fix is somewhere between 11.4 and 12.8: its function
        # qemuBlockNodesEnsureActive is in 12.8, and not in 11.3.
        libvirt=Range(fixed=(12, 8, 0)),
        sources=(
            'QEMU commit fca9aef1c8d8 (10.0.0), "migration/block: Make '
            'late-block-active the default"',
            'QEMU patch "block: Don\'t attach inactive child to active node" '
            '(10.0.0)',
            'seen with QEMU 10.0 and libvirt 11.3, and not with QEMU 11.1 '
            'and libvirt 12.8',
        ),
    ),
    Defect(
        name='inactive-disks-after-resume',
        guests='paused guests',
        condition=_is_paused,
        consequence='after the guest is suspended and resumed on its overlay, '
                    'the overlay could not be merged until the guest runs',
        refused=frozenset({Mechanism.SUSPEND_AND_RESUME}),
        qemu=Range(first=(10, 0, 0)),
        libvirt=Range(fixed=(12, 8, 0)),
        sources=('as of inactive-disks',),
    ),
    Defect(
        name='inactivated-twice',
        guests='paused guests that were migrated while they were paused, and '
               'have not run since',
        condition=_is_inactive,
        consequence='QEMU dies when the memory of the guest is saved '
                    '("bdrv_inactivate_recurse: Assertion failed")',
        refused=frozenset({Mechanism.SUSPEND_AND_RESUME}),
        qemu=Range(fixed=(10, 0, 0)),
        sources=(
            'QEMU commit 8597af76153a (10.0.0), "migration/block: Rewrite '
            'disk activation"',
            'https://gitlab.com/qemu-project/qemu/-/issues/686',
            'https://gitlab.com/qemu-project/qemu/-/issues/2395',
            'seen with QEMU 7.2',
        ),
    ),
    Defect(
        name='inactive-disks-before-10',
        guests='paused guests that were migrated while they were paused, and '
               'have not run since',
        condition=_is_inactive,
        consequence='QEMU refuses to commit into a disk that it has not '
                    'opened for writing ("Block node is read-only"), and to '
                    'save the guest inside it ("is writable but does not '
                    'support snapshots"), until the guest runs',
        refused=frozenset({Mechanism.ACTIVE_COMMIT,
                           Mechanism.INTERNAL_SNAPSHOT}),
        qemu=Range(fixed=(10, 0, 0)),
        sources=(
            'seen with QEMU 7.2 and its migration capability '
            'late-block-activate, which libvirt sets for a migration',
        ),
    ),
    Defect(
        name='apparmor-resumed-overlay',
        guests='guests that AppArmor confines',
        condition=_is_confined_by_apparmor,
        consequence='AppArmor forbids a guest that was resumed on an overlay '
                    'to write to the disk below it, and the overlay could not '
                    'be merged until the guest is shut off',
        refused=frozenset({Mechanism.SUSPEND_AND_RESUME}),
        libvirt=Range(fixed=(12, 1, 0)),
        sources=(
            'https://libvirt.org/news.html, v12.1.0, "AppArmor: Ask for no '
            'deny rule for readonly disk elements"',
            'https://gitlab.com/libvirt/libvirt/-/work_items/806',
            'https://bugs.debian.org/932456',
            'https://bugs.debian.org/1061725',
            'libvirt, src/security/virt-aa-helper.c, vah_add_path: "deny" for '
            'each backing file',
        ),
    ),
    Defect(
        name='apparmor-profile-made-again',
        # No step of external, nor of Nova's while it has the instance for a
        # snapshot, makes the profile again before the merge has ended.
        guests='guests that AppArmor confines, if libvirt makes their profile '
               'again while they use an overlay of external: when somebody '
               'starts the guest on the overlay, detaches a disk or a device '
               'with a file, ejects a medium, or ends a backup or copy job '
               'during the snapshot, past Nova',
        condition=_is_confined_by_apparmor,
        consequence='as of apparmor-resumed-overlay. The log says so, and '
                    'how to allow the merge while the guest runs',
        refused=frozenset(),
        certain=False,
        libvirt=Range(fixed=(12, 1, 0)),
        sources=(
            'as of apparmor-resumed-overlay',
            'https://github.com/OpenNebula/one/issues/6565',
            'libvirt, src/security/security_apparmor.c: every function that '
            'restores a label calls reload_profile without a file to append',
        ),
    ),
    Defect(
        name='mirror-pause-deadlock',
        # Where backup is refused, Nova's own live snapshot is what remains,
        # and it is a mirror job, too.
        guests='guests whose root disk has no iothread (for others, all '
               'strategies that remain have this defect)',
        condition=_has_no_iothread,
        consequence='QEMU may hang for good while an overlay is committed, '
                    'and the guest with it',
        refused=frozenset({Mechanism.ACTIVE_COMMIT}),
        certain=False,
        qemu=Range(first=(8, 2, 0), fixed=(8, 2, 3)),
        sources=(
            'QEMU commit ae5a40e85811 (9.0.0, stable 8.2.3), "mirror: Don\'t '
            'call job_pause_point() under graph lock"',
            'https://issues.redhat.com/browse/RHEL-28125',
        ),
    ),
    Defect(
        name='nbd-handshake',
        # The strategy's own client has gone before the job is ended, and only
        # Nova's user and root can connect once the job has begun.
        guests='guests with a backup job, if a process of QEMU\'s user '
               'connects to the job\'s socket as soon as QEMU has created '
               'it, does not finish the handshake, and stays connected until '
               'the job has ended. Only a guest that has taken over its QEMU '
               'would',
        condition=_is_any,
        consequence='QEMU dies when such a client disconnects, and the guest '
                    'with it (CVE-2024-7409)',
        refused=frozenset(),
        certain=False,
        qemu=Range(fixed=(9, 1, 0),
                   backports=((7, 2, 14), (8, 2, 7), (9, 0, 3))),
        sources=(
            'QEMU commit 3e7ef738c846 (9.1.0, stable 7.2.14, 8.2.7 and '
            '9.0.3), "nbd/server: CVE-2024-7409: Close stray clients at '
            'server-stop"',
            'QEMU commit 3874f5f73c44 (as the first), "nbd/server: '
            'CVE-2024-7409: Avoid use-after-free when closing server"',
        ),
    ),
    Defect(
        name='lost-notifications',
        guests='guests whose root disk has an iothread',
        condition=_has_iothread,
        consequence='the disk of the guest may stop to respond after a job '
                    'begins or ends, also one of Nova\'s own live snapshot',
        refused=frozenset(),
        certain=False,
        qemu=Range(first=(8, 1, 0), fixed=(8, 2, 2)),
        sources=(
            'QEMU commit 5bdbaebcce18 (9.0.0, stable 8.2.2), "virtio: '
            'Re-enable notifications after drain"',
            'https://issues.redhat.com/browse/RHEL-3934',
        ),
    ),
    Defect(
        name='drain-deadlock',
        guests='guests whose root disk has an iothread',
        condition=_has_iothread,
        consequence='QEMU may hang for good when a job ends while the guest '
                    'reads or writes, also a job of Nova\'s own live snapshot',
        refused=frozenset(),
        certain=False,
        qemu=Range(first=(8, 2, 2), fixed=(10, 1, 0)),
        sources=(
            'QEMU commits f1bf3be14bd5 to fc1d2f3eac79 (10.1.0), "Deadlock '
            'fixes: Do not drain while holding the graph lock"',
        ),
    ),
)


def find(mechanisms: Collection[Mechanism], subject: Subject, *,
         running: Version | None, installed: Version, libvirt: Version,
         ignored: Collection[str] = ()) -> Iterator[Defect]:
    """Find the defects for which a strategy is refused.

    :param mechanisms: what the strategy uses
    :param running: version of the guest's QEMU; None if unknown
    :param installed: version of the QEMU that new guests get
    :param libvirt: version of libvirtd
    :param ignored: names of defects that the operator says are fixed
    """
    for defect in DEFECTS:
        qemu = running if running or defect.certain else installed
        if (defect.name not in ignored and
                not defect.refused.isdisjoint(mechanisms) and
                defect.affects(qemu, libvirt) and defect.condition(subject)):
            yield defect


def present(qemu: Version, libvirt: Version) -> Iterable[Defect]:
    """Return the defects that these versions have for some guests."""
    return [defect for defect in DEFECTS if defect.affects(qemu, libvirt)]
