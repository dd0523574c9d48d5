# SPDX-License-Identifier: Apache-2.0
"""The gate that an instance passes before it starts, moves or is snapshotted.

It allows one snapshot or recovery of an instance at a time, and recovers
instances in the background. What could not be recovered is tried again by
itself: when an event of the guest says that something has changed, and by a
periodic look into the journal, which finds what has no event.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import threading
import typing as ty

from nova import context as nova_context
from nova import objects
from nova.virt.libvirt import driver as libvirt_driver
from oslo_log import log as logging
from oslo_utils import timeutils

from nova_snapext import conf
from nova_snapext import exception
from nova_snapext import journal
from nova_snapext.recovery import growth
from nova_snapext.recovery import recover
from nova_snapext.recovery import schedule
from nova_snapext.resources import overlay

CONF = conf.CONF
LOG = logging.getLogger(__name__)

# Recoveries in the background at a time. As many as Nova takes snapshots by
# default ([DEFAULT]max_concurrent_snapshots), so as many as a crash leaves.
PARALLEL = 5

# Seconds that an operation waits for a recovery of its instance. Most take
# less than one; a merge can take hours, and Nova has few threads for requests.
BUSY_TIMEOUT = 10

# Every how many periodic looks the images that could not be deleted are tried
# again. They harm nothing, and each try asks Glance.
IMAGE_LOOKS = 10


class InstanceGate:
    """Keeps instances from use until their snapshots are recovered.

    :param driver: the driver, with its strategies loaded
    :raises StrategyConfigError: two strategies have different resources of
        one kind
    """

    def __init__(self, driver: libvirt_driver.LibvirtDriver):
        recover.resource_types(driver)
        self._driver = driver
        self._slots = threading.BoundedSemaphore(PARALLEL)
        # For what is called after recoveries, which other merges must not
        # delay.
        self._later_slots = threading.BoundedSemaphore(PARALLEL)
        # Guards these sets of uuids, and is notified when one shrinks.
        self._changed = threading.Condition()
        self._snapshots: set[str] = set()
        self._recoveries: set[str] = set()
        # To be recovered as soon as a thread of the background is free.
        self._queued: set[str] = set()
        # To be recovered after the snapshot or recovery in progress.
        self._recover_later: set[str] = set()
        self._schedule = schedule.Schedule()
        # Notified of each event, and of the end of the retries.
        self._look = threading.Condition()
        # Uuids of instances, and what to do about their events, in order.
        self._events: dict[tuple[str, Callable[[str], object]], None] = {}
        self._retries = False
        self._images = threading.Lock()
        self._growth = growth.GrowthCheck()
        self._space = threading.Lock()

    @contextlib.contextmanager
    def exclusive(self, uuid: str) -> Iterator[None]:
        """Admit one snapshot or recovery of an instance at a time.

        It waits for a recovery of the instance, but not for long.

        :param uuid: uuid of the instance
        :raises SnapshotInProgress: another snapshot is in progress
        :raises RecoveryInProgress: a recovery is in progress
        """
        # Most of a snapshot is no try to recover anything.
        with self._admit(uuid, self._snapshots, is_try=False):
            yield

    @contextlib.contextmanager
    def no_recovery(self, uuid: str) -> Iterator[None]:
        """Let no recovery of an instance begin.

        :param uuid: uuid of the instance
        :raises SnapshotInProgress: its snapshot is in progress
        :raises RecoveryInProgress: it is being recovered
        """
        with self._admit(uuid, self._recoveries, is_try=False):
            yield

    def ensure_recovered(self, context: nova_context.RequestContext | None,
                         instance: objects.Instance) -> None:
        """Recover an instance before it is started or moved.

        :raises SnapshotInProgress: its snapshot is in progress
        :raises RecoveryInProgress: it is being recovered already
        :raises NotRecovered: its interrupted snapshot can't be recovered
        """
        with self._admit(instance.uuid, self._recoveries):
            recover.ensure_recovered(self._driver, context, instance)

    def ensure_thawed(self, context: nova_context.RequestContext | None,
                      instance: objects.Instance) -> None:
        """Thaw a guest before it moves while it runs.

        Call it after :meth:`ensure_recovered`.

        :raises SnapshotInProgress: its snapshot is in progress
        :raises RecoveryInProgress: it is being recovered already
        :raises NotRecovered: its filesystems may be frozen
        """
        with self._admit(instance.uuid, self._recoveries):
            recover.ensure_thawed(self._driver, context, instance)

    def recover_all_in_background(self) -> None:
        """Recover all interrupted snapshots, without waiting for the end."""
        for entry in journal.entries():
            self.recover_in_background(entry.instance_uuid)
        self.delete_images_in_background()

    def recover_in_background(self, uuid: str) -> None:
        """Recover an instance, as soon as no snapshot of it is in progress.

        :param uuid: uuid of the instance
        """
        with self._changed:
            if uuid in self._snapshots | self._recoveries:
                self._recover_later.add(uuid)
                LOG.debug('Instance %s is recovered when its snapshot or '
                          'recovery has ended', uuid)
                return
            if uuid in self._queued:
                return
            self._queued.add(uuid)
        try:
            _spawn(self._recover, uuid)
        except RuntimeError as error:
            # No thread can start, and a snapshot that is complete must not
            # fail because of that.
            with self._changed:
                self._queued.discard(uuid)
                self._changed.notify_all()
            LOG.warning('Instance %(uuid)s is recovered by the next periodic '
                        'look: %(error)s', {'uuid': uuid, 'error': error})

    def recover_if_outstanding(self, uuid: str) -> None:
        """Recover an instance whose guest has changed, if anything is left.

        QEMU may refuse to merge an overlay while its guest is paused; a guest
        that is off is merged offline.

        This neither blocks nor reads a file: another thread does. It does
        nothing while a snapshot or recovery of the instance is in progress,
        which may itself have caused the event.
        """
        self._handle_event(uuid, self._retry_after_change)

    def recover_after_job(self, uuid: str) -> None:
        """Recover an instance after a job that may have been ours.

        As :meth:`recover_if_outstanding`, but a job that ends soon after a
        try is ignored.
        """
        self._handle_event(uuid, self._retry_after_job)

    def recover_after_foreign_job(self, uuid: str) -> None:
        """Recover an instance, if anything is left, after somebody's job.

        This neither blocks nor reads a file. While a snapshot or recovery of
        the instance is in progress, it waits for the end.
        """
        self._handle_event(uuid, self._retry_after_foreign_job)

    def _handle_event(self, uuid: str,
                      handler: Callable[[str], object]) -> None:
        with self._look:
            if self._retries:
                self._events[uuid, handler] = None
                self._look.notify_all()

    def start_retries(self) -> None:
        """Begin to try again what is left, until :meth:`stop_retries`.

        Call it when the journal is locked.
        """
        with self._look:
            self._retries = True
        _spawn(self._retry)

    def stop_retries(self) -> None:
        """End the retries. A recovery that has begun goes on."""
        with self._look:
            self._retries = False
            self._events.clear()
            self._look.notify_all()

    def delete_images_in_background(
        self, context: nova_context.RequestContext | None = None,
        uuid: str | None = None,
    ) -> None:
        """Try again to delete the images that failed snapshots have left.

        :param context: of a user who may be able to delete them
        :param uuid: only images of this instance
        """
        if any(uuid in (None, entry.instance_uuid)
               for entry in journal.images()):
            try:
                _spawn(self._delete_images, uuid, context)
            except RuntimeError as error:
                LOG.warning('Images of failed snapshots are deleted later: %s',
                            error)

    def wait(self, timeout: float) -> list[str]:
        """Wait for the recoveries in progress.

        :param timeout: in seconds
        :returns: uuids of the instances that are still not recovered then
        """
        def left() -> set[str]:
            return self._queued | self._recoveries

        with self._changed:
            self._changed.wait_for(lambda: not left(), timeout)
            return sorted(left())

    def wait_until_idle(self, uuid: str, timeout: float | None) -> bool:
        """Wait for the end of a snapshot or recovery in progress.

        :param uuid: uuid of the instance
        :param timeout: in seconds; None: until it ends
        :returns: whether none is in progress then
        """
        with self._changed:
            return self._changed.wait_for(
                lambda: uuid not in self._snapshots | self._recoveries,
                timeout)

    def call_when_idle(self, uuid: str, function: Callable[..., object],
                       *args: ty.Any) -> None:
        """Call a function in the background when nothing is in progress.

        :param uuid: uuid of the instance
        :param function: called once; its error is logged
        """
        def call() -> None:
            self.wait_until_idle(uuid, None)
            try:
                function(*args)
            except Exception:
                # Nobody waits for this thread.
                LOG.exception('What had to wait for the end of a snapshot '
                              'of instance %s has failed', uuid)

        _spawn(call)

    def call_after_recovery(self, uuid: str, function: Callable[..., object],
                            *args: ty.Any) -> None:
        """Call a function in the background when a recovery has ended.

        :param uuid: uuid of the instance
        :param function: called once, whether or not the recovery succeeds
        """
        _spawn(self._call_after_recovery, uuid, function, *args)

    def _call_after_recovery(self, uuid: str, function: Callable[..., object],
                             *args: ty.Any) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: uuid not in self._queued | self._recoveries)
        with self._later_slots:
            function(*args)

    @contextlib.contextmanager
    def _admit(self, uuid: str, admitted: set[str],
               is_try: bool = True) -> Iterator[None]:
        """Admit one snapshot or recovery.

        :param is_try: its duration is that of a try to recover the instance
        """
        with self._changed:
            self._queued.discard(uuid)
            self._changed.wait_for(
                lambda: uuid not in self._recoveries, BUSY_TIMEOUT)
            if uuid in self._recoveries:
                raise exception.RecoveryInProgress(instance=uuid)
            if uuid in self._snapshots:
                raise exception.SnapshotInProgress(
                    instance=uuid, path='it runs in nova-compute')
            admitted.add(uuid)
        watch = timeutils.StopWatch().start()
        try:
            yield
        finally:
            self._schedule.ended(uuid, watch.elapsed() if is_try else 0)
            with self._changed:
                admitted.discard(uuid)
                recover_now = uuid in self._recover_later
                self._recover_later.discard(uuid)
                self._changed.notify_all()
            if recover_now:
                self.recover_in_background(uuid)

    def _slot_for(self, uuid: str,
                  ) -> contextlib.AbstractContextManager[ty.Any]:
        # A guest that is slowed down does not wait for the merges of others.
        try:
            entries = journal.find_all(uuid)
        except exception.JournalFailed:
            # The recovery reads the journal again, and its error is logged.
            entries = []
        is_slowed = any(overlay.is_guest_slowed(record)
                        for entry in entries for record in entry.records)
        return contextlib.nullcontext() if is_slowed else self._slots

    def _recover(self, uuid: str) -> None:
        try:
            with self._slot_for(uuid), self._admit(uuid, self._recoveries):
                LOG.debug('Recovery of instance %s begins', uuid)
                recover.recover_instance(self._driver, uuid)
            # It may have kept its image from its deletion.
            self.delete_images_in_background(uuid=uuid)
        except exception.SnapshotInProgress:
            LOG.debug('Instance %s is recovered by the operation that has '
                      'just begun', uuid)
        except Exception as error:
            # Nobody waits for this thread.
            LOG.log(self._driver.failure_log.level(uuid, repr(error)),
                    'Could not clean up after the snapshot of instance %s. '
                    'This is tried again, see [snapext]recovery_interval',
                    uuid, exc_info=True)

    def _retry(self) -> None:
        """Try again what is left: after events, and now and then."""
        looks = 0
        watch = timeutils.StopWatch().start()
        space_watch = timeutils.StopWatch().start()
        while True:
            with self._look:
                self._look.wait_for(
                    lambda: self._events or not self._retries,
                    max(0, min(
                        self._schedule.seconds_to_deferred(),
                        growth.INTERVAL - space_watch.elapsed(),
                        CONF.snapext.recovery_interval - watch.elapsed())))
                if not self._retries:
                    return
                events, self._events = self._events, {}
            try:
                for uuid, handler in events:
                    handler(uuid)
                for uuid in self._schedule.take_deferred():
                    self._retry_after_change(uuid)
                if space_watch.elapsed() >= growth.INTERVAL:
                    space_watch.restart()
                    self._check_growth()
                if watch.elapsed() >= CONF.snapext.recovery_interval:
                    watch.restart()
                    looks += 1
                    self._retry_all(looks)
            except Exception:
                LOG.exception('Could not look for what is left of snapshots. '
                              'This is tried again')

    def _retry_after_change(self, uuid: str) -> None:
        if self._is_busy(uuid) or not journal.find_all(uuid):
            return
        if not self._schedule.is_settled(uuid):
            self._schedule.defer(uuid)
            return
        LOG.debug('The guest of instance %s has changed, and is recovered '
                  'now', uuid)
        self.recover_in_background(uuid)

    def _retry_after_job(self, uuid: str) -> None:
        if self._schedule.is_settled(uuid):
            self._retry_after_change(uuid)

    def _retry_after_foreign_job(self, uuid: str) -> None:
        if journal.find_all(uuid):
            LOG.debug('A job of instance %s has ended, and what its snapshot '
                      'left is cleaned up now', uuid)
            self.recover_in_background(uuid)

    def _retry_all(self, looks: int) -> None:
        """Take one periodic look.

        :param looks: its number
        """
        uuids = {entry.instance_uuid for entry in journal.entries()}
        self._schedule.forget_all_but(uuids)
        for uuid in uuids:
            if not self._is_busy(uuid) and self._schedule.is_due(uuid):
                self.recover_in_background(uuid)
        if not looks % IMAGE_LOOKS:
            self.delete_images_in_background()

    def _check_growth(self) -> None:
        overlays = growth.overlays()
        if overlays:
            _spawn(self._retry_growing, overlays)

    def _retry_growing(self, overlays: dict[str, str]) -> None:
        """Try those at once whose overlay will soon have no space.

        :param overlays: their paths, by uuid of the instance
        """
        # Another thread checks already, and network storage may hang.
        if not self._space.acquire(blocking=False):
            return
        try:
            for uuid, shortage in self._growth.run(overlays):
                # A snapshot or a merge in progress checks the space itself.
                if self._is_busy(uuid) or not self._schedule.is_settled(uuid):
                    continue
                LOG.log(self._driver.failure_log.level(
                    uuid, str(shortage), logging.WARNING),
                    'The overlay of instance %(uuid)s may fill its file '
                    'system before it is merged, and is tried again at once: '
                    '%(shortage)s', {'uuid': uuid, 'shortage': shortage})
                self.recover_in_background(uuid)
        except Exception:
            # Nobody waits for this thread.
            LOG.exception('The free space for overlays could not be checked')
        finally:
            self._space.release()

    def _is_busy(self, uuid: str) -> bool:
        with self._changed:
            return uuid in (
                self._snapshots | self._recoveries | self._queued)

    def _delete_images(self, uuid: str | None,
                       context: nova_context.RequestContext | None) -> None:
        # Another thread tries already, and Glance may take long.
        if not self._images.acquire(blocking=False):
            return
        try:
            for entry in journal.images():
                if uuid in (None, entry.instance_uuid):
                    recover.recover_image(entry, context)
        finally:
            self._images.release()


def _spawn(function: Callable[..., object], *args: ty.Any) -> None:
    """Call a function in a thread of its own.

    Nova's executors have no thread to spare for hours, and Nova waits for
    theirs when it stops. A recovery that the end of the process interrupts is
    repeated. Under eventlet this is a green thread.
    """
    threading.Thread(target=function, args=args, name='snapext-recovery',
                     daemon=True).start()
