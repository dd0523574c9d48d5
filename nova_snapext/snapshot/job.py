# SPDX-License-Identifier: Apache-2.0
"""One snapshot, in order: plan, select, freeze, stream, release."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import dataclasses

from nova.compute import task_states
from nova.compute import utils as compute_utils
from nova.compute import vm_states
from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from nova.virt.libvirt import driver as libvirt_driver
from oslo_log import log as logging
from oslo_utils import timeutils
from oslo_utils import units

from nova_snapext import cancel
from nova_snapext import checks
from nova_snapext import conf
from nova_snapext import encode
from nova_snapext import exception
from nova_snapext.hypervisor import domain
from nova_snapext import plan as planning
from nova_snapext import read
from nova_snapext.resources import image
from nova_snapext.snapshot import failure
from nova_snapext.snapshot import native_job
from nova_snapext.snapshot import progress
from nova_snapext.snapshot import properties
from nova_snapext.snapshot import selection
from nova_snapext.snapshot import worker
from nova_snapext import strategies
from nova_snapext.strategies import native
from nova_snapext import upload

CONF = conf.CONF
LOG = logging.getLogger(__name__)

UpdateTaskState = Callable[..., None]


class TaskStates:
    """Sets task states. Each call expects the state that the last one set.

    The first call expects the state that Nova's manager expects: backup,
    shelve and image create each set another one.
    """

    def __init__(self, update: UpdateTaskState, instance: objects.Instance):
        self._update = update
        self._instance = instance
        self._last: str | None = None

    def __call__(self, task_state: str, **expected: str | None) -> None:
        if self._last is not None:
            expected.setdefault('expected_state', self._last)
        self._update(task_state=task_state, **expected)
        self._last = task_state
        LOG.debug('Task state set to %s', task_state, instance=self._instance)


class SnapshotJob:
    """One snapshot of one instance.

    :param driver: a SnapextDriver
    :param image_id: the image that Nova's API has created for the snapshot
    :param update_task_state: the function of Nova's manager
    """

    def __init__(self, driver: libvirt_driver.LibvirtDriver,
                 context: nova_context.RequestContext,
                 instance: objects.Instance, image_id: str,
                 update_task_state: UpdateTaskState):
        self._driver = driver
        self._context = context
        self._instance = instance
        self._image_id = image_id
        self._set_task_state = TaskStates(update_task_state, instance)
        self._token = cancel.CancelToken()

    def run(self) -> None:
        """Take the snapshot.

        :raises StrategyRefused: the requested strategy can't take it; nothing
            was changed
        """
        with failure.translate_gone_guest(self._driver, self._instance):
            plan = self._make_plan()
            request = selection.request_for(
                self._instance, plan.image_properties)
            try:
                self._take(plan, request)
            except exception.DirectSnapshotRefused as refused:
                LOG.debug('Selecting another strategy: %s', refused,
                          instance=self._instance)
                self._take(
                    dataclasses.replace(plan, direct_refused=str(refused)),
                    request)

    def _make_plan(self) -> planning.Plan:
        instance = self._instance
        try:
            guest = domain.get(self._driver._host, instance)
        except nova_exception.InstanceNotFound:
            # Without its cause: Nova's manager reads this error as a deletion
            # in progress.
            raise nova_exception.InstanceNotRunning(
                instance_id=instance.uuid) from None
        if instance.vm_state == vm_states.RESCUED:
            # A rescued guest runs from another disk.
            raise nova_exception.InstanceInvalidState(
                attr='vm_state', instance_uuid=instance.uuid,
                state=instance.vm_state, method='snapshot')
        found = self._driver._image_api.get(self._context, self._image_id)
        disk = planning.find_root_disk(guest, instance)
        image_format = planning.image_format_of(disk)
        return planning.Plan(
            context=self._context, instance=instance, guest=guest,
            running=bool(guest.is_active()), disk=disk,
            image_id=self._image_id, image_format=image_format,
            image_properties=found['properties'],
            metadata=self._driver._create_snapshot_metadata(
                instance.image_meta, instance, image_format, found['name']))

    def _take(self, plan: planning.Plan,
              request: selection.StrategyRequest) -> None:
        strategy = selection.select(plan, request, self._driver.strategies)
        LOG.info('Beginning snapshot of root disk %(disk)s (%(path)s) by the '
                 'strategy %(strategy)s, as a %(format)s image',
                 {'disk': plan.disk.target, 'path': plan.disk.path,
                  'strategy': strategy.name, 'format': plan.image_format},
                 instance=self._instance)
        if isinstance(strategy, strategies.FreezingStrategy):
            self._take_frozen(plan, strategy)
        else:
            self._take_native(plan, request, strategy)

    def _take_native(self, plan: planning.Plan,
                     request: selection.StrategyRequest,
                     strategy: strategies.Strategy) -> None:
        described = properties.of_native(strategy.name)
        with upload.GlanceImage(
                self._context, self._image_id, self._token) as glance_image:
            glance_image.set_properties(
                {'properties': described.values}, described.removed)
        # Nova's direct snapshot was the only reason to select this strategy.
        direct_only = request.is_auto and native.may_be_direct(plan)
        native_job.NativeJob(
            self._driver, plan, strategy.name,
            may_suspend=not direct_only).run(self._set_task_state)

    def _take_frozen(self, plan: planning.Plan,
                     strategy: strategies.FreezingStrategy) -> None:
        self._set_task_state(task_state=task_states.IMAGE_PENDING_UPLOAD)
        space = checks.FreeSpaceCheck(
            self._instance, strategy.growing_paths(plan))
        # Waiting for Nova's semaphore comes before the freeze: a frozen disk
        # that waits costs the guest space and time.
        with image.incomplete_image(
                self._driver._image_api, plan,
                strategy.name) as (entry, mark_complete), \
                self._run_checks(), \
                compute_utils.disk_ops_semaphore, \
                timeutils.StopWatch() as watch:
            self._token.raise_if_cancelled()
            space.raise_if_short()
            with strategy.freeze(plan, entry) as frozen:
                LOG.info('Root disk %(disk)s is frozen, %(consistency)s '
                         'consistent', {'disk': plan.disk.target,
                                        'consistency': frozen.consistency},
                         instance=self._instance)
                self._set_task_state(task_state=task_states.IMAGE_UPLOADING)
                with self._run_upload_checks(plan, space) as on_progress:
                    read_bytes, sent_bytes = worker.run(
                        stream, plan, strategy.name, frozen, self._token,
                        on_progress)
                # If the release fails, the image is still complete.
                mark_complete()
            LOG.debug('Root disk %s is released', plan.disk.target,
                      instance=self._instance)
        LOG.info('Snapshot of root disk %(disk)s finished: '
                 'strategy=%(strategy)s consistency=%(consistency)s '
                 'freeze=%(freeze).3fs read=%(read)d sent=%(sent)d '
                 'wall=%(wall).1fs',
                 {'disk': plan.disk.target, 'strategy': strategy.name,
                  'consistency': frozen.consistency,
                  'freeze': frozen.freeze_seconds, 'read': read_bytes,
                  'sent': sent_bytes, 'wall': watch.elapsed()},
                 instance=self._instance)

    @contextlib.contextmanager
    def _run_checks(self) -> Iterator[None]:
        """Cancel the snapshot when it has lost its purpose."""
        with contextlib.ExitStack() as stack:
            for check, interval in (
                (checks.ServiceStoppingCheck(
                    self._instance, self._driver.virtapi),
                 checks.FAST_INTERVAL),
                (checks.InstanceDeletedCheck(self._context, self._instance),
                 checks.SLOW_INTERVAL),
                (upload.ImageDeletedCheck(self._context, self._image_id),
                 checks.SLOW_INTERVAL),
            ):
                stack.enter_context(checks.run_periodically(
                    check, interval, self._token, self._instance))
            yield

    @contextlib.contextmanager
    def _run_upload_checks(
        self, plan: planning.Plan, space: checks.Check,
    ) -> Iterator[upload.OnProgress]:
        """Watch the space on the host, and show the progress of the upload.

        :yields: a function that the upload calls with its progress
        """
        shown = progress.UploadProgress(self._instance)
        with failure.explain_lost_disk(self._driver._host, plan), \
                shown.clearing(), \
                checks.run_periodically(shown, checks.SLOW_INTERVAL,
                                        self._token, self._instance), \
                checks.run_periodically(space, checks.FAST_INTERVAL,
                                        self._token, self._instance):
            yield shown.on_progress


def stream(plan: planning.Plan, strategy: str, frozen: strategies.FrozenDisk,
           token: cancel.CancelToken,
           on_progress: upload.OnProgress) -> tuple[int, int]:
    """Read, encode and upload a frozen disk, until the token is cancelled.

    :param strategy: its name
    :returns: the bytes read from the disk, and the bytes sent to Glance
    """
    described = properties.of_frozen(strategy, plan.instance.uuid, frozen)
    metadata = plan.metadata | {
        'properties': plan.metadata['properties'] | described.values}
    disk = read.Disk(frozen.uri, CONF.snapext.read_timeout,
                     CONF.snapext.read_rate_limit_mbps * units.Mi)
    encoder = encode.encoder(plan.image_format, disk)
    with token.prefer_cause(), token.on_cancel(disk.abort), disk, \
            token.on_cancel(encoder.abort), encoder:
        LOG.debug('Uploading root disk %(disk)s, read from %(uri)s',
                  {'disk': plan.disk.target, 'uri': frozen.uri},
                  instance=plan.instance)
        upload.upload(plan.context, plan.image_id, metadata,
                      described.removed, encoder, token, on_progress)
        return encoder.bytes_read, encoder.expected_size
