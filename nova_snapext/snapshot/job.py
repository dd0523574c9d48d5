# SPDX-License-Identifier: Apache-2.0
"""One snapshot, in order: plan, select, freeze, stream, release."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import dataclasses
import typing as ty

from nova.compute import task_states
from nova.compute import utils as compute_utils
from nova.compute import vm_states
from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from nova.virt.libvirt import driver as libvirt_driver
from oslo_log import log as logging
from oslo_utils import timeutils

from nova_snapext import cancel
from nova_snapext import checks
from nova_snapext import conf
from nova_snapext import encode
from nova_snapext import exception
from nova_snapext.hypervisor import domain
from nova_snapext.hypervisor import privsep
from nova_snapext import journal
from nova_snapext import plan as planning
from nova_snapext.resources import image
from nova_snapext.snapshot import completion
from nova_snapext.snapshot import direct
from nova_snapext.snapshot import failure
from nova_snapext.snapshot import native_job
from nova_snapext.snapshot import progress
from nova_snapext.snapshot import properties
from nova_snapext.snapshot import published
from nova_snapext.snapshot import selection
from nova_snapext.snapshot import trim
from nova_snapext.snapshot import worker
from nova_snapext import strategies
from nova_snapext.strategies import base
from nova_snapext.strategies import native
from nova_snapext.strategies import rbd
from nova_snapext import upload

CONF = conf.CONF
LOG = logging.getLogger(__name__)

UpdateTaskState = Callable[..., None]

# With these errors before the freeze the guest is as it was. The class of a
# FreezeFailed says whether another strategy may be tried all the same.
MAY_GO_ON = (exception.FreezeFailed,
             exception.GuestBusy,
             exception.InsufficientSpace)

# Seconds. In a longer wait a guest may be started or shut off, and libvirtd
# may restart.
MAX_WAIT = 1


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
        # Until Nova's task states of each snapshot replace it.
        self._task_state = instance.task_state
        self._set_task_state = TaskStates(update_task_state, instance)
        self._token = cancel.CancelToken()
        self._refused_properties: frozenset[str] = frozenset()
        self._image_seen: dict[str, ty.Any] | None = None
        self._seen_by_nova = False
        self._published = published.Publication(instance, image_id)
        # Of a snapshot that is not Nova's own, from the freeze on.
        self._figures = ''
        self._watch = timeutils.StopWatch()

    def run(self) -> None:
        """Take the snapshot.

        :raises StrategyRefused: the requested strategy can't take it; nothing
            was changed
        """
        with self._published, failure.translate_gone_guest(
                self._driver, self._instance):
            # While the plan is made.
            is_seen = upload.look_as_nova(self._image_id)
            if CONF.libvirt.images_type != 'rbd':
                privsep.context.start_ahead()
            plan = self._make_plan()
            request = selection.request_for(
                self._instance, plan.image_properties)
            strategy = selection.select(
                plan, request, self._driver.strategies)
            self._seen_by_nova = is_seen()
            with completion.keep_complete_image(
                    self._instance, self._image_id) as completed, \
                    image.incomplete_image(
                        plan, strategy.name,
                        self._seen_by_nova) as (entry, mark_complete):

                def complete() -> None:
                    mark_complete()
                    completed.reached(entry)

                plan = self._trim(plan)
                self._take(plan, request, strategy, entry, complete)
            if self._figures:
                LOG.info('Snapshot of root disk %(disk)s finished: '
                         '%(figures)s wall=%(wall).1fs left=%(left)s',
                         {'disk': plan.disk.target, 'figures': self._figures,
                          'wall': self._watch.elapsed(),
                          'left': completed.left.replace(' ', '') or
                          'nothing'}, instance=self._instance)

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

    def _trim(self, plan: planning.Plan) -> planning.Plan:
        """Have the guest trim, if that is wanted and would free something.

        :returns: the plan of the guest as it is afterwards
        """
        if not trim.is_wanted(self._instance, plan.image_properties):
            return plan
        guest_trim = trim.GuestTrim(self._driver._host, plan, self._token)
        if not guest_trim.is_possible():
            return plan
        with self._run_checks():
            guest_trim.run()
        # Its users may have shut it off, or libvirtd may have restarted.
        return self._make_plan()

    def _take(self, plan: planning.Plan, request: selection.StrategyRequest,
              strategy: strategies.Strategy, entry: journal.JournalEntry,
              complete: Callable[[], None]) -> None:
        """Take the snapshot by one strategy, or by another that is requested.

        Another one is tried if nothing was touched and nothing is left.

        :param complete: called when the image is complete
        """
        failed: dict[str, exception.SnapextError] = {}
        while True:
            LOG.info('Beginning snapshot of root disk %(disk)s (%(path)s) by '
                     'the strategy %(strategy)s, as a %(format)s image',
                     {'disk': plan.disk.target, 'path': plan.disk.path,
                      'strategy': strategy.name, 'format': plan.image_format},
                     instance=self._instance)
            # It is written with the first resource.
            entry.strategy = strategy.name
            self._published.set_phase(
                published.Phase.PREPARING, strategy.name)
            error = (
                self._take_frozen(plan, strategy, entry, complete)
                if isinstance(strategy, strategies.FreezingStrategy) else
                self._take_native(plan, request, strategy, entry, complete))
            if error is None:
                return
            refused = plan.direct_refused
            if isinstance(error, exception.DirectSnapshotRefused):
                refused = str(error)
            else:
                failed[strategy.name] = error
            try:
                # Its users may have started the guest, or shut it off.
                now = self._make_plan()
            except exception.GONE:
                raise
            except Exception as again:
                # Why the strategy failed is worth more.
                raise error from again
            has_stopped = plan.running and not now.running
            plan = dataclasses.replace(now, direct_refused=refused)
            try:
                strategy = selection.select_after(
                    plan, request, self._driver.strategies, failed)
            except exception.FreezeFailed as last:
                if not has_stopped:
                    raise
                # The users have done that, and can take it again.
                raise exception.GuestStopped(
                    instance=self._instance.uuid) from last

    def _take_native(self, plan: planning.Plan,
                     request: selection.StrategyRequest,
                     strategy: strategies.Strategy,
                     entry: journal.JournalEntry,
                     complete: Callable[[], None],
                     ) -> exception.DirectSnapshotRefused | None:
        """Leave the snapshot to Nova.

        :returns: why another strategy may be tried; None: it is taken
        """
        self._published.set_phase(published.Phase.NATIVE)
        self._describe_image(plan, properties.of_native(strategy.name))
        # Nova's direct snapshot was the only reason to select this strategy.
        direct_only = (request.is_by_auto(strategy.name) and
                       native.may_be_direct(plan))
        try:
            native_job.NativeJob(
                self._driver, plan, may_suspend=not direct_only,
                seen_by_nova=self._seen_by_nova).run(
                    self._set_task_state, entry, complete)
        except exception.DirectSnapshotRefused as refused:
            return refused
        if native.may_be_direct(plan):
            self._wait_until_hashed(plan)
        return None

    def _take_frozen(self, plan: planning.Plan,
                     strategy: strategies.FreezingStrategy,
                     entry: journal.JournalEntry,
                     complete: Callable[[], None],
                     ) -> exception.SnapextError | None:
        """Freeze the disk, and stream it.

        :returns: why another strategy may be tried; None: it is taken
        """
        self._set_task_state(task_state=task_states.IMAGE_PENDING_UPLOAD)
        # Waiting for Nova's semaphore comes before the freeze: a frozen disk
        # that waits costs the guest space and time.
        with self._run_checks() as end_checks, \
                timeutils.StopWatch() as waited, \
                self._token.entered(compute_utils.disk_ops_semaphore), \
                self._token.entered(worker.slots):
            if waited.elapsed() > MAX_WAIT:
                try:
                    plan = self._plan_after_wait(plan, strategy)
                except exception.FreezeFailed as error:
                    return error
            # It is written with the first resource, too.
            entry.disk = plan.disk
            space = checks.FreeSpaceCheck(
                self._instance, strategy.growing_paths(plan))
            self._describe_image(plan, properties.before_freeze(
                strategy.name, plan.instance.uuid))
            with contextlib.ExitStack() as stack:
                self._watch.restart()
                self._published.set_phase(published.Phase.FREEZING)
                try:
                    space.raise_if_short()
                    frozen = stack.enter_context(strategy.freeze(plan, entry))
                except MAY_GO_ON as error:
                    if entry.records:
                        raise  # something is left
                    return error
                LOG.info('Root disk %(disk)s is frozen, %(consistency)s '
                         'consistent', {'disk': plan.disk.target,
                                        'consistency': frozen.consistency},
                         instance=self._instance)
                self._published.set_frozen(frozen.frozen_at.isoformat())
                self._set_task_state(task_state=task_states.IMAGE_UPLOADING)
                with journal.ReleaseStack(entry) as made, \
                        self._explain_read_error(plan, frozen), \
                        self._run_upload_checks(plan, space) as on_progress:
                    stored = worker.run(
                        store, plan, frozen, direct.Making(
                            driver=self._driver, stack=made,
                            seen_by_nova=self._seen_by_nova,
                            complete=complete),
                        self._metadata_of(plan, frozen), self._token,
                        on_progress)
                self._figures = (
                    f'strategy={strategy.name} '
                    f'consistency={frozen.consistency} '
                    f'freeze={frozen.freeze_seconds:.3f}s '
                    f'read={stored.read_bytes} sent={stored.sent_bytes}')
                # If the release fails, the image is still complete.
                complete()
                end_checks()
                self._published.set_phase(published.Phase.RELEASING)
            LOG.debug('Root disk %s is released', plan.disk.target,
                      instance=self._instance)
        if stored.in_ceph:
            self._wait_until_hashed(plan)
        return None

    def _plan_after_wait(self, plan: planning.Plan,
                         strategy: strategies.FreezingStrategy,
                         ) -> planning.Plan:
        """Return the plan of the guest as it is after a wait.

        :raises FreezeFailed: the strategy does not support it any more, or
            would stop the guest now
        """
        now = dataclasses.replace(
            self._make_plan(), direct_refused=plan.direct_refused)
        reason = base.find_reason(now, strategy.unsupported_reason)
        if reason is None and (strategy.stops_guest(now) and
                               not strategy.stops_guest(plan)):
            reason = 'it would stop the guest, which was shut off before'
        if reason is not None:
            raise exception.FreezeFailed(
                disk=now.disk.target, instance=now.instance.uuid,
                strategy=strategy.name,
                reason=f'the guest has changed while the snapshot waited for '
                       f'others ([compute]max_concurrent_disk_ops): {reason}')
        return now

    def _wait_until_hashed(self, plan: planning.Plan) -> None:
        self._published.set_phase(published.Phase.HASHING)
        # It may take hours, and needs no thread of its own.
        with self._run_checks():
            direct.wait_until_hashed(plan, self._token, self._task_state)

    def _describe_image(self, plan: planning.Plan,
                        described: properties.Properties) -> None:
        """Give the image all metadata that it will have.

        Whatever Glance refuses is found out before the guest is touched. If
        Nova's own snapshot would succeed, this does so too.

        :raises GlanceRefused: Glance refuses metadata of Nova
        """
        described = properties.without(described, self._refused_properties)
        with upload.GlanceImage(
                self._context, self._image_id, self._token) as glance_image:
            self._refused_properties |= glance_image.set_metadata(
                plan.metadata, described)
            self._image_seen = glance_image.seen

    def _metadata_of(self, plan: planning.Plan,
                     frozen: strategies.FrozenDisk) -> upload.Metadata:
        """Return the metadata that is known when the disk is frozen."""
        return upload.Metadata(
            # They can't be changed after the upload.
            attributes={name: plan.metadata[name]
                        for name in ('disk_format', 'container_format')},
            informing=properties.without(
                properties.of_frozen(frozen), self._refused_properties),
            seen=self._image_seen)

    @contextlib.contextmanager
    def _run_checks(self) -> Iterator[Callable[[], None]]:
        """Cancel the snapshot when it has lost its purpose.

        :yields: a function that ends the checks, see
            :func:`checks.run_periodically`
        """
        with checks.run_periodically({
            checks.ServiceStoppingCheck(
                self._instance, self._driver.virtapi): checks.FAST_INTERVAL,
            checks.InstanceDeletedCheck(
                self._context, self._instance): checks.SLOW_INTERVAL,
            upload.ImageDeletedCheck(
                self._context, self._image_id,
                self._seen_by_nova): checks.SLOW_INTERVAL,
        }, self._token, self._instance) as end:
            yield end

    def _explain_read_error(
        self, plan: planning.Plan, frozen: strategies.FrozenDisk,
    ) -> contextlib.AbstractContextManager[None]:
        if isinstance(frozen, rbd.FrozenRbd):
            # No QEMU serves it that ends with the guest.
            return failure.explain_deleted_instance(plan)
        return failure.explain_lost_disk(self._driver._host, plan)

    @contextlib.contextmanager
    def _run_upload_checks(
        self, plan: planning.Plan, space: checks.Check,
    ) -> Iterator[upload.OnProgress]:
        """Watch the space on the host, and show the progress of the upload.

        :yields: a function that the upload calls with its progress
        """
        shown = progress.UploadProgress(self._instance)
        with contextlib.ExitStack() as stack:
            stack.callback(shown.reset)
            stack.enter_context(checks.run_periodically(
                {shown: progress.INTERVAL, space: checks.FAST_INTERVAL},
                self._token, self._instance))

            def on_progress(sent: int, size: int) -> None:
                shown.on_progress(sent, size)
                self._published.on_progress(sent, size)

            yield on_progress


def store(plan: planning.Plan, frozen: strategies.FrozenDisk,
          making: direct.Making, metadata: upload.Metadata,
          token: cancel.CancelToken,
          on_progress: upload.OnProgress) -> direct.Stored:
    """Fill the image: inside Ceph if that is possible, else by streaming."""
    return (direct.make_image(
        plan, frozen, making, metadata, token, on_progress) or
        stream(plan, frozen, metadata, token, on_progress))


def stream(plan: planning.Plan, frozen: strategies.FrozenDisk,
           metadata: upload.Metadata, token: cancel.CancelToken,
           on_progress: upload.OnProgress) -> direct.Stored:
    """Read, encode and upload a frozen disk, until the token is cancelled."""
    disk = frozen.to_read(token)
    encoder = encode.encoder(plan.image_format, disk)
    with token.prefer_cause(), token.on_cancel(disk.abort), disk, \
            token.on_cancel(encoder.abort), encoder:
        LOG.debug('Uploading root disk %(disk)s, read from %(uri)s',
                  {'disk': plan.disk.target, 'uri': frozen.uri},
                  instance=plan.instance)
        upload.upload(plan.context, plan.image_id, metadata, encoder, token,
                      on_progress)
        return direct.Stored(read_bytes=encoder.bytes_read,
                             sent_bytes=encoder.expected_size)
