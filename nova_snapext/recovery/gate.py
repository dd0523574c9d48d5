# SPDX-License-Identifier: Apache-2.0
"""The gate that an instance passes before it starts, moves or is snapshotted.

It allows one snapshot or recovery of an instance at a time, and recovers
instances in the background.
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

from nova_snapext import exception
from nova_snapext import journal
from nova_snapext.recovery import recover

LOG = logging.getLogger(__name__)

# Recoveries in the background at a time. As many as Nova takes snapshots by
# default ([DEFAULT]max_concurrent_snapshots), so as many as a crash leaves.
PARALLEL = 5

# Seconds that an operation waits for a recovery of its instance. Most take
# less than one; a merge can take hours, and Nova has few threads for requests.
BUSY_TIMEOUT = 10


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
        # Guards these sets of uuids, and is notified when one shrinks.
        self._changed = threading.Condition()
        self._snapshots: set[str] = set()
        self._recoveries: set[str] = set()
        # To be recovered as soon as a thread of the background is free.
        self._queued: set[str] = set()
        # To be recovered after the snapshot or recovery in progress.
        self._recover_later: set[str] = set()

    @contextlib.contextmanager
    def exclusive(self, uuid: str) -> Iterator[None]:
        """Admit one snapshot or recovery of an instance at a time.

        It waits for a recovery of the instance, but not for long.

        :param uuid: uuid of the instance
        :raises SnapshotInProgress: another snapshot is in progress
        :raises RecoveryInProgress: a recovery is in progress
        """
        with self._admit(uuid, self._snapshots):
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

    def recover_all_in_background(self) -> None:
        """Recover all interrupted snapshots, without waiting for the end."""
        for entry in journal.entries():
            self.recover_in_background(entry.instance_uuid)

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
        _spawn(self._recover, uuid)

    def recover_resumed(self, uuid: str) -> None:
        """Recover an instance whose guest runs again, if anything is left.

        QEMU may refuse to merge an overlay while the guest is paused.

        This does not block, and does nothing while a snapshot or recovery is
        in progress, which may itself have resumed the guest.
        """
        with self._changed:
            if uuid in self._snapshots | self._recoveries:
                return
        if journal.find(uuid) is not None:
            LOG.debug('Instance %s was resumed, and is recovered now', uuid)
            self.recover_in_background(uuid)

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
        with self._slots:
            function(*args)

    @contextlib.contextmanager
    def _admit(self, uuid: str, admitted: set[str]) -> Iterator[None]:
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
        try:
            yield
        finally:
            with self._changed:
                admitted.discard(uuid)
                recover_now = uuid in self._recover_later
                self._recover_later.discard(uuid)
                self._changed.notify_all()
            if recover_now:
                self.recover_in_background(uuid)

    def _recover(self, uuid: str) -> None:
        try:
            with self._slots, self._admit(uuid, self._recoveries):
                LOG.debug('Recovery of instance %s begins', uuid)
                recover.recover_instance(self._driver, uuid)
        except exception.SnapshotInProgress:
            LOG.debug('Instance %s is recovered by the operation that has '
                      'just begun', uuid)
        except Exception:
            # Nobody waits for this thread.
            LOG.exception('Could not clean up after the snapshot of instance '
                          '%s. This is tried again when the connection to '
                          'libvirtd is restored, and before the instance is '
                          'started or moved', uuid)


def _spawn(function: Callable[..., object], *args: ty.Any) -> None:
    """Call a function in a thread of its own.

    Nova's executors have no thread to spare for hours, and Nova waits for
    theirs when it stops. A recovery that the end of the process interrupts is
    repeated. Under eventlet this is a green thread.
    """
    threading.Thread(target=function, args=args, name='snapext-recovery',
                     daemon=True).start()
