# SPDX-License-Identifier: Apache-2.0
"""Nova's libvirt driver, with snapshots of our own."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import typing as ty

import libvirt
from nova.compute import task_states
from nova.compute import utils as compute_utils
from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from nova import utils
from nova.virt.libvirt import driver
from oslo_log import log as logging
from oslo_utils import excutils
from oslo_utils import timeutils

from nova_snapext import choose
from nova_snapext import conf
from nova_snapext import encode
from nova_snapext import exception
from nova_snapext import freeze
from nova_snapext.freeze import backup
from nova_snapext.freeze import cold
from nova_snapext import plan as planning
from nova_snapext import progress
from nova_snapext import read
from nova_snapext import upload

CONF = conf.CONF
LOG = logging.getLogger(__name__)

UpdateTaskState = Callable[..., None]

# What Nova's manager takes for the end of the instance, or of the wish for
# its image, and not for an error.
GONE = (nova_exception.InstanceNotFound,
        nova_exception.InstanceNotRunning,
        nova_exception.UnexpectedDeletingTaskStateError,
        nova_exception.ImageNotFound)


class SnapextDriver(driver.LibvirtDriver):
    """The libvirt driver; what it does otherwise is Nova's own."""

    def __init__(self, virtapi: ty.Any, read_only: bool = False):
        super().__init__(virtapi, read_only)
        self._strategies = (
            backup.BackupStrategy(self._host),
            cold.ColdStrategy(self._host),
        )

    def snapshot(self, context: nova_context.RequestContext,
                 instance: objects.Instance, image_id: str,
                 update_task_state: UpdateTaskState) -> None:
        """Freeze the root disk, and stream it to Glance as it is read."""
        try:
            with self._gone_guest_translated(instance):
                plan = self._plan(context, instance, image_id)
                strategy = choose.choose(plan, self._strategies)
        except exception.NotServed as reason:
            LOG.info('Nova\'s own snapshot is taken, because: %s', reason,
                     instance=instance)
            super().snapshot(context, instance, image_id, update_task_state)
            return
        with self._failure_logged(plan), self._gone_guest_translated(instance):
            self._take(plan, strategy, update_task_state)

    def _plan(self, context: nova_context.RequestContext,
              instance: objects.Instance, image_id: str) -> planning.Plan:
        try:
            guest = self._host.get_guest(instance)
        except nova_exception.InstanceNotFound:
            # No cause: Nova's manager takes this for a deletion under way.
            raise nova_exception.InstanceNotRunning(
                instance_id=instance.uuid) from None
        image = self._image_api.get(context, image_id)
        disk = planning.root_disk(guest)
        image_format = planning.image_format_of(disk)
        return planning.Plan(
            context=context, instance=instance, guest=guest,
            running=bool(guest.is_active()), disk=disk, image_id=image_id,
            image_format=image_format,
            metadata=self._create_snapshot_metadata(
                instance.image_meta, instance, image_format, image['name']))

    def _take(self, plan: planning.Plan, strategy: freeze.Strategy,
              update_task_state: UpdateTaskState) -> None:
        LOG.info('Beginning snapshot of root disk %(disk)s (%(path)s) by the '
                 'strategy %(strategy)s, as a %(format)s image',
                 {'disk': plan.disk.target, 'path': plan.disk.path,
                  'strategy': strategy.name, 'format': plan.image_format},
                 instance=plan.instance)
        update_task_state(task_state=task_states.IMAGE_PENDING_UPLOAD)
        # Taken before the freeze: a frozen disk that waits for its turn costs
        # space and time of the guest's.
        with compute_utils.disk_ops_semaphore, \
                timeutils.StopWatch() as watch, \
                strategy.freeze(plan) as frozen:
            LOG.info('Root disk %(disk)s is frozen, %(consistency)s '
                     'consistent', {'disk': plan.disk.target,
                                    'consistency': frozen.consistency},
                     instance=plan.instance)
            update_task_state(
                task_state=task_states.IMAGE_UPLOADING,
                expected_state=task_states.IMAGE_PENDING_UPLOAD)
            with progress.Progress(plan.instance) as told:
                # It blocks in libnbd: under eventlet, in a native thread.
                read_bytes, sent_bytes = utils.tpool_wrap(self._stream)(
                    plan, frozen, told.on_sent)
        LOG.info('Snapshot of root disk %(disk)s finished: '
                 'strategy=%(strategy)s consistency=%(consistency)s '
                 'freeze=%(freeze).3fs read=%(read)d sent=%(sent)d '
                 'wall=%(wall).1fs',
                 {'disk': plan.disk.target, 'strategy': strategy.name,
                  'consistency': frozen.consistency,
                  'freeze': frozen.freeze_seconds, 'read': read_bytes,
                  'sent': sent_bytes, 'wall': watch.elapsed()},
                 instance=plan.instance)

    def _stream(self, plan: planning.Plan, frozen: freeze.FrozenDisk,
                on_sent: upload.OnSent) -> tuple[int, int]:
        """Read, encode and upload.

        :returns: the bytes read from the disk, and those sent to Glance
        """
        with read.Disk(frozen.uri, timeout=CONF.snapext.read_timeout) as disk:
            find_data = (encode.nonzero if CONF.snapext.find_zeros
                         else encode.allocated)
            encoder = encode.FORMATS[plan.image_format](disk, find_data)
            upload.upload(plan.context, self._image_api, plan.image_id,
                          plan.metadata, encoder, on_sent)
            return disk.bytes_read, encoder.size

    @contextlib.contextmanager
    def _failure_logged(self, plan: planning.Plan) -> Iterator[None]:
        """Log why a snapshot has failed: Nova's manager does not."""
        try:
            yield
        except GONE as reason:
            LOG.info('Snapshot given up: %s', reason, instance=plan.instance)
            raise
        except Exception:
            with excutils.save_and_reraise_exception():
                LOG.exception('Snapshot of root disk %(disk)s into image '
                              '%(image)s failed',
                              {'disk': plan.disk.target,
                               'image': plan.image_id},
                              instance=plan.instance)

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
