# SPDX-License-Identifier: Apache-2.0
"""The base classes of all strategies, and the disk that a freeze returns."""

from __future__ import annotations

import abc
from collections.abc import Iterator
import contextlib
import dataclasses
import datetime

from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import host as libvirt_host
from oslo_utils import timeutils

from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.hypervisor import connection
from nova_snapext.hypervisor import domain
from nova_snapext.hypervisor import errors
from nova_snapext.hypervisor import known_defects
from nova_snapext.hypervisor import qemu_process
from nova_snapext import journal
from nova_snapext import plan as planning
from nova_snapext import read
from nova_snapext.resources import nbd_export
from nova_snapext.resources import work_directory

CONF = conf.CONF

# Not reported as FreezeFailed: each names the instance and the remedy itself.
COMPLETE_ERRORS = (exception.GuestBusy,
                   exception.ThawFailed,
                   exception.ReleaseFailed,
                   exception.JournalFailed,
                   exception.SnapshotAborted)


@dataclasses.dataclass(frozen=True)
class FrozenDisk:
    """A read-only NBD export of the root disk at one point in time.

    :ivar uri: NBD URI of the export
    :ivar consistency: what a guest finds that boots from this disk
    :ivar freeze_seconds: duration of the freeze, in seconds
    :ivar frozen_at: the point in time, UTC without a time zone as in Nova
    """

    uri: str
    consistency: planning.Consistency
    freeze_seconds: float
    frozen_at: datetime.datetime = dataclasses.field(
        default_factory=timeutils.utcnow)


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
        """Return why this strategy can't take a snapshot; None if it can."""

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
            return f'its root disk is on {disk.storage} storage'
        if disk.format not in self.FORMATS:
            return f'its root disk has the format {disk.format}'
        return (self.unsupported_guest_reason(plan) or
                self._known_defect_reason(plan))

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

    @abc.abstractmethod
    def unsupported_guest_reason(self, plan: planning.Plan) -> str | None:
        """Return why this strategy can't freeze a guest's disk.

        :meth:`unsupported_reason` calls it for a disk with a supported
        storage and format.
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
        :raises FreezeFailed: the disk can't be frozen; nothing remains
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
            try:
                frozen = self.freeze_disk(plan, stack)
            except COMPLETE_ERRORS:
                raise
            except (*errors.HYPERVISOR_ERRORS,
                    *connection.UNREACHABLE) as error:
                if domain.is_gone(error):
                    raise
                raise exception.FreezeFailed(
                    disk=plan.disk.target, instance=plan.instance.uuid,
                    strategy=self.name, reason=str(error)) from error
            yield frozen

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


def consistency_of_shut_off(plan: planning.Plan) -> planning.Consistency:
    """Return the consistency of the disk of a guest that does not run."""
    # A suspended guest's unwritten data is in its saved memory.
    if plan.guest.has_managed_save():
        return planning.Consistency.CRASH
    return planning.Consistency.OFFLINE
