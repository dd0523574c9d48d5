# SPDX-License-Identifier: Apache-2.0

import errno
import os
from unittest import mock

import fixtures
from nova import context as nova_context
from nova import exception as nova_exception
from oslo_utils.fixture import uuidsentinel as uuids

from nova_snapext import exception
from nova_snapext import journal
from nova_snapext.journal import directory
from nova_snapext.resources import image
from nova_snapext import upload
from tests.unit import base


class ImageTestCase(base.TestCase):

    def setUp(self):
        super().setUp()
        self.discard = self.patch('discard', None)
        self.seen = self.patch('is_seen_by_nova', True)
        self.context = nova_context.RequestContext('u', uuids.project)
        self.snapshot_plan = self.plan()
        object.__setattr__(self.snapshot_plan, 'context', self.context)

    def patch(self, name, value):
        return self.useFixture(fixtures.MockPatchObject(
            upload, name, return_value=value)).mock

    def run_snapshot(self, failure=None, complete=False):
        with image.incomplete_image(
                self.snapshot_plan, 'backup',
                self.seen.return_value) as (entry, mark_complete):
            self.assertEqual([], entry.records)
            self.assertEqual(
                {f'{base.IMAGE_ID}.image',
                 f'{self.snapshot_plan.instance.uuid}.json'},
                {*os.listdir(self.journal)})
            if complete:
                mark_complete()
                self.assertEqual([os.path.basename(entry.path)],
                                 os.listdir(self.journal))
            if failure is not None:
                raise failure

    def leave(self):
        """Leave an image that could not be deleted."""
        self.discard.return_value = 'Glance is down'
        self.assertRaises(
            exception.IncompleteImageLeft, self.run_snapshot, OSError())
        self.discard.reset_mock()
        [left] = journal.images()
        return left

    def assert_discarded(self, seen_by_nova=True):
        self.discard.assert_called_once_with(
            self.context, base.IMAGE_ID, seen_by_nova)


class IncompleteImageTest(ImageTestCase):

    def test_failed_snapshot_discards_image(self):
        self.assertRaises(exception.GlanceRefused, self.run_snapshot,
                          exception.GlanceRefused(
                              server='g', image='i', reason='full'))
        self.assert_discarded()
        self.assertEqual([], os.listdir(self.journal))

    def test_complete_image_is_kept(self):
        self.run_snapshot(complete=True)
        self.discard.assert_not_called()
        self.assertEqual([], os.listdir(self.journal))

    def test_failure_after_completion_keeps_image(self):
        self.assertRaises(exception.SnapextError, self.run_snapshot,
                          exception.SnapextError(), complete=True)
        self.discard.assert_not_called()

    def test_image_that_is_complete_on_a_full_disk_is_not_deleted(self):
        def snapshot():
            with image.incomplete_image(
                    self.snapshot_plan, 'backup',
                    True) as (_entry, mark_complete), \
                    mock.patch.object(directory, 'write', side_effect=OSError(
                        errno.ENOSPC, 'full')):
                mark_complete()
                raise SystemExit  # a crash

        self.assertRaises(SystemExit, snapshot)
        self.assertEqual([], journal.images())
        self.discard.assert_not_called()

    def test_image_that_can_not_be_marked_complete_is_not_deleted(self):
        with mock.patch('os.unlink', wraps=os.unlink) as unlink:
            with image.incomplete_image(
                    self.snapshot_plan, 'backup',
                    True) as (_entry, mark_complete):
                unlink.side_effect = OSError('read-only')
                mark_complete()
            self.assertEqual([], journal.images())
        self.assertEqual([], journal.images())
        self.discard.assert_not_called()

    def test_deleted_image_is_not_deleted_again(self):
        self.assertRaises(
            nova_exception.ImageNotFound, self.run_snapshot,
            nova_exception.ImageNotFound(image_id=base.IMAGE_ID))
        self.discard.assert_not_called()
        self.assertEqual([], os.listdir(self.journal))

    def test_image_that_is_not_deleted_stays_alone_in_the_journal(self):
        self.discard.return_value = 'it is protected'
        error = self.assertRaises(
            exception.IncompleteImageLeft, self.run_snapshot,
            exception.ImageMismatch(image='i', reason='other data'))
        self.assertIn('other data', str(error))
        # As much as users see, however long the failure is.
        for part in ('it is protected', base.IMAGE_ID):
            self.assertIn(part, str(error)[:255])
        [left] = journal.images()
        self.assertEqual(
            (base.IMAGE_ID, 'it is protected', uuids.project),
            (left.image_id, left.reason, left.project_id))
        self.assertEqual([], journal.entries())

    def test_images_that_are_left_never_exclude_another_snapshot(self):
        self.leave()
        for uuid in (uuids.second, uuids.third):
            object.__setattr__(self.snapshot_plan, 'image_id', uuid)
            with image.incomplete_image(
                    self.snapshot_plan, 'backup', True):
                pass
        self.assertEqual(3, len(journal.images()))

    def test_error_that_nova_manager_expects_is_raised_unchanged(self):
        self.discard.return_value = 'Glance is down'
        self.assertRaises(
            nova_exception.InstanceNotFound, self.run_snapshot,
            nova_exception.InstanceNotFound(instance_id='i'))
        self.assertIn('Glance is down', self.stdlog.logger.output)
        self.assertEqual(1, len(journal.images()))

    def test_second_snapshot_of_an_instance_is_refused(self):
        with journal.new_entry(self.snapshot_plan, 'external'):
            self.assertRaises(
                exception.SnapshotInProgress, image.incomplete_image(
                    self.snapshot_plan, 'backup', True).__enter__)
        self.assert_discarded()
        self.assertEqual([], os.listdir(self.journal))

    def test_nothing_begins_if_the_image_can_not_be_recorded(self):
        self.flags(journal_directory='/dev/null/x', group='snapext')
        self.assertRaises(exception.JournalFailed, self.run_snapshot)
        self.discard.assert_not_called()


class DeleteTest(ImageTestCase):

    def test_deleted_image_leaves_the_journal(self):
        left = self.leave()
        self.discard.return_value = None
        image.delete(left, self.context)
        self.assert_discarded()
        self.assertEqual([], os.listdir(self.journal))

    def test_image_that_nova_sees_for_the_first_time_is_recorded_so(self):
        self.seen.return_value = False
        left = self.leave()
        self.assertFalse(left.seen_by_nova)
        self.seen.return_value = True
        self.assertRaises(exception.UnexpectedState, image.delete,
                          left, self.context)
        self.assert_discarded()
        self.assertTrue(journal.images()[0].seen_by_nova)

    def test_last_reason_is_in_the_journal(self):
        left = self.leave()
        self.discard.return_value = 'it is protected'
        error = self.assertRaises(exception.UnexpectedState, image.delete,
                                  left, self.context)
        self.assertEqual('it is protected', str(error))
        self.assertEqual('it is protected', journal.images()[0].reason)
