# SPDX-License-Identifier: Apache-2.0

from unittest import mock

import fixtures
from nova import exception as nova_exception
from nova.image import glance as nova_glance

from nova_snapext import exception
from nova_snapext import journal
from nova_snapext.resources import image
from nova_snapext import upload
from tests.unit import base


class ImageTestCase(base.TestCase):

    def setUp(self):
        super().setUp()
        self.image_api = mock.create_autospec(nova_glance.API, instance=True)
        self.discard = self.useFixture(fixtures.MockPatchObject(
            upload, 'discard', return_value=None)).mock
        self.snapshot_plan = self.plan()

    def assert_discarded(self):
        self.discard.assert_called_once_with(
            self.snapshot_plan.context, self.image_api, base.IMAGE_ID)


class IncompleteImageTest(ImageTestCase):

    def setUp(self):
        super().setUp()
        driver = mock.Mock(_image_api=self.image_api)
        self.resource = image.IncompleteImage.restore(
            driver, self.snapshot_plan, {})

    def test_restored_image_is_discarded_by_release(self):
        self.resource.release()
        self.assert_discarded()

    def test_failed_deletion_raises_reason_and_cause(self):
        self.discard.return_value = 'Glance is down'
        error = self.assertRaises(exception.IncompleteImageLeft,
                                  self.resource.release)
        for part in ('nova-compute stopped', 'Glance is down', base.IMAGE_ID):
            self.assertIn(part, str(error))

    def test_record_contains_no_secret(self):
        self.assertEqual({}, self.resource.record())

    def test_text_names_image(self):
        self.assertIn(base.IMAGE_ID, str(self.resource))


class IncompleteImageContextTest(ImageTestCase):

    def run_snapshot(self, failure=None, complete=False):
        with image.incomplete_image(
                self.image_api, self.snapshot_plan,
                'backup') as (_entry, mark_complete):
            self.assertEqual(['image'], self.recorded())
            if complete:
                mark_complete()
            if failure is not None:
                raise failure

    def recorded(self):
        """Return the kinds of resources in the journal."""
        entry = journal.find(self.snapshot_plan.instance.uuid)
        return [record.kind for record in entry.records] if entry else []

    def test_failed_snapshot_discards_image(self):
        self.assertRaises(exception.GlanceRefused, self.run_snapshot,
                          exception.GlanceRefused(
                              server='g', image='i', reason='full'))
        self.assert_discarded()
        self.assertEqual([], self.recorded())

    def test_complete_image_is_kept(self):
        self.run_snapshot(complete=True)
        self.discard.assert_not_called()
        self.assertEqual([], self.recorded())

    def test_failure_after_completion_keeps_image(self):
        self.assertRaises(exception.SnapextError, self.run_snapshot,
                          exception.SnapextError(), complete=True)
        self.discard.assert_not_called()

    def test_deleted_image_is_not_deleted_again(self):
        self.assertRaises(
            nova_exception.ImageNotFound, self.run_snapshot,
            nova_exception.ImageNotFound(image_id=base.IMAGE_ID))
        self.discard.assert_not_called()
        self.assertEqual([], self.recorded())

    def test_image_that_is_not_deleted_stays_in_journal(self):
        self.discard.return_value = 'Glance is down'
        error = self.assertRaises(
            exception.IncompleteImageLeft, self.run_snapshot,
            exception.ImageMismatch(image='i', reason='other data'))
        for part in ('other data', 'Glance is down'):
            self.assertIn(part, str(error))
        self.assertEqual(['image'], self.recorded())

    def test_error_that_nova_manager_expects_is_raised_unchanged(self):
        self.discard.return_value = 'Glance is down'
        self.assertRaises(
            nova_exception.InstanceNotFound, self.run_snapshot,
            nova_exception.InstanceNotFound(instance_id='i'))
        self.assertIn('Glance is down', self.stdlog.logger.output)
        self.assertEqual(['image'], self.recorded())
