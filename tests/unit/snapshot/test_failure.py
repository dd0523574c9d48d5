# SPDX-License-Identifier: Apache-2.0

import contextlib
import gc
import weakref

import libvirt
from nova.compute import task_states
from nova import exception as nova_exception
from nova import objects
import oslo_messaging

from nova_snapext import exception
from nova_snapext.hypervisor import ceph
from nova_snapext.hypervisor import domain
from nova_snapext.snapshot import direct
from nova_snapext.strategies import rbd
from tests.unit import base
from tests.unit.snapshot import base as snapshot_base


class LogFailureTest(snapshot_base.SnapshotTestCase):

    def test_failure_is_logged_with_its_cause(self):
        self.stream.side_effect = exception.ImageMismatch(
            image='i', reason='other bytes')
        self.assertRaises(exception.ImageMismatch, self.snapshot)
        self.assertIn(f'Snapshot into image {base.IMAGE_ID} failed',
                      self.stdlog.logger.output)
        self.assertIn('other bytes', self.stdlog.logger.output)

    def test_refusal_is_logged_without_a_traceback(self):
        self.image['properties'] = {'snapext_strategy': 'native'}
        error = self.assertRaises(exception.StrategyRefused, self.snapshot)
        self.assertIn(str(error), self.stdlog.logger.output)
        self.assertNotIn('Traceback', self.stdlog.logger.output)

    def test_deleted_image_is_logged_as_cancellation(self):
        self.stream.side_effect = nova_exception.ImageNotFound(image_id='i')
        self.assertRaises(nova_exception.ImageNotFound, self.snapshot)
        self.assertIn('Snapshot cancelled: ', self.stdlog.logger.output)


class FreeFramesTest(snapshot_base.SnapshotTestCase):

    def test_error_of_a_snapshot_keeps_no_buffers(self):
        gc.disable()
        self.addCleanup(gc.enable)

        class Buffer:
            pass

        buffers = []

        def stream(*_args):
            buffer = Buffer()
            buffers.append(weakref.ref(buffer))
            raise exception.ImageMismatch(image='i', reason='other bytes')

        self.stream.side_effect = stream
        # Nova's manager still has the error.
        error = self.assertRaises(exception.ImageMismatch, self.snapshot)
        self.assertIsNotNone(error.__traceback__)
        self.assertIsNone(buffers[0]())


class GoneGuestTest(snapshot_base.SnapshotTestCase):

    def test_domain_that_vanishes_means_instance_not_found(self):
        self.stream.side_effect = base.libvirt_error(
            libvirt.VIR_ERR_NO_DOMAIN)
        self.assertRaises(nova_exception.InstanceNotFound, self.snapshot)

    def test_other_error_of_libvirt_is_not_replaced(self):
        self.stream.side_effect = base.libvirt_error(
            libvirt.VIR_ERR_INTERNAL_ERROR)
        self.assertRaises(libvirt.libvirtError, self.snapshot)

    def test_read_error_is_not_replaced_unless_the_guest_is_gone(self):
        self.stream.side_effect = exception.DiskReadError(
            disk='vda', reason='cut')
        exists = self.patch(self.driver, 'instance_exists')
        exists.return_value = True
        self.assertRaises(exception.DiskReadError, self.snapshot)
        self.steps.clear()
        exists.return_value = False
        self.assertRaises(nova_exception.InstanceNotFound, self.snapshot)


class LostDiskTestCase(snapshot_base.SnapshotTestCase):

    def setUp(self):
        super().setUp()
        self.stream.side_effect = exception.DiskReadError(
            disk='vda', reason='cut')
        self.found = self.patch(objects.Instance, 'get_by_uuid')
        self.found.return_value.task_state = task_states.IMAGE_UPLOADING
        self.patch(self.driver, 'instance_exists').return_value = True
        watch = self.patch(domain.Domain, 'watch_event').return_value
        watch.__exit__.return_value = None
        self.wait = watch.__enter__.return_value

    def shut_off(self, *_args):
        self.domain.isActive.return_value = 0
        raise exception.DiskReadError(disk='vda', reason='cut')


class LostDiskTest(LostDiskTestCase):

    def test_guest_shut_off_during_the_upload_is_the_cause(self):
        self.stream.side_effect = self.shut_off
        self.assertRaises(exception.GuestStopped, self.snapshot)

    def test_end_that_libvirt_notices_late_is_the_cause(self):
        self.wait.side_effect = lambda _timeout: (
            self.domain.isActive.configure_mock(return_value=0))
        self.assertRaises(exception.GuestStopped, self.snapshot)

    def test_deletion_in_progress_is_the_cause(self):
        self.found.return_value.task_state = task_states.DELETING
        self.assertRaises(nova_exception.UnexpectedDeletingTaskStateError,
                          self.snapshot)

    def test_read_error_of_a_guest_that_runs_is_not_replaced(self):
        self.assertRaises(exception.DiskReadError, self.snapshot)

    def test_read_error_is_not_replaced_if_the_guest_can_not_be_checked(self):
        self.found.side_effect = oslo_messaging.MessagingTimeout()
        self.assertRaises(exception.DiskReadError, self.snapshot)


class LostRbdTest(LostDiskTestCase):
    """A disk in Ceph, which can be read whether the guest runs or not."""

    def setUp(self):
        super().setUp()
        self.patch(direct, 'make_image').return_value = False

    @contextlib.contextmanager
    def freeze(self, plan, entry):
        with super().freeze(plan, entry) as frozen:
            yield rbd.FrozenRbd(
                uri=frozen.uri, consistency=frozen.consistency,
                freeze_seconds=frozen.freeze_seconds,
                frozen_at=frozen.frozen_at, snapshot=ceph.SnapSpec(
                    ceph.ImageSpec('vms', 'i_disk'), 'snapext-1'))

    def test_guest_shut_off_during_the_upload_is_no_cause(self):
        self.stream.side_effect = self.shut_off
        self.assertRaises(exception.DiskReadError, self.snapshot)
        self.wait.assert_not_called()

    def test_deletion_in_progress_is_the_cause(self):
        self.found.return_value.task_state = task_states.DELETING
        self.assertRaises(nova_exception.UnexpectedDeletingTaskStateError,
                          self.snapshot)

    def test_read_error_is_not_replaced_if_nova_does_not_answer(self):
        self.found.side_effect = oslo_messaging.MessagingTimeout()
        self.assertRaises(exception.DiskReadError, self.snapshot)
