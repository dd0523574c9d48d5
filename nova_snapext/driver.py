# SPDX-License-Identifier: Apache-2.0
"""Nova's libvirt driver, with snapshots of our own."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import dataclasses
import functools
import os
import threading
import typing as ty

import libvirt
from nova.compute import task_states
from nova.compute import utils as compute_utils
from nova.compute import vm_states
from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from nova import thread_pool_factory
from nova import utils
from nova.virt import event as virtevent
from nova.virt.libvirt import driver
from nova.virt.libvirt import guest as libvirt_guest
from oslo_log import log as logging
from oslo_utils import excutils
from oslo_utils import timeutils

from nova_snapext import abort
from nova_snapext import background
from nova_snapext import choose
from nova_snapext import conf
from nova_snapext import encode
from nova_snapext import exception
from nova_snapext import freeze
from nova_snapext.freeze import jobs
from nova_snapext.freeze import libvirtd
from nova_snapext.freeze import native
from nova_snapext.freeze import passthrough
from nova_snapext.freeze import quiesce
from nova_snapext import journal
from nova_snapext import monitor
from nova_snapext import plan as planning
from nova_snapext import progress
from nova_snapext import properties
from nova_snapext import read
from nova_snapext import recovery
from nova_snapext import report
from nova_snapext import upload
from nova_snapext.upload import image as unfinished

CONF = conf.CONF
LOG = logging.getLogger(__name__)

UpdateTaskState = Callable[..., None]

# Seconds for libvirt to notice that a QEMU has ended.
END_LATENCY = 2


class _TaskStates:
    """Sets task states, each expecting the one before it.

    The first of them expects what Nova's manager does.
    """

    def __init__(self, update: UpdateTaskState):
        self._update = update
        self._last: str | None = None

    def __call__(self, task_state: str, **expected: str | None) -> None:
        if self._last is not None:
            expected.setdefault('expected_state', self._last)
        self._update(task_state=task_state, **expected)
        self._last = task_state


class SnapextDriver(driver.LibvirtDriver):
    """The libvirt driver; what it does otherwise is Nova's own."""

    def __init__(self, virtapi: ty.Any, read_only: bool = False):
        super().__init__(virtapi, read_only)
        # libvirt tells of a connection that is lost in the thread that finds
        # out. Where that is _get_connection(), it has the lock already for
        # which Nova's callback waits: a libvirtd that is killed at the wrong
        # moment would hang nova-compute for ever.
        self._host._wrapped_conn_lock = threading.RLock()
        self.late_releases = passthrough.LateReleases()
        self._strategies = choose.load_strategies(self)
        choose.check_options(self._strategies)
        # Instances whose snapshot is not worth to suspend them.
        self._direct_only: set[str] = set()
        self._native: dict[str, native.NativeSnapshot] = {}
        self._running: set[str] = set()
        self._recovered_later: set[str] = set()
        self._running_lock = threading.Lock()
        self._journal = contextlib.ExitStack()
        self._has_recovered = False

    def init_host(self, host: str) -> None:
        """Clean up what a crash has left, before the service takes work."""
        self._watch_libvirtd()
        super().init_host(host)
        # For as long as this process lives.
        self._journal.enter_context(journal.locked(wait=True))
        recovery.recover_all(self)
        self._has_recovered = True

    def _watch_libvirtd(self) -> None:
        timeout, uri = CONF.snapext.libvirtd_timeout, self._host._uri
        # Under eventlet no native thread can log.
        if (timeout and utils.concurrency_mode_threading() and
                libvirtd.Watch.serves(uri)):
            libvirtd.Watch(uri, timeout).start()

    def _handle_conn_event(self, enabled: bool, reason: str | None) -> None:
        """Clean up what libvirtd, which is back, has kept from it."""
        # Before init_host() cleans up itself, nobody else does.
        is_back = enabled and self._has_recovered
        super()._handle_conn_event(enabled, reason)
        if is_back:
            for entry in journal.entries():
                thread_pool_factory.spawn(self._recover, entry.instance)

    def _recover(self, uuid: str) -> None:
        """Clean up after a snapshot, now or when it does not run any more."""
        with self._running_lock:
            if uuid in self._running:
                self._recovered_later.add(uuid)
                return
        try:
            with self._only_one(uuid):
                recovery.recover_one(self, uuid)
        except exception.SnapshotOutstanding:
            LOG.debug('Instance %s is cleaned up by what has just begun', uuid)
        except Exception:
            # Nobody waits for this thread.
            LOG.exception('Cleaning up after the snapshot of instance %s '
                          'failed. It is tried again when libvirtd is '
                          'connected anew, and before the instance is started '
                          'or moved', uuid)

    def emit_event(self, event: virtevent.InstanceEvent) -> None:
        super().emit_event(event)
        self.late_releases.notice(event)

    def snapshot(self, context: nova_context.RequestContext,
                 instance: objects.Instance, image_id: str,
                 update_task_state: UpdateTaskState) -> None:
        """Freeze the root disk, and stream it to Glance as it is read.

        :raises StrategyRefused: what was asked for can't be; nothing was
            touched
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(report.reported(context, instance))
            stack.enter_context(self._failure_logged(instance, image_id))
            stack.enter_context(self._only_one(instance.uuid))
            recovery.ensure_whole(self, context, instance)
            stack.enter_context(self._gone_guest_translated(instance))
            plan, asked = self._plan(context, instance, image_id)
            set_task_state = _TaskStates(update_task_state)
            try:
                self._take(plan, asked, set_task_state)
            except exception.DirectSnapshotRefused as refused:
                self._take(
                    dataclasses.replace(plan, direct_refused=str(refused)),
                    asked, set_task_state)

    def _plan(self, context: nova_context.RequestContext,
              instance: objects.Instance,
              image_id: str) -> tuple[planning.Plan, choose.Wish]:
        try:
            guest = self._host.get_guest(instance)
        except nova_exception.InstanceNotFound:
            # No cause: Nova's manager takes this for a deletion under way.
            raise nova_exception.InstanceNotRunning(
                instance_id=instance.uuid) from None
        if instance.vm_state == vm_states.RESCUED:
            # Nova's API lets none pass. Its first disk is the rescue image's.
            raise nova_exception.InstanceInvalidState(
                attr='vm_state', instance_uuid=instance.uuid,
                state=instance.vm_state, method='snapshot')
        image = self._image_api.get(context, image_id)
        asked = choose.wish(instance, image['properties'])
        disk = planning.root_disk(guest)
        image_format = planning.image_format_of(disk)
        return planning.Plan(
            context=context, instance=instance, guest=guest,
            running=bool(guest.is_active()), disk=disk, image_id=image_id,
            image_format=image_format,
            image_properties=image['properties'],
            metadata=self._create_snapshot_metadata(
                instance.image_meta, instance, image_format, image['name']),
        ), asked

    def _take(self, plan: planning.Plan, asked: choose.Wish,
              set_task_state: UpdateTaskState) -> None:
        strategy = choose.choose(plan, asked, self._strategies)
        LOG.info('Beginning snapshot of root disk %(disk)s (%(path)s) by the '
                 'strategy %(strategy)s, as a %(format)s image',
                 {'disk': plan.disk.target, 'path': plan.disk.path,
                  'strategy': strategy.name, 'format': plan.image_format},
                 instance=plan.instance)
        if isinstance(strategy, freeze.FreezingStrategy):
            self._take_frozen(plan, strategy, set_task_state)
        else:
            properties.take_off_stale(
                plan.context, plan.image_id, plan.image_properties)
            with self._suspend_forbidden(plan, asked):
                self._take_native(plan, strategy, set_task_state)

    @contextlib.contextmanager
    def _only_one(self, uuid: str) -> Iterator[None]:
        """Refuse what comes to an instance beside its snapshot.

        :param uuid: of the instance
        :raises SnapshotOutstanding: there is one, or one is cleaned up
        """
        with self._running_lock:
            if uuid in self._running:
                raise exception.SnapshotOutstanding(
                    instance=uuid, path='it runs in nova-compute')
            self._running.add(uuid)
        try:
            yield
        finally:
            with self._running_lock:
                self._running.discard(uuid)
                later = uuid in self._recovered_later
                self._recovered_later.discard(uuid)
            if later:
                thread_pool_factory.spawn(self._recover, uuid)

    def _ensure_whole(self, context: nova_context.RequestContext | None,
                      instance: objects.Instance) -> None:
        """See that an instance can be started or moved.

        :raises SnapshotOutstanding: its snapshot is being taken
        :raises NotRecovered: one was interrupted, and can't be cleaned up
        """
        with self._only_one(instance.uuid):
            recovery.ensure_whole(self, context, instance)

    def _take_native(self, plan: planning.Plan, strategy: freeze.Strategy,
                     set_task_state: UpdateTaskState) -> None:
        self._image_api.update(
            plan.context, plan.image_id,
            {'properties': {properties.STRATEGY: strategy.name}},
            purge_props=False)
        uuid = plan.instance.uuid
        with unfinished.unfinished(
                self._image_api, plan, strategy.name) as (entry, finished), \
                journal.ReleaseStack(entry) as stack:
            stack.hold(quiesce.Filesystems(plan))
            self._native[uuid] = native.NativeSnapshot.of(self, plan)
            stack.callback(self._native.pop, uuid)
            stack.hold(self._native[uuid])
            try:
                super().snapshot(plan.context, plan.instance, plan.image_id,
                                 set_task_state)
            except exception.DirectSnapshotRefused:
                finished()  # by another strategy: the image is still wanted
                raise
            finished()

    def _live_snapshot(self, context: nova_context.RequestContext,
                       instance: objects.Instance,
                       guest: libvirt_guest.Guest, disk_path: str,
                       out_path: str, *args: ty.Any) -> None:
        # Nova has just made the directory.
        snapshot = self._native.get(instance.uuid)
        if snapshot is not None:
            snapshot.directory = os.path.dirname(out_path)
            snapshot.renew()
        super()._live_snapshot(
            context, instance, guest, disk_path, out_path, *args)

    @contextlib.contextmanager
    def _suspend_forbidden(self, plan: planning.Plan,
                           asked: choose.Wish) -> Iterator[None]:
        """Have Nova's own snapshot give up before it suspends the guest.

        Where Nova's direct snapshot was all that spoke for it.
        """
        if not (asked.is_auto and native.may_be_direct(plan)):
            yield
            return
        self._direct_only.add(plan.instance.uuid)
        try:
            yield
        finally:
            self._direct_only.discard(plan.instance.uuid)

    def _suspend_guest_for_snapshot(
        self, context: nova_context.RequestContext, live_snapshot: bool,
        current_power_state: int, instance: objects.Instance,
    ) -> None:
        if (instance.uuid in self._direct_only and
                self._needs_suspend_resume_for_snapshot(
                    live_snapshot, current_power_state)):
            raise exception.DirectSnapshotRefused(instance=instance.uuid)
        super()._suspend_guest_for_snapshot(
            context, live_snapshot, current_power_state, instance)

    def _take_frozen(self, plan: planning.Plan,
                     strategy: freeze.FreezingStrategy,
                     set_task_state: UpdateTaskState) -> None:
        set_task_state(task_state=task_states.IMAGE_PENDING_UPLOAD)
        switch = abort.Switch()
        told = progress.Progress(plan.instance)
        space = monitor.SpaceLook(plan.instance, strategy.filling(plan))
        # The turn is awaited before the freeze: a frozen disk that waits for
        # it costs space and time of the guest's.
        with unfinished.unfinished(
                self._image_api, plan, strategy.name) as (entry, finished), \
                self._watched(plan, switch), \
                compute_utils.disk_ops_semaphore, \
                timeutils.StopWatch() as watch:
            switch.check()
            space.check()
            with strategy.freeze(plan, entry) as frozen:
                LOG.info('Root disk %(disk)s is frozen, %(consistency)s '
                         'consistent', {'disk': plan.disk.target,
                                        'consistency': frozen.consistency},
                         instance=plan.instance)
                set_task_state(
                    task_state=task_states.IMAGE_UPLOADING,
                    expected_state=task_states.IMAGE_PENDING_UPLOAD)
                with self._lost_disk_explained(plan), told.cleared(), \
                        monitor.watched(told, monitor.INTERVAL,
                                        switch, plan.instance), \
                        monitor.watched(space, monitor.CHEAP_INTERVAL,
                                        switch, plan.instance):
                    read_bytes, sent_bytes = background.run(
                        self._stream, plan, strategy, frozen, switch,
                        told.on_sent)
                # A release that fails leaves an image that is whole.
                finished()
        LOG.info('Snapshot of root disk %(disk)s finished: '
                 'strategy=%(strategy)s consistency=%(consistency)s '
                 'freeze=%(freeze).3fs read=%(read)d sent=%(sent)d '
                 'wall=%(wall).1fs',
                 {'disk': plan.disk.target, 'strategy': strategy.name,
                  'consistency': frozen.consistency,
                  'freeze': frozen.freeze_seconds, 'read': read_bytes,
                  'sent': sent_bytes, 'wall': watch.elapsed()},
                 instance=plan.instance)

    @contextlib.contextmanager
    def _watched(self, plan: planning.Plan,
                 switch: abort.Switch) -> Iterator[None]:
        """Trip the switch when there is a reason to give the snapshot up."""
        looks: tuple[tuple[monitor.Look, float], ...] = (
            (monitor.ServiceLook(plan.instance, self.virtapi),
             monitor.CHEAP_INTERVAL),
            (monitor.InstanceLook(plan.context, plan.instance),
             monitor.INTERVAL),
            (upload.ImageLook(plan.context, plan.image_id),
             monitor.INTERVAL),
        )
        with contextlib.ExitStack() as stack:
            for look, interval in looks:
                stack.enter_context(monitor.watched(
                    look, interval, switch, plan.instance))
            yield

    @contextlib.contextmanager
    def _lost_disk_explained(self, plan: planning.Plan) -> Iterator[None]:
        """Say why a disk can't be read, where it is the guest that went."""
        try:
            yield
        except exception.DiskReadError as error:
            end = self._end_of_guest(plan)
            if end is None:
                raise
            raise end from error

    def _end_of_guest(self, plan: planning.Plan) -> Exception | None:
        try:
            guest = self._host.get_guest(plan.instance)
            running = self._runs_on(guest) if plan.running else False
            deleted = monitor.InstanceLook(plan.context, plan.instance)()
        except nova_exception.InstanceNotFound as error:
            return error
        except Exception as error:
            LOG.warning('Whether the guest still runs can\'t be told: %s',
                        error, instance=plan.instance)
            return None
        if deleted is not None:
            return deleted
        if plan.running and not running:
            return exception.GuestStopped(instance=plan.instance.uuid)
        return None

    @staticmethod
    def _runs_on(guest: libvirt_guest.Guest) -> bool:
        """Tell whether a guest runs whose QEMU serves its disk no more."""
        with jobs.event_awaited(
                guest, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE) as await_end:
            # libvirt may not have noticed yet what our connection has.
            if guest.is_active():
                await_end(END_LATENCY)
        return bool(guest.is_active())

    def _stream(self, plan: planning.Plan, strategy: freeze.Strategy,
                frozen: freeze.FrozenDisk, switch: abort.Switch,
                on_sent: upload.OnSent) -> tuple[int, int]:
        """Read, encode and upload, until the switch trips.

        :returns: the bytes read from the disk, and those sent to Glance
        """
        metadata = plan.metadata | {
            'properties': plan.metadata['properties'] |
            properties.of_snapshot(strategy.name, plan.instance.uuid, frozen)}
        disk = read.Disk(frozen.uri, CONF.snapext.read_timeout,
                         CONF.snapext.read_rate_limit)
        with switch.in_charge(), switch.on_trip(disk.abort), disk:
            encoder = encode.encoder(plan.image_format, disk)
            with switch.on_trip(encoder.abort), encoder:
                upload.upload(
                    plan.context, plan.image_id, metadata,
                    properties.ASKED, encoder, switch, on_sent)
                return encoder.bytes_read, encoder.expected_size

    @contextlib.contextmanager
    def _failure_logged(self, instance: objects.Instance,
                        image_id: str) -> Iterator[None]:
        """Log why a snapshot has failed: Nova's manager does not."""
        try:
            yield
        except exception.StrategyRefused as reason:
            # Whoever asked has to know, and no more than this.
            LOG.error('%s', reason, instance=instance)
            raise
        except exception.GONE as reason:
            LOG.info('Snapshot given up: %s', reason, instance=instance)
            raise
        except exception.GivenUp as reason:
            LOG.error('Snapshot given up: %s', reason, instance=instance)
            raise
        except Exception:
            with excutils.save_and_reraise_exception():
                LOG.exception('Snapshot into image %s failed', image_id,
                              instance=instance)

    @contextlib.contextmanager
    def _gone_guest_translated(
        self, instance: objects.Instance,
    ) -> Iterator[None]:
        """Raise InstanceNotFound for what fails because the guest is gone.

        Nova's manager takes that for a deletion under way, not for an error.
        """
        try:
            yield
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
            raise nova_exception.InstanceNotFound(
                instance_id=instance.uuid) from error
        except exception.DiskReadError as error:
            if self.instance_exists(instance):
                raise
            raise nova_exception.InstanceNotFound(
                instance_id=instance.uuid) from error


def _guard(name: str) -> None:
    """Have a method of Nova's see first that its instance is whole.

    :param name: of a method whose first arguments are context and instance
    """
    original = getattr(driver.LibvirtDriver, name)

    @functools.wraps(original)
    def guarded(self: SnapextDriver,
                context: nova_context.RequestContext,
                instance: objects.Instance,
                *args: ty.Any, **kwargs: ty.Any) -> ty.Any:
        self._ensure_whole(context, instance)
        return original(self, context, instance, *args, **kwargs)

    setattr(SnapextDriver, name, guarded)


#: All by which Nova starts a guest, or takes its disk elsewhere. A definition
#: that Nova writes has the disk without its overlay.
GUARDED = (
    'check_can_live_migrate_source',
    'finish_revert_migration',
    'migrate_disk_and_power_off',
    'power_on',
    'reboot',
    'rescue',
    'resume',
    'resume_state_on_host_boot',
    'spawn',
    'unrescue',
)

for _name in GUARDED:
    _guard(_name)
