# SPDX-License-Identifier: Apache-2.0
"""The base classes of all strategies, and the disk that a freeze returns."""

from __future__ import annotations

import abc
from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import dataclasses
import datetime
import functools
import os

from lxml import etree
from nova.compute import power_state
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import host as libvirt_host
from oslo_utils import timeutils
from oslo_utils import units

from nova_snapext import cancel
from nova_snapext import checks
from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.hypervisor import ceph
from nova_snapext.hypervisor import connection
from nova_snapext.hypervisor import domain
from nova_snapext.hypervisor import errors
from nova_snapext.hypervisor import image_header
from nova_snapext.hypervisor import jobs
from nova_snapext.hypervisor import known_defects
from nova_snapext.hypervisor import qemu_process
from nova_snapext import journal
from nova_snapext import plan as planning
from nova_snapext import read
from nova_snapext import reason as reasons
from nova_snapext.resources import disk_definition
from nova_snapext.resources import nbd_export
from nova_snapext.resources import passthrough_devices
from nova_snapext.resources import work_directory
from nova_snapext import space

CONF = conf.CONF

# Not reported as FreezeFailed: each names the instance and the remedy itself.
COMPLETE_ERRORS = (exception.FreezeFailed,
                   exception.GuestBusy,
                   exception.QuiesceFailed,
                   exception.ThawFailed,
                   exception.ReleaseFailed,
                   exception.JournalFailed,
                   exception.SnapshotAborted)

# Errors of libvirt, of QEMU's programs and of the host. A bug of ours is none
# of them.
FREEZE_ERRORS: tuple[type[Exception], ...] = (
    *errors.HYPERVISOR_ERRORS, *connection.UNREACHABLE)

# libvirt takes no snapshot of such a guest (virDomainSnapshotState,
# qemuSnapshotCreateXML), and its QEMU ends in a moment.
STATES_WITHOUT_SNAPSHOT = {
    power_state.SUSPENDED: 'the guest is suspended to its memory',
    power_state.SHUTDOWN: 'the guest is being shut down',
}


@dataclasses.dataclass(frozen=True)
class FrozenDisk:
    """A read-only NBD export of the root disk at one point in time.

    :ivar uri: NBD URI of the export
    :ivar consistency: what a guest finds that boots from this disk
    :ivar freeze_seconds: duration of the freeze, in seconds
    :ivar frozen_at: the point in time, UTC without a time zone as in Nova
    :ivar extents: returns the extents of the disk, where its storage knows
        them better than the NBD server; None if the storage does not tell.
        It stops when the token is cancelled, with the cause
    :ivar lost_reason: returns why what was read may not be the frozen disk,
        though the NBD server has reported no error; None if it is. It is
        called when all is read
    """

    uri: str
    consistency: planning.Consistency
    freeze_seconds: float
    frozen_at: datetime.datetime = dataclasses.field(
        default_factory=timeutils.utcnow)
    extents: Callable[[cancel.CancelToken],
                      read.ExtentMap | None] | None = None
    lost_reason: Callable[[], str | None] = lambda: None

    def to_read(self, token: cancel.CancelToken) -> read.Disk:
        """Return the disk, to be read as the options say.

        :param token: its cancellation ends what the storage is asked
        """
        return read.Disk(self.uri, CONF.snapext.read_timeout,
                         CONF.snapext.read_rate_limit_mbps * units.Mi,
                         self.extents and functools.partial(
                             self.extents, token), self.lost_reason)


class Strategy(abc.ABC):
    """A way to take a snapshot.

    :cvar name: the name of its entry point; users request it by this name
    :cvar resource_types: the classes of all resources that it adds to the
        journal. Recovery restores the resources of an interrupted snapshot
        through them.
    :ivar driver: Nova's libvirt driver
    :ivar host: the driver's connection to libvirt
    """

    name: str
    resource_types: tuple[type[journal.Resource], ...] = ()

    def __init__(self, driver: libvirt_driver.LibvirtDriver):
        self.driver = driver
        self.host: libvirt_host.Host = driver._host

    @abc.abstractmethod
    def unsupported_reason(self, plan: planning.Plan) -> str | None:
        """Return why this strategy can't take a snapshot; None if it can.

        Whatever can be known beforehand is a reason: another strategy is
        selected then, and nothing is changed. It is called for each snapshot,
        and must not take long.

        :returns: text for operators; a :class:`UserReason` if users may read
            it
        """

    def stops_guest(self, plan: planning.Plan) -> bool:
        """Return whether the guest stands still for longer than a moment.

        If a strategy has stopped the guest in vain, no other one is tried
        that stops it again.
        """
        return False

    def auto_skip_reason(self, plan: planning.Plan) -> str | None:
        """Return why ``auto`` should prefer another strategy; None if not.

        It is for a snapshot that this strategy can take, but at a cost that
        somebody has to accept first.
        """
        return None


