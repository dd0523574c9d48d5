# SPDX-License-Identifier: Apache-2.0
"""Nova's libvirt driver, with other snapshots: the methods we override.

RecoveryGuards overrides the methods that start or move an instance.
"""

from __future__ import annotations

import contextlib
import threading
import typing as ty

from nova.compute import task_states
from nova import context as nova_context
from nova import objects
from nova.virt import event as virtevent
from nova.virt.libvirt import driver
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt import imagebackend
from oslo_log import log as logging

from nova_snapext import compat
from nova_snapext import conf
from nova_snapext.encode import codec
from nova_snapext import exception
from nova_snapext import guards
from nova_snapext.hypervisor import block_commit
from nova_snapext.hypervisor import job_events
from nova_snapext.hypervisor import watchdog
from nova_snapext.hypervisor import write_limit
from nova_snapext import journal
from nova_snapext.recovery import gate
from nova_snapext.recovery import rbd_leftovers
from nova_snapext.recovery import recover
from nova_snapext.recovery import schedule
from nova_snapext.recovery import startup
from nova_snapext.resources import passthrough_devices
from nova_snapext.resources import work_directory
from nova_snapext.snapshot import action_event
from nova_snapext.snapshot import failure
from nova_snapext.snapshot import job
from nova_snapext.snapshot import native_job
from nova_snapext.snapshot import selection

CONF = conf.CONF
LOG = logging.getLogger(__name__)

# Events of a migration: the guest is, or will be, on another host.
MIGRATION_EVENTS = (virtevent.EVENT_LIFECYCLE_MIGRATION_COMPLETED,
                    virtevent.EVENT_LIFECYCLE_POSTCOPY_STARTED)

# Seconds that the start of nova-compute waits for recoveries. Most take less
# than one. The controllers consider a host down after
# [DEFAULT]service_down_time, 60 s by default.
START_TIMEOUT = 10

# Seconds that a deletion waits for the snapshot that it cancels: it is noticed
# after checks.SLOW_INTERVAL, and Ceph needs some to release what there is.
CANCEL_TIMEOUT = 60

# Tasks with which Nova deletes an instance. It has none in the reclaim of a
# soft delete: ComputeManager._reclaim_queued_deletes.
DELETING_TASKS = (task_states.DELETING, None)


