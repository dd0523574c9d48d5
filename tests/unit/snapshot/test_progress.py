# SPDX-License-Identifier: Apache-2.0

from unittest import mock

from nova import exception as nova_exception
import oslo_messaging

from nova_snapext.snapshot import progress
from tests.unit import base


class UploadProgressTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.saved = []
        self.server = self.instance()
        self.server.save = mock.Mock(
            side_effect=lambda: self.saved.append(self.server.progress))
        self.progress = progress.UploadProgress(self.server)

    def test_each_new_percentage_is_saved_once(self):
        for sent in (10, 10, 25):
            self.progress.on_progress(sent, 100)
            self.assertIsNone(self.progress.run())
        self.assertEqual([10, 25], self.saved)

    def test_end_of_the_upload_resets_the_progress(self):
        with self.progress.clearing():
            self.progress.on_progress(50, 100)
            self.progress.run()
        self.assertEqual(0, self.saved[-1])

    def test_deleted_instance_is_returned_as_the_cause(self):
        self.server.save.side_effect = nova_exception.InstanceNotFound(
            instance_id='i')
        self.progress.on_progress(10, 100)
        self.assertIsInstance(self.progress.run(),
                              nova_exception.InstanceNotFound)

    def test_unreachable_database_does_not_fail_the_reset(self):
        self.server.save.side_effect = oslo_messaging.MessagingTimeout()
        with self.progress.clearing():
            pass
        self.assertIn('Could not reset the progress',
                      self.stdlog.logger.output)

    def test_deleted_instance_is_not_reported_by_the_reset(self):
        self.server.save.side_effect = nova_exception.InstanceNotFound(
            instance_id='i')
        with self.progress.clearing():
            pass
        self.assertNotIn('Could not reset', self.stdlog.logger.output)
