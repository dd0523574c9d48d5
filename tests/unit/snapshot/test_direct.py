# SPDX-License-Identifier: Apache-2.0

import dataclasses
import errno
import math
from unittest import mock

import fixtures
from nova.compute import task_states
from nova import context as nova_context
from nova import exception as nova_exception
from nova.storage import rbd_utils

from nova_snapext import cancel
from nova_snapext import exception
from nova_snapext.hypervisor import ceph
from nova_snapext import plan as planning
from nova_snapext import read
from nova_snapext.resources import rbd_clone
from nova_snapext.resources import rbd_copy
from nova_snapext.snapshot import direct
from nova_snapext.strategies import base as strategies_base
from nova_snapext.strategies import rbd
from nova_snapext import upload
from nova_snapext.upload import location
from nova_snapext.upload import service_user
from tests.unit import base

SPEC = ceph.SnapSpec(ceph.ImageSpec('vms', 'uuid_disk'), 'snapext-1')
DISK = dataclasses.replace(base.QCOW2, storage='network', format='raw',
                           path='rbd:vms/uuid_disk')


class DirectTestCase(base.TestCase):
    """Ceph and Glance are fakes; the functional tests have a real Ceph."""

    def setUp(self):
        super().setUp()
        self.token = cancel.CancelToken()
        self.frozen = rbd.FrozenRbd(
            uri='nbd:', consistency=planning.Consistency.FILESYSTEM,
            freeze_seconds=0, snapshot=SPEC)
        self.steps = mock.Mock()
        self.steps.stack.has.return_value = True
        self.patch(ceph, 'size_of', 1)
        self.patch(ceph, 'cluster_id', 'fsid')
        self.writable = self.patch(ceph, 'check_writable', None)
        self.patch(ceph, 'finish_image', ceph.SnapSpec(
            ceph.ImageSpec('images', base.IMAGE_ID), 'snap'))
        self.parent_pool = self.patch(ceph, 'parent_pool', 'images')
        self.clone = self.patch(rbd_clone, 'RbdClone', mock.create_autospec(
            rbd_clone.RbdClone, instance=True)).return_value
        self.clone.spec = ceph.ImageSpec('images', base.IMAGE_ID)
        self.glance = mock.create_autospec(location.LocatedImage,
                                           instance=True)
        self.glance.__enter__ = mock.Mock(return_value=self.glance)
        self.glance.needs_service.return_value = True
        self.glance.is_taken_over.return_value = False
        self.glance.locations.return_value = []
        self.located = self.patch(direct.location, 'LocatedImage',
                                  self.glance)
        metadata = self.patch(direct.upload, 'GlanceImage',
                              mock.MagicMock()).return_value
        metadata.__enter__.return_value = metadata
        metadata.__exit__.return_value = None
        self.metadata = metadata
        self.missing = self.patch(service_user, 'missing_reason', None)
        self.useFixture(fixtures.MockPatchObject(
            rbd_utils.RBDDriver, '_check_for_import_failure'))
        for name, step in (('clone', self.clone), ('glance', self.glance),
                           ('metadata', metadata)):
            self.steps.attach_mock(step, name)

    def patch(self, owner, name, value):
        return self.useFixture(fixtures.MockPatchObject(
            owner, name, return_value=value)).mock

    def plan(self, **changes):
        plan = dataclasses.replace(
            super().plan(DISK), image_format='raw', context=mock.Mock(
                spec=nova_context.RequestContext, roles=['member']))
        plan.instance.image_ref = 'base-image'
        return dataclasses.replace(plan, **changes)

    def make(self, **changes):
        return direct.make_image(
            self.plan(**changes), self.frozen, direct.Making(
                driver=mock.Mock(), stack=self.steps.stack,
                seen_by_nova=True, complete=self.steps.complete),
            upload.Metadata({'disk_format': 'raw'},
                            {'snapext_consistency': 'filesystem'}),
            self.token, mock.Mock())

    def names(self):
        return [name for name, _, _ in self.steps.method_calls]

    def assert_streamed(self, text, **changes):
        """Check that no image is made, and that the log says why."""
        with self.assertLogs('nova_snapext.snapshot.direct', 'INFO') as logs:
            self.assertIsNone(self.make(**changes))
        self.assertIn(text, ' '.join(logs.output))
        self.steps.complete.assert_not_called()

    def assert_nothing_begun(self):
        self.assertNotIn('stack.add', self.names())


