# SPDX-License-Identifier: Apache-2.0
"""Nova's own snapshot, with a journal, and without a suspension if unwanted.

Nova's driver calls some of its own methods during its snapshot. SnapextDriver
overrides them, finds the job of the instance and calls it.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import os

from nova import context as nova_context
from nova import exception as nova_exception
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import imagebackend
from oslo_log import log as logging
from oslo_utils import excutils

from nova_snapext import cancel
from nova_snapext import exception
from nova_snapext.hypervisor import ceph
from nova_snapext import journal
from nova_snapext import plan as planning
from nova_snapext.resources import guest_filesystems
from nova_snapext.resources import native_snapshot
from nova_snapext.resources import passthrough_devices
from nova_snapext.resources import rbd_clone
from nova_snapext.resources import rbd_snapshot
from nova_snapext.snapshot import direct
from nova_snapext.snapshot import worker

LOG = logging.getLogger(__name__)


class NotQuiesced(Exception):
    """Ends Nova's own snapshot, which goes on after any error of Nova's."""


class NativeJob:
    """Nova's own snapshot of one instance.

    :param driver: a SnapextDriver
    :param may_suspend: Nova may suspend the guest
    :param seen_by_nova: see :func:`upload.is_seen_by_nova`
    """

    def __init__(self, driver: libvirt_driver.LibvirtDriver,
                 plan: planning.Plan, may_suspend: bool,
                 seen_by_nova: bool = False):
        self._driver = driver
        self._plan = plan
        self._seen_by_nova = seen_by_nova
        self._may_suspend = may_suspend
        self._stack: journal.ReleaseStack | None = None
        # Of a direct snapshot, which makes the image inside Ceph.
        self._clone: rbd_clone.RbdClone | None = None
        self._snapshot = native_snapshot.NativeSnapshot(
            driver, plan, plan.guest.get_power_state(driver._host))
        self._filesystems = guest_filesystems.GuestFilesystems(
            driver._host, plan)
        self._devices = passthrough_devices.PassthroughDevices(driver, plan)

    def run(self, update_task_state: Callable[..., None],
            entry: journal.JournalEntry,
            complete: Callable[[], None]) -> None:
        """Take the snapshot.

        :param entry: the snapshot's entry in the journal
        :param complete: called when the image is complete
        :raises DirectSnapshotRefused: Nova would have suspended the guest;
            nothing is left of the attempt
        :raises QuiesceFailed: the image requires it, and it has failed
        """
        plan = self._plan
        with journal.ReleaseStack(entry) as stack:
            self._stack = stack
            self._devices.capture_state(plan.guest)
            if self._devices.exist:
                # A guest that Nova resumes lacks its mediated devices.
                stack.add(self._devices)
            stack.enter_context(self._registered())
            stack.add(self._snapshot)
            # They are thawed before all else.
            stack.add(self._filesystems)
            try:
                libvirt_driver.LibvirtDriver.snapshot(
                    self._driver, plan.context, plan.instance, plan.image_id,
                    update_task_state)
            except NotQuiesced as error:
                raise error.__cause__ or error from None
            if self._clone is not None and self._clone.is_offered:
                # It is the image.
                stack.mark_released(self._clone)
            complete()

    @contextlib.contextmanager
    def _registered(self) -> Iterator[None]:
        jobs = self._driver.native_jobs
        jobs[self._plan.instance.uuid] = self
        try:
            yield
        finally:
            del jobs[self._plan.instance.uuid]

    def on_live_snapshot(self, path: str) -> None:
        """Record the directory that Nova has just created.

        :param path: of the file in it that Nova mirrors the disk to
        """
        self._snapshot.directory = os.path.dirname(path)
        self._snapshot.save()
        LOG.debug('Nova mirrors the root disk to %s', path,
                  instance=self._plan.instance)

    def on_quiesce(self) -> None:
        """Freeze the guest's filesystems.

        :raises InstanceQuiesceFailed: it can't be done; Nova logs the reason
        :raises NotQuiesced: the snapshot ends, as the image requires it
        """
        try:
            reason = self._filesystems.freeze()
        except exception.ThawFailed as error:
            self._require_quiesce(str(error))
            # They may still become frozen. After no error Nova calls
            # on_unquiesce(), which tries the thaw again.
            LOG.warning('It is not known whether the guest is frozen: %s',
                        error, instance=self._plan.instance)
            return
        if reason is not None:
            self._require_quiesce(reason)
            raise nova_exception.InstanceQuiesceFailed(reason=reason)

    def _require_quiesce(self, reason: str) -> None:
        try:
            self._filesystems.check_not_required(reason)
        except exception.QuiesceFailed as error:
            raise NotQuiesced from error

    def on_unquiesce(self) -> None:
        """Thaw the guest's filesystems.

        :raises ThawFailed: they are still frozen
        """
        self._filesystems.thaw()

    def watch(self, disk: imagebackend.Image) -> None:
        """Record what Nova creates inside Ceph, before it does.

        :param disk: Nova's object for the disk that it takes a snapshot of
        """
        if not isinstance(disk, imagebackend.Rbd):
            return
        direct_snapshot = disk.direct_snapshot
        cleanup = disk.cleanup_direct_snapshot

        def recorded(context: nova_context.RequestContext, snapshot_name: str,
                     image_format: str, image_id: str,
                     base_image_id: str) -> str:
            if image_format != 'raw':
                # Nova would only call it so. It converts the disk then.
                raise nova_exception.ImageUnacceptable(
                    image_id=image_id,
                    reason=f'Ceph can\'t make {image_format} images')
            self._record_direct(snapshot_name)
            return str(direct_snapshot(
                context, snapshot_name, image_format, image_id,
                base_image_id))

        def cleaned_up(location: dict[str, str] | None,
                       also_destroy_volume: bool = False,
                       ignore_errors: bool = False) -> None:
            # The answer to Nova's registration may be lost. The stack deletes
            # the image before its data.
            if also_destroy_volume and location and self._clone and (
                    worker.run(direct.may_be_taken_over, self._plan)):
                raise exception.ImageNotVerified(
                    image=self._plan.image_id,
                    reason='Nova could not register its data in Ceph, and '
                           'Glance may have the data all the same')
            cleanup(location, also_destroy_volume=also_destroy_volume,
                    ignore_errors=ignore_errors)
            if also_destroy_volume and self._clone and self._stack:
                # Glance has not taken it. Nova may fill the image in another
                # way, and Glance then keeps it under the same name: from here
                # on nothing may remove that.
                self._clone.set_offered(False)
                self._clone.release()
                self._stack.mark_replaced(self._clone)
                self._clone = None

        disk.direct_snapshot = recorded
        disk.cleanup_direct_snapshot = cleaned_up

    def _record_direct(self, snapshot_name: str) -> None:
        """Put the snapshot and the clone of a direct snapshot on the stack.

        :raises CephError: Ceph does not respond; Nova would wait for it
            indefinitely
        """
        image = ceph.image_of(self._plan.disk)
        if image is None or self._stack is None:
            return
        self._stack.add(rbd_snapshot.NovaRbdSnapshot(
            self._plan.instance.uuid, ceph.SnapSpec(image, snapshot_name)))
        pool = ceph.parent_pool(image) or worker.run(
            direct.pool_of_base_image, self._plan, cancel.CancelToken())
        if pool is None:
            return
        self._clone = rbd_clone.RbdClone(
            self._plan,
            ceph.ImageSpec(pool, self._plan.image_id), self._seen_by_nova)
        # Nova does not say when it offers it to Glance.
        self._clone.set_offered(True)
        self._stack.add(self._clone)

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """Let Nova suspend the guest, inside the context.

        Nova takes its devices away first, and does not give them back if a
        later step fails.

        :raises DirectSnapshotRefused: Nova may not suspend it
        """
        if not self._may_suspend:
            raise exception.DirectSnapshotRefused(
                instance=self._plan.instance.uuid)
        self._devices.detached_by_nova()
        try:
            yield
        except Exception:
            with excutils.save_and_reraise_exception():
                self._devices.expect_late_unplugs()