class FreezingStrategy(Strategy):
    """A way to freeze a root disk.

    :cvar STORAGES: supported types of the disk's source, in libvirt's words
    :cvar FORMATS: supported formats of the disk, in libvirt's words
    :cvar mechanisms: what it uses of QEMU and libvirt while the guest has a
        QEMU. It is refused for a guest if one of them has a known defect
    """

    STORAGES: frozenset[str] = frozenset({'file', 'block'})
    FORMATS: frozenset[str] = frozenset({'qcow2', 'raw'})
    mechanisms: frozenset[known_defects.Mechanism] = frozenset()

    def unsupported_reason(self, plan: planning.Plan) -> str | None:
        disk = plan.disk
        if disk.unsupported_reason:
            return disk.unsupported_reason
        if disk.storage not in self.STORAGES:
            return reasons.OtherStorageReason(
                f'its root disk is on {disk.storage} storage' + (
                    ' (Ceph RBD)' if ceph.image_of(disk) else ''))
        if disk.format not in self.FORMATS:
            return reasons.UserReason(
                f'its root disk has the format {disk.format}')
        return find_reason(plan, self.unsupported_guest_reason,
                           self._known_defect_reason,
                           self._work_directory_reason, self._space_reason)

    def _known_defect_reason(self, plan: planning.Plan) -> str | None:
        # A guest that is shut off has no QEMU.
        if not plan.running or not self.mechanisms:
            return None
        running = qemu_process.running_version(self.host, plan.guest)
        defect = next(known_defects.find(
            self.mechanisms, qemu_process.subject(plan.guest, plan.disk),
            running=running,
            installed=qemu_process.installed_version(self.host),
            libvirt=qemu_process.libvirt_version(self.host),
            ignored=CONF.snapext.fixed_defects), None)
        if defect is None:
            return None
        version = ('a QEMU whose version is unknown' if running is None
                   else f'QEMU {known_defects.version_text(running)}')
        return (f'the guest runs in {version}, and there is the known defect '
                f'{defect.name}: {defect.consequence}')

    def _work_directory_reason(self, plan: planning.Plan) -> str | None:
        work_directory.WorkDirectory.allocate(plan.instance)
        path = os.path.abspath(CONF.snapext.work_directory)
        while not os.path.lexists(path) and path != os.path.dirname(path):
            path = os.path.dirname(path)
        if not (os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK)):
            return (f'nova-compute can\'t create [snapext]work_directory, or '
                    f'a directory in it: {path} is not a directory that it '
                    f'may write to')
        return None

    def _space_reason(self, plan: planning.Plan) -> str | None:
        shortage = checks.FreeSpaceCheck(
            plan.instance, self.growing_paths(plan)).run()
        if shortage is None:
            return None
        return reasons.NoSpaceReason(
            f'the file system of {shortage.kwargs["path"]} has '
            f'{shortage.kwargs["free"]} MiB free (less '
            f'[DEFAULT]reserved_host_disk_mb), and [snapext]min_free_disk_mb '
            f'keeps {shortage.kwargs["min_free"]} MiB',
            shortage.kwargs['path'])

    @abc.abstractmethod
    def unsupported_guest_reason(self, plan: planning.Plan) -> str | None:
        """Return why this strategy can't freeze a guest's disk.

        :meth:`unsupported_reason` calls it for a disk with a supported
        storage and format. An error of libvirt, of the host or of this package
        is a reason, too: call what raises it if the disk can't be frozen.

        :returns: see :meth:`Strategy.unsupported_reason`
        """

    def growing_paths(self, plan: planning.Plan) -> tuple[str, ...]:
        """Return the paths of what grows while the disk is frozen.

        QEMU pauses the guest if a file system with one of them is full.

        :returns: paths of files or directories
        """
        return ()

    @contextlib.contextmanager
    def freeze(self, plan: planning.Plan,
               entry: journal.JournalEntry | None = None,
               ) -> Iterator[FrozenDisk]:
        """Freeze the root disk, and release it on exit from the context.

        After any exit, the guest is as it was before, and nothing of the
        snapshot remains on the host. If there is no exit, as when
        nova-compute is killed, the journal lists what remains.

        :param entry: the snapshot's entry in the journal; None to create one
        :raises FreezeFailed: the disk can't be frozen; nothing remains. Its
            class says whether another strategy may be tried
        :raises GuestBusy: the guest has a job that excludes the freeze
        :raises ThawFailed: the guest's filesystems may still be frozen
        :raises libvirtError: the guest's domain is gone
        :raises ReleaseFailed: on exit; it says what remains and how to
            remove it
        """
        with contextlib.ExitStack() as outer:
            if entry is None:
                entry = outer.enter_context(journal.new_entry(plan, self.name))
            stack = outer.enter_context(journal.ReleaseStack(entry))
            with self.failing_as(exception.FreezeFailed, plan):
                frozen = self.freeze_disk(plan, stack)
            yield frozen

    @contextlib.contextmanager
    def failing_as(self, failure: type[exception.FreezeFailed],
                   plan: planning.Plan) -> Iterator[None]:
        """Report errors inside the context as a failure of one class.

        :param failure: says what the guest noticed, and so whether another
            strategy may be tried
        """
        try:
            yield
        except COMPLETE_ERRORS:
            raise
        except FREEZE_ERRORS as error:
            if domain.is_gone(error):
                raise
            if isinstance(error, exception.UnexpectedHeader):
                failure = exception.FreezeFailedForGood
            raise failure(
                disk=plan.disk.target, instance=plan.instance.uuid,
                strategy=self.name, reason=str(error)) from error

    @abc.abstractmethod
    def freeze_disk(self, plan: planning.Plan,
                    stack: journal.ReleaseStack) -> FrozenDisk:
        """Freeze the root disk, and put its release onto the stack.

        Anything that a crash would leave behind has to be a
        :class:`Resource`, and ``stack.add`` has to come before its creation.

        :raises Exception: errors of the hypervisor module's
            HYPERVISOR_ERRORS and UNREACHABLE, which :meth:`freeze` reports
            as FreezeFailed
        """

    def create_work_directory(
        self, plan: planning.Plan, stack: journal.ReleaseStack,
    ) -> work_directory.WorkDirectory:
        """Create the snapshot's work directory; the stack removes it.

        Call it before anything else: a directory that can't be created then
        costs the guest nothing.

        :raises WorkDirectoryError: its path is too long for a Unix socket
        :raises OSError: it can't be created
        """
        directory = work_directory.WorkDirectory.allocate(plan.instance)
        stack.add(directory)
        directory.create()
        return directory

    def export_disk(self, plan: planning.Plan, stack: journal.ReleaseStack,
                    directory: work_directory.WorkDirectory, *,
                    consistency: planning.Consistency, freeze_seconds: float,
                    frozen_at: datetime.datetime,
                    disk: planning.RootDisk | None = None,
                    snapshot: str | None = None) -> FrozenDisk:
        """Export a disk that nobody writes to any more, through qemu-nbd.

        The last step of a strategy that has no NBD server in QEMU. The stack
        stops the export before it releases anything that was added earlier.

        :param directory: the snapshot's work directory
        :param consistency: what a guest finds that boots from this disk
        :param freeze_seconds: duration of the freeze, in seconds
        :param frozen_at: the point in time, UTC without a time zone
        :param disk: the disk to export; None for the root disk itself
        :param snapshot: name of the internal snapshot to export; None for
            the disk's current content
        :raises ProcessExecutionError: qemu-nbd can't open the disk
        :raises OSError: qemu-nbd can't be run
        :raises TimeoutExpired: the disk's storage does not respond
        """
        export = nbd_export.NbdExport(plan.instance.uuid, directory)
        stack.add(export)
        export.serve(disk or plan.disk, snapshot, plan.guest)
        return FrozenDisk(
            uri=read.unix_uri(directory.socket, plan.disk.target),
            consistency=consistency, freeze_seconds=freeze_seconds,
            frozen_at=frozen_at)


