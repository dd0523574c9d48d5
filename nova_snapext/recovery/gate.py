# SPDX-License-Identifier: Apache-2.0
"""The gate that an instance passes before it starts, moves or is snapshotted.

It allows one snapshot or recovery of an instance at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import threading

from nova import context as nova_context
from nova import objects
from nova import thread_pool_factory
from nova.virt.libvirt import driver as libvirt_driver
from oslo_log import log as logging

from nova_snapext import exception
from nova_snapext import journal
from nova_snapext.recovery import recover

LOG = logging.getLogger(__name__)


class InstanceGate:
    """Keeps instances from use until their snapshots are recovered.

    :param driver: the driver, with its strategies loaded
    :raises StrategyConfigError: two strategies have different resources of
        one kind
    """

    def __init__(self, driver: libvirt_driver.LibvirtDriver):
        recover.resource_types(driver)
        self._driver = driver
        self._lock = threading.Lock()
        # uuids of the instances with a snapshot or a recovery in progress,
        # and of those to recover after it.
        self._busy: set[str] = set()
        self._recover_later: set[str] = set()

    @contextlib.contextmanager
    def exclusive(self, uuid: str) -> Iterator[None]:
        """Admit one snapshot or recovery of an instance at a time.

        :param uuid: uuid of the instance
        :raises SnapshotInProgress: another one is in progress
        """
        with self._lock:
            if uuid in self._busy:
                raise exception.SnapshotInProgress(
                    instance=uuid, path='it runs in nova-compute')
            self._busy.add(uuid)
        try:
            yield
        finally:
            with self._lock:
                self._busy.discard(uuid)
                recover_now = uuid in self._recover_later
                self._recover_later.discard(uuid)
            if recover_now:
                self.recover_in_background(uuid)

    def ensure_recovered(self, context: nova_context.RequestContext | None,
                         instance: objects.Instance) -> None:
        """Recover an instance before it is started or moved.

        :raises SnapshotInProgress: its snapshot is in progress
        :raises NotRecovered: its interrupted snapshot can't be recovered
        """
        with self.exclusive(instance.uuid):
            recover.ensure_recovered(self._driver, context, instance)

    def recover_all_in_background(self) -> None:
        """Recover all interrupted snapshots, without waiting for the end."""
        for entry in journal.entries():
            self.recover_in_background(entry.instance_uuid)

    def recover_in_background(self, uuid: str) -> None:
        """Recover an instance, as soon as no snapshot of it is in progress.

        :param uuid: uuid of the instance
        """
        thread_pool_factory.spawn(self._recover, uuid)

    def _recover(self, uuid: str) -> None:
        with self._lock:
            if uuid in self._busy:
                self._recover_later.add(uuid)
                LOG.debug('Instance %s is recovered when its snapshot has '
                          'ended', uuid)
                return
        try:
            with self.exclusive(uuid):
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
