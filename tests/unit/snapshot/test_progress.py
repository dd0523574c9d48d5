# SPDX-License-Identifier: Apache-2.0

import fixtures
from nova import exception as nova_exception
from nova import objects
import oslo_messaging

from nova_snapext.snapshot import progress
from tests.unit import base


class UploadProgressTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.saved = []
        self.error = None
        self.useFixture(fixtures.MockPatchObject(
            objects.Instance, 'save', self.save))
        self.server = self.instance()
        self.server.progress = 0
        self.server.obj_reset_changes()
        self.progress = progress.UploadProgress(self.server)

    def save(self):
        if self.error is not None:
            raise self.error
        self.saved.append(self.progress._instance.obj_get_changes())

    def test_each_new_percentage_is_saved_once(self):
        for sent in (10, 10, 25):
            self.progress.on_progress(sent, 100)
            self.assertIsNone(self.progress.run())
        self.assertEqual([{'progress': 10}, {'progress': 25}], self.saved)

    def test_instance_of_the_snapshot_is_neither_saved_nor_changed(self):
        # A save that hangs may end while a task state is saved.
        self.server.task_state = 'image_uploading'
        self.progress = progress.UploadProgress(self.server)
        self.progress.on_progress(10, 100)
        self.progress.run()
        self.assertEqual([{'progress': 10}], self.saved)
        self.assertEqual({'task_state'}, self.server.obj_what_changed())

    def test_phase_without_bytes_saves_nothing(self):
        for _second in range(10):
            self.assertIsNone(self.progress.run())
        self.assertEqual([], self.saved)

    def test_users_see_it_move_every_two_seconds(self):
        self.assertLessEqual(progress.INTERVAL, 2)

    def test_end_of_the_upload_is_saved_by_nova_with_its_task_state(self):
        self.progress.on_progress(50, 100)
        self.progress.run()
        self.progress.reset()
        self.assertEqual([{'progress': 50}], self.saved)
        self.server.task_state = None
        self.assertEqual({'progress': 0, 'task_state': None},
                         self.server.obj_get_changes())

    def test_snapshot_without_progress_resets_nothing(self):
        self.progress.reset()
        self.assertEqual({}, self.server.obj_get_changes())

    def test_last_run_that_ends_late_resets_the_progress(self):
        self.progress.on_progress(50, 100)
        self.progress.run()
        self.progress.finish_late()
        self.assertEqual({'progress': 0}, self.saved[-1])

    def test_deleted_instance_is_returned_as_the_cause(self):
        self.error = nova_exception.InstanceNotFound(instance_id='i')
        self.progress.on_progress(10, 100)
        self.assertIsInstance(self.progress.run(),
                              nova_exception.InstanceNotFound)

    def test_unreachable_database_does_not_fail_the_reset(self):
        self.error = oslo_messaging.MessagingTimeout()
        self.progress.finish_late()
        self.assertIn('Could not reset the progress',
                      self.stdlog.logger.output)

    def test_deleted_instance_is_not_reported_by_the_reset(self):
        self.error = nova_exception.InstanceNotFound(instance_id='i')
        self.progress.finish_late()
        self.assertNotIn('Could not reset', self.stdlog.logger.output)