def find_reason(plan: planning.Plan,
                *finders: Callable[[planning.Plan], str | None]) -> str | None:
    """Return the first reason that one of some functions finds.

    :param finders: return a reason, or raise one of FREEZE_ERRORS
    :raises libvirtError: the guest's domain is gone
    """
    try:
        return next(filter(None, (find(plan) for find in finders)), None)
    except exception.UnexpectedHeader as error:
        return reasons.UnsafeDiskReason(error)
    except exception.GuestBusy as error:
        return reasons.UserReason(str(error), error.format_message())
    except exception.SnapextError as error:
        return str(error)
    except FREEZE_ERRORS as error:
        if domain.is_gone(error):
            raise
        return f'it could not be found out whether it can: {error}'


def check_no_jobs(plan: planning.Plan) -> None:
    """Check that neither a running guest nor its root disk has a job.

    :raises GuestBusy: one of them has
    """
    jobs.check_no_job(plan.guest, plan.instance)
    jobs.check_no_disk_job(plan.disk.target, plan.guest, plan.instance)


def check_headers(plan: planning.Plan) -> None:
    """Check that QEMU's programs may open the root disk.

    :raises OSError: it can't be read
    :raises UnexpectedHeader: a header in its chain is not as expected
    """
    os.stat(plan.disk.path)
    expected = None
    if plan.running:
        # What libvirt knows since the guest started.
        expected = disk_definition.live_chain(
            plan.guest, plan.disk.target)[1:]
    image_header.checked_chain(plan.disk, expected)