class MakeImageTest(DirectTestCase):

    def test_image_is_complete_when_glance_has_it(self):
        self.assertTrue(self.make())
        names = self.names()
        order = [names.index(name) for name in (
            'metadata.update_metadata', 'stack.add', 'clone.create',
            'clone.flatten', 'clone.set_offered', 'glance.add',
            'glance.wait_until_active', 'stack.mark_released',
            'complete')]
        self.assertEqual(sorted(order), order, names)
        # Whoever waits for the digest keeps nothing of the snapshot.
        self.assertNotIn('glance.wait_until_hashed', names)
        self.glance.add.assert_called_once_with(
            f'rbd://fsid/images/{base.IMAGE_ID}/snap', None)
        self.clone.release.assert_not_called()

    def test_service_user_s_sight_of_the_image_is_passed_on(self):
        # Under eventlet, this thread can't ask for it.
        self.make()
        self.assertIs(True, rbd_clone.RbdClone.call_args.args[2])

    def test_any_step_that_fails_in_ceph_leaves_the_disk_to_be_streamed(self):
        for step in (self.clone.create, self.clone.flatten,
                     ceph.finish_image):
            self.steps.reset_mock()
            step.side_effect = exception.CephError(
                action='x', reason='no rights')
            self.assert_streamed('no rights')
            self.clone.release.assert_called_once_with()
            self.steps.stack.mark_replaced.assert_called_once_with(self.clone)
            step.side_effect = None

    def test_disk_is_not_streamed_while_the_journal_has_the_clone(self):
        # Glance may keep the streamed image under the same name, and a
        # recovery would remove its data.
        self.clone.flatten.side_effect = exception.CephError(
            action='flatten', reason='r')
        self.steps.stack.mark_replaced.side_effect = exception.JournalFailed(
            path='p', reason='full')
        self.assertRaises(exception.JournalFailed, self.make)

    def test_location_that_glance_refuses_leaves_it_to_be_streamed(self):
        for step in (self.glance.add, self.glance.wait_until_active):
            self.steps.reset_mock()
            step.side_effect = exception.LocationRefused(
                image='i', reason='403')
            self.assert_streamed('403')
            # The same image is filled in another way.
            self.assertEqual([mock.call(True), mock.call(False)],
                             self.clone.set_offered.mock_calls)
            self.clone.release.assert_called_once_with()
            step.side_effect = None

    def test_image_that_glance_has_in_spite_of_its_refusal_is_complete(self):
        # A proxy has sent the request twice, and Glance refused the second.
        self.glance.add.side_effect = exception.LocationRefused(
            image='i', reason='409')
        self.glance.is_taken_over.return_value = True
        with self.assertLogs('nova_snapext.snapshot.direct', 'WARNING'):
            self.assertTrue(self.make())
        self.clone.release.assert_not_called()
        self.steps.complete.assert_called_once_with()

    def test_data_stays_if_nobody_tells_whether_glance_has_it(self):
        self.glance.add.side_effect = exception.LocationRefused(
            image='i', reason='409')
        error = nova_exception.GlanceConnectionFailed(server='s', reason='r')
        self.glance.is_taken_over.side_effect = error
        self.assertIs(error, self.assertRaises(
            nova_exception.GlanceConnectionFailed, self.make))
        # The stack deletes the image first.
        self.assertEqual([mock.call(True)], self.clone.set_offered.mock_calls)
        self.clone.release.assert_not_called()

    def test_clone_that_is_left_fails_the_snapshot(self):
        self.clone.flatten.side_effect = exception.CephError(
            action='flatten', reason='r')
        self.clone.release.side_effect = exception.ReleaseFailed(
            instance='i', reason='r')
        self.assertRaises(exception.ReleaseFailed, self.make)
        self.steps.stack.mark_replaced.assert_not_called()

    def test_cancellation_leaves_the_release_to_the_stack(self):
        cause = nova_exception.ImageNotFound(image_id='i')

        def flatten(*_args):
            self.token.cancel(cause)
            raise exception.CephError(action='flatten', reason='cancelled')

        self.clone.flatten.side_effect = flatten
        self.assertIs(cause, self.assertRaises(
            nova_exception.ImageNotFound, self.make))
        self.clone.release.assert_not_called()
        self.steps.stack.mark_released.assert_not_called()

    def test_image_that_glance_already_has_is_complete_after_any_error(self):
        # Nova would delete it, and Glance would save it without its data.
        for error in (exception.ServiceStopping(instance='i'),
                      exception.ImageNotVerified(image='i', reason='r'),
                      OSError(5, 'EIO')):
            self.steps.reset_mock()
            self.glance.wait_until_active.side_effect = [error, None]
            self.assertTrue(self.make())
            self.steps.complete.assert_called_once_with()
            self.steps.stack.mark_released.assert_called_once_with(self.clone)

    def test_image_that_glance_does_not_get_fails_with_the_error(self):
        error = exception.ImageNotVerified(image='i', reason='queued')
        self.glance.wait_until_active.side_effect = [error, error]
        self.assertIs(error, self.assertRaises(
            exception.ImageNotVerified, self.make))
        self.steps.complete.assert_not_called()
        self.steps.stack.mark_released.assert_not_called()

    def test_nothing_fails_an_image_whose_digest_is_not_there_yet(self):
        for error in (nova_exception.ImageNotFound(image_id='i'),
                      exception.ServiceStopping(instance='i'),
                      nova_exception.GlanceConnectionFailed(
                          server='s', reason='r')):
            self.glance.wait_until_hashed.side_effect = error
            with self.assertLogs('nova_snapext.snapshot.direct', 'WARNING'):
                direct.wait_until_hashed(self.plan(), self.token, None)

    def test_only_an_image_that_nova_may_delete_next_is_waited_for_long(self):
        for task_state, slowest in (
            (task_states.IMAGE_SNAPSHOT, math.inf),
            (task_states.IMAGE_BACKUP, location.SLOWEST_HASH),
            (task_states.SHELVING, location.SLOWEST_HASH),
        ):
            direct.wait_until_hashed(self.plan(), self.token, task_state)
            self.glance.wait_until_hashed.assert_called_with(slowest)