class SnapextDriver(guards.RecoveryGuards, driver.LibvirtDriver):
    """The libvirt driver. Everything but snapshots is Nova's own.

    :ivar strategies: the installed strategies, by name
    :ivar gate: allows one operation on an instance at a time
    :ivar failure_log: the failed recoveries that are in the log already
    :ivar pending_unplugs: devices whose removal libvirt has yet to report
    :ivar native_jobs: Nova's own snapshots in progress, by instance uuid
    """

    def __init__(self, virtapi: ty.Any, read_only: bool = False):
        compat.require()
        # Nova may be told to stop before the first snapshot.
        compat.shutdown_event(virtapi)
        super().__init__(virtapi, read_only)
        # libvirt reports a lost connection in the thread that notices it. In
        # _get_connection() that thread already has the lock that Nova's
        # callback acquires. With Nova's plain lock, a libvirtd killed at the
        # wrong moment would hang nova-compute indefinitely.
        self._host._wrapped_conn_lock = threading.RLock()
        self.pending_unplugs = passthrough_devices.PendingUnplugs()
        self.native_jobs: dict[str, native_job.NativeJob] = {}
        self._nova_root_disk = self.image_backend.by_libvirt_path
        self.image_backend.by_libvirt_path = self._root_disk
        self.strategies = selection.load_strategies(self)
        selection.check_options(self.strategies)
        codec.check_options()
        self.failure_log = schedule.FailureLog()
        self.gate = gate.InstanceGate(self)
        self._job_events = job_events.JobEvents(self._host)
        self._journal = contextlib.ExitStack()
        self._may_recover = False

    def init_host(self, host: str) -> None:
        """Clean up after interrupted snapshots.

        The service starts in bounded time. What takes longer goes on in the
        background, and the gate keeps its instances from use.
        """
        self._start_watchdog()
        _check_work_directory()
        super().init_host(host)
        # Until this process ends.
        self._journal.enter_context(journal.locked(wait=True))
        journal.finish_writes()
        journal.set_aside_unreadable()
        self._may_recover = True
        self.gate.recover_all_in_background()
        self.gate.start_retries()
        left = self.gate.wait(START_TIMEOUT)
        compat.hold_instances(self.virtapi, startup.holding(self))
        if left:
            LOG.warning('nova-compute starts while interrupted snapshots are '
                        'still cleaned up. These instances can\'t be '
                        'started, moved or snapshotted until the log says '
                        'that theirs is: %s', ', '.join(left))

    def cleanup_host(self, host: str) -> None:
        """Leave no guest paused when the service stops.

        A recovery in the background ends with the process, at any step.
        """
        paused = write_limit.PAUSES.stop(block_commit.MAX_PAUSE)
        if paused:
            LOG.warning('nova-compute stops while the guests of these '
                        'instances are paused for a merge. Its '
                        'next start resumes them: %s', ', '.join(paused))
        super().cleanup_host(host)

    def process_instances_at_startup(
        self, context: nova_context.RequestContext,
        instances: objects.InstanceList,
    ) -> objects.InstanceList:
        """Return the instances that Nova initializes now.

        The others are initialized when they are recovered.
        """
        return startup.hold_back(
            self, context,
            super().process_instances_at_startup(context, instances))

    def _start_watchdog(self) -> None:
        timeout, uri = CONF.snapext.libvirtd_hang_timeout, self._host._uri
        # Under eventlet a native thread can't log.
        if (timeout and compat.concurrency_mode_threading() and
                watchdog.Watchdog.serves(uri)):
            watchdog.Watchdog(uri, timeout).start()

    def _handle_conn_event(self, enabled: bool, reason: str | None) -> None:
        """Clean up after a failure of libvirtd, when it is back."""
        # init_host() recovers everything itself.
        is_back = enabled and self._may_recover
        super()._handle_conn_event(enabled, reason)
        if enabled:
            self._job_events.register()
        if is_back:
            self.gate.recover_all_in_background()

    def emit_event(self, event: virtevent.InstanceEvent) -> None:
        if isinstance(event, job_events.JobEndedEvent):
            # Nova does not know it.
            if isinstance(event, job_events.ForeignJobEndedEvent):
                self.gate.recover_after_foreign_job(event.uuid)
            else:
                self.gate.recover_after_job(event.uuid)
            return
        super().emit_event(event)
        self.pending_unplugs.on_event(event)
        if (isinstance(event, virtevent.LifecycleEvent) and
                event.transition not in MIGRATION_EVENTS):
            self.gate.recover_if_outstanding(event.uuid)

    def snapshot(self, context: nova_context.RequestContext,
                 instance: objects.Instance, image_id: str,
                 update_task_state: job.UpdateTaskState) -> None:
        """Freeze the root disk and stream it to Glance.

        :raises StrategyRefused: the requested strategy can't take it; nothing
            was changed
        :raises SnapshotInProgress: another snapshot of the instance runs
        :raises RecoveryInProgress: an earlier one is still recovered
        :raises NotRecovered: an earlier one was interrupted, and can't be
            recovered
        """
        with failure.free_frames(), \
                action_event.report(context, instance), \
                failure.log_failure(instance, image_id), \
                self.gate.exclusive(instance.uuid):
            recover.ensure_recovered(self, context, instance)
            recover.make_way(instance.uuid)
            self.gate.delete_images_in_background(context, instance.uuid)
            job.SnapshotJob(
                self, context, instance, image_id, update_task_state).run()

    def _live_snapshot(self, context: nova_context.RequestContext,
                       instance: objects.Instance,
                       guest: libvirt_guest.Guest, disk_path: str,
                       out_path: str, *args: ty.Any) -> None:
        # Nova's own tests pass a dictionary.
        native = self.native_jobs.get(instance['uuid'])
        if native is not None:
            native.on_live_snapshot(out_path)
        super()._live_snapshot(
            context, instance, guest, disk_path, out_path, *args)

    def quiesce(self, context: nova_context.RequestContext,
                instance: objects.Instance,
                image_meta: objects.ImageMeta) -> None:
        # Nova thaws only if no step between the two has failed, and waits for
        # the agent without a limit.
        native = self.native_jobs.get(instance['uuid'])
        if native is None:
            super().quiesce(context, instance, image_meta)
        else:
            native.on_quiesce()

    def unquiesce(self, context: nova_context.RequestContext,
                  instance: objects.Instance,
                  image_meta: objects.ImageMeta) -> None:
        native = self.native_jobs.get(instance['uuid'])
        if native is None:
            super().unquiesce(context, instance, image_meta)
        else:
            native.on_unquiesce()

    def _cleanup_lvm(self, instance: objects.Instance, *args: ty.Any,
                     **kwargs: ty.Any) -> None:
        # Nova can't remove a volume that is open. The deletion has ended the
        # guest, and cancels a snapshot.
        self.gate.wait_until_idle(instance.uuid, CANCEL_TIMEOUT)
        super()._cleanup_lvm(instance, *args, **kwargs)

    def _cleanup_rbd(self, instance: objects.Instance) -> None:
        # Nova can't delete a disk that has snapshots. A disk without the
        # snapshot that is being read would seem to be empty: the deletion
        # cancels such a snapshot first.
        if instance.task_state == task_states.RESIZE_REVERTING:
            super()._cleanup_rbd(instance)
            return
        has_ended = self.gate.wait_until_idle(instance.uuid, CANCEL_TIMEOUT)
        if not has_ended:
            LOG.warning('The snapshot of the deleted instance has not ended '
                        'within %s seconds. Nova can\'t delete the disk '
                        'before: it is deleted when the snapshot has ended',
                        CANCEL_TIMEOUT, instance=instance)
        compat.tpool_wrap(rbd_leftovers.remove_of_instance)(
            instance.uuid, in_progress=not has_ended)
        super()._cleanup_rbd(instance)
        # Other tasks create a disk of the same name again.
        if not has_ended and (
                instance.deleted or instance.task_state in DELETING_TASKS):
            self.gate.call_when_idle(
                instance.uuid, self._cleanup_rbd, instance)

    def _root_disk(self, instance: objects.Instance, *args: ty.Any,
                   **kwargs: ty.Any) -> imagebackend.Image:
        """Return Nova's object for the disk that its own snapshot takes."""
        disk = self._nova_root_disk(instance, *args, **kwargs)
        # Nova's own tests pass a dictionary.
        native = self.native_jobs.get(instance['uuid'])
        if native is not None:
            native.watch(disk)
        return disk

    def _suspend_guest_for_snapshot(
        self, context: nova_context.RequestContext, live_snapshot: bool,
        current_power_state: int, instance: objects.Instance,
    ) -> None:
        native = self.native_jobs.get(instance.uuid)
        with contextlib.ExitStack() as stack:
            if native is not None and self._needs_suspend_resume_for_snapshot(
                    live_snapshot, current_power_state):
                stack.enter_context(native.suspended())
            super()._suspend_guest_for_snapshot(
                context, live_snapshot, current_power_state, instance)


def _check_work_directory() -> None:
    """Log an error if no strategy of ours can take a snapshot here."""
    try:
        work_directory.check_length()
    except exception.WorkDirectoryError as error:
        LOG.error('%s. Until then, only Nova\'s own snapshots are possible',
                  error)