def state_reason(plan: planning.Plan,
                 host: libvirt_host.Host) -> str | None:
    """Return why libvirt takes no snapshot in the state of a guest."""
    reason = STATES_WITHOUT_SNAPSHOT.get(plan.guest.get_power_state(host))
    return None if reason is None else reasons.UserReason(reason)


def overlay_reason(plan: planning.Plan) -> str | None:
    """Return why the root disk of a running guest can't get an overlay."""
    if not plan.guest.has_persistent_configuration():
        # The definition for the next start has to be changed, too.
        return ('libvirt has no persistent definition of the guest, as after '
                '"virsh undefine" or during a snapshot of Nova')
    return attribute_reason(plan)


def attribute_reason(plan: planning.Plan) -> str | None:
    """Return why libvirt takes no snapshot of such a root disk.

    qemuSnapshotPrepareDiskExternal and qemuSnapshotPrepareDiskShared of
    libvirt's qemu_snapshot.c; a qcow2 can't be shared.
    """
    disks = etree.fromstring(plan.guest.get_xml_desc()).xpath(
        './devices/disk[target/@dev=$target]', target=plan.disk.target)
    for attribute, text in (('readonly', 'read-only'),
                            ('shareable', 'shared with other guests'),
                            ('transient', 'transient')):
        if any(disk.find(attribute) is not None for disk in disks):
            return reasons.UserReason(f'its root disk is {text}')
    return None


def memory_reason(plan: planning.Plan,
                  host: libvirt_host.Host) -> str | None:
    """Return why the memory of a running guest can't be saved.

    Passthrough devices do not matter: they are detached. libvirt has the same
    conditions in qemuMigrationSrcIsAllowed, Nova in its API of suspend.
    """
    definition = etree.fromstring(plan.guest.get_xml_desc())
    if plan.guest.get_power_state(host) == power_state.CRASHED:
        return reasons.UserReason('the guest has crashed')
    for path, text in (
        ('./launchSecurity', 'its memory is encrypted'),
        ("./devices/filesystem/driver[@type='virtiofs']",
         'it uses a share (virtiofs)'),
        ('./devices/shmem', 'it shares memory with another process'),
        ('./devices/disk/transient', 'it has a transient disk'),
    ):
        if definition.find(path) is not None:
            return reasons.UserReason(
                f'the memory of the guest can\'t be saved, because {text}')
    kinds = {device.get('type', device.get('mode')) for device in
             definition.findall('./devices/hostdev')} - {'pci', 'mdev'}
    if kinds:
        return reasons.UserReason(
            f'the memory of the guest can\'t be saved, because it has a host '
            f'device of the type {", ".join(sorted(map(str, kinds)))}')
    return None


def memory_space_reason(plan: planning.Plan, path: str) -> str | None:
    """Compare the memory of a running guest with the free space for it.

    :param path: the file or directory that libvirt saves it into
    """
    needed = plan.guest.memory_size()
    try:
        free = space.free_bytes(path)
    except OSError as error:
        return f'the free space of {path} is unknown: {error}'
    if needed <= free:
        return None
    # Nova's own snapshot does not need that much.
    return reasons.UserReason(
        f'the guest\'s memory of {needed // units.Mi} MiB is saved into '
        f'{path}, and its file system has only {max(free, 0) // units.Mi} MiB '
        f'free beyond [DEFAULT]reserved_host_disk_mb',
        'the host has not enough free space')


def failure_of_save(
    devices: passthrough_devices.PassthroughDevices,
) -> type[exception.FreezeFailed]:
    """Return what it is if libvirt does not save the memory of a guest.

    :param devices: the guest's, after capture_state()
    """
    return (exception.FreezeFailedForGood if devices.exist
            else exception.GuestStoodStill)


def consistency_of_shut_off(plan: planning.Plan) -> planning.Consistency:
    """Return the consistency of the disk of a guest that does not run."""
    # A suspended guest's unwritten data is in its saved memory.
    if plan.guest.has_managed_save():
        return planning.Consistency.CRASH
    return planning.Consistency.OFFLINE