class MayBeTakenOverTest(DirectTestCase):

    def test_glance_that_does_not_tell_may_have_it(self):
        for error in (exception.ImageNotVerified(image='i', reason='r'),
                      OSError(5, 'EIO')):
            self.glance.is_taken_over.side_effect = error
            with self.assertLogs('nova_snapext.snapshot.direct', 'WARNING'):
                self.assertTrue(direct.may_be_taken_over(self.plan()))

    def test_deleted_or_empty_image_does_not_have_it(self):
        self.glance.is_taken_over.side_effect = [
            False, nova_exception.ImageNotFound(image_id='i')]
        for _ in range(2):
            self.assertFalse(direct.may_be_taken_over(self.plan()))


class CheckTest(DirectTestCase):

    def test_pool_that_the_user_may_not_write_to_is_known_before(self):
        self.writable.side_effect = exception.CephError(
            action='write to the pool images', reason='no rights')
        self.assert_streamed('no rights')
        self.assert_nothing_begun()

    def test_only_raw_images_are_made_by_ceph(self):
        self.assert_streamed('qcow2', image_format='qcow2')
        self.assert_nothing_begun()

    def test_missing_service_token_is_known_before_anything_is_created(self):
        self.missing.return_value = 'Nova sends no service token'
        self.assert_streamed('no service token')
        self.assert_nothing_begun()

    def test_user_with_the_role_needs_no_token(self):
        self.missing.return_value = 'Nova sends no service token'
        self.assertTrue(self.make(context=mock.Mock(
            spec=nova_context.RequestContext, roles=['service'])))

    def test_old_glance_needs_no_service(self):
        self.missing.return_value = 'Nova sends no service token'
        self.glance.needs_service.return_value = False
        self.assertTrue(self.make())

    def test_glance_that_answers_something_else_is_streamed_to(self):
        for error in (KeyError('versions'), TypeError(),
                      nova_exception.GlanceConnectionFailed(
                          server='s', reason='r')):
            self.glance.needs_service.side_effect = error
            self.assert_streamed('versions of its API')
            self.assert_nothing_begun()


class PoolTest(DirectTestCase):
    """The pool that Glance has its images in."""

    def setUp(self):
        super().setUp()
        self.parent_pool.return_value = None
        self.flags(rbd_image_pool='option', group='snapext')

    def pool(self):
        self.assertTrue(self.make())
        return rbd_clone.RbdClone.call_args.args[1].pool

    def test_parent_of_the_disk_precedes_all_else(self):
        self.parent_pool.return_value = 'parent'
        self.flags(rbd_image_store='ceph', group='snapext')
        self.assertEqual('parent', self.pool())
        # It is of another pool, perhaps.
        self.assertIsNone(self.glance.add.call_args.args[1])

    def test_image_of_the_guest_precedes_the_option(self):
        self.glance.locations.return_value = [
            'rbd://elsewhere/a/b/snap', 'file:///x', 'rbd://fsid/b/c/snap']
        self.assertEqual('b', self.pool())
        self.assertIn('base-image', [
            call.args[1] for call in self.located.call_args_list])

    def test_option_is_for_all_else(self):
        for locations in ([], ['rbd://elsewhere/a/b/snap'], ['rbd://fsid']):
            self.glance.locations.return_value = locations
            self.assertEqual('option', self.pool())
        self.glance.locations.side_effect = (
            nova_exception.ImageNotAuthorized(image_id='i'))
        self.assertEqual('option', self.pool())

    def test_unknown_pool_is_streamed(self):
        self.flags(rbd_image_pool=None, group='snapext')
        self.assert_streamed('rbd_image_pool')
        self.assert_nothing_begun()

    def test_store_of_the_option_is_told_to_glance(self):
        self.flags(rbd_image_store='ceph', group='snapext')
        self.glance.stores.return_value = ['local', 'ceph']
        self.pool()
        self.assertEqual('ceph', self.glance.add.call_args.args[1])

    def test_store_that_glance_does_not_have_is_streamed(self):
        self.flags(rbd_image_store='ceph', group='snapext')
        for stores in ([], ['local']):
            self.glance.stores.return_value = stores
            self.assert_streamed('rbd_image_store is ceph')
            self.assert_nothing_begun()

    def test_glance_that_does_not_tell_its_stores_is_streamed_to(self):
        self.flags(rbd_image_store='ceph', group='snapext')
        self.glance.stores.side_effect = (
            nova_exception.GlanceConnectionFailed(server='s', reason='r'))
        self.assert_streamed('does not tell its stores')


class CopyTest(DirectTestCase):
    """Images of disks outside Ceph."""

    def setUp(self):
        super().setUp()
        self.frozen = strategies_base.FrozenDisk(
            uri='nbd:', consistency=planning.Consistency.CRASH,
            freeze_seconds=0)
        self.patch(ceph, 'is_installed', True)
        self.patch(read, 'Disk', mock.MagicMock(bytes_read=3))
        self.copy = self.patch(rbd_copy, 'RbdCopy', mock.create_autospec(
            rbd_copy.RbdCopy, instance=True, bytes_written=2)).return_value
        self.copy.spec = ceph.ImageSpec('images', base.IMAGE_ID, 'writer')
        self.copy.fill.return_value = ceph.SnapSpec(self.copy.spec, 'snap')
        self.steps.attach_mock(self.copy, 'copy')
        self.flags(rbd_image_user='writer', rbd_image_pool='images',
                   group='snapext')

    def plan(self, **changes):
        return super().plan(**{'disk': base.QCOW2, **changes})

    def test_disk_in_ceph_is_streamed(self):
        self.assertIsNone(self.make(disk=DISK))
        self.assertEqual([], self.names())

    def test_failure_after_the_check_is_a_warning(self):
        self.copy.fill.side_effect = exception.CephTimeout(
            action='x', seconds='1')
        with self.assertLogs('nova_snapext.snapshot.direct', 'WARNING'):
            self.assertIsNone(self.make())

    def test_image_of_somebody_else_is_not_written_again(self):
        error = exception.CephError(action='create', reason='exists')
        error.__cause__ = OSError(errno.EEXIST, 'exists')
        self.copy.fill.side_effect = error
        self.assert_streamed('exists')
        self.copy.fill.assert_called_once()

    def test_host_without_the_option_streams_and_asks_nobody(self):
        self.flags(rbd_image_user=None, group='snapext')
        self.assertIsNone(self.make())
        self.assertEqual([], self.names())

    def test_user_of_the_option_writes_the_image(self):
        self.assertEqual(direct.Stored(3, 2, in_ceph=True), self.make())
        self.writable.assert_called_once_with('images', 'writer')
        self.assertEqual(ceph.ImageSpec('images', base.IMAGE_ID, 'writer'),
                         rbd_copy.RbdCopy.call_args.args[1])
        names = self.names()
        order = [names.index(name) for name in (
            'metadata.update_metadata', 'stack.add', 'copy.fill',
            'copy.set_offered', 'glance.add', 'stack.mark_released',
            'complete')]
        self.assertEqual(sorted(order), order, names)

    def test_image_is_written_again_as_often_as_one_is_sent(self):
        self.flags(num_retries=2, group='glance')
        failed = exception.CephError(action='x', reason='differs')
        self.copy.fill.side_effect = failed
        self.assert_streamed('differs')
        self.assertEqual(3, self.copy.fill.call_count)
        # What is left of each attempt is removed before the next one.
        self.assertEqual(3, self.copy.release.call_count)
        self.copy.fill.side_effect = [
            failed, ceph.SnapSpec(self.copy.spec, 'snap')]
        self.assertIsNotNone(self.make())

    def test_ceph_that_does_not_respond_is_not_tried_again(self):
        self.copy.fill.side_effect = exception.CephTimeout(
            action='x', seconds='1')
        self.assert_streamed('did not respond')
        self.copy.fill.assert_called_once()

    def test_location_that_glance_refuses_is_not_written_again(self):
        self.glance.add.side_effect = exception.LocationRefused(
            image='i', reason='403')
        self.assert_streamed('403')
        self.copy.fill.assert_called_once()

    def test_disk_that_can_not_be_read_is_not_streamed_either(self):
        self.copy.fill.side_effect = exception.DiskReadError(
            disk='nbd:', reason='lost')
        self.assertRaises(exception.DiskReadError, self.make)

    def test_whatever_is_missing_is_told_and_the_disk_streamed(self):
        self.flags(rbd_image_pool=None, group='snapext')
        self.assert_streamed('rbd_image_pool')
        ceph.is_installed.return_value = False
        self.assert_streamed('python3-rbd')
        self.assert_streamed('format qcow2', image_format='qcow2')
        self.assert_nothing_begun()
