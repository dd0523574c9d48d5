# SPDX-License-Identifier: Apache-2.0

import contextlib
from unittest import mock

from nova.compute import task_states

from nova_snapext import exception
from nova_snapext import journal
from nova_snapext.resources import guest_filesystems
from nova_snapext.snapshot import completion
from tests.unit.snapshot import base


class CompletionTestCase(base.SnapshotTestCase):

    def setUp(self):
        super().setUp()
        self.error = exception.ReleaseFailed(
            instance='i', reason='has the job copy; end it')

    def finished_line(self):
        [line] = [line for line in self.stdlog.logger.output.splitlines()
                  if 'finished: strategy' in line]
        return line


class FrozenTest(CompletionTestCase):
    """A strategy whose release fails."""

    @contextlib.contextmanager
    def freeze(self, plan, entry):
        with super().freeze(plan, entry) as frozen:
            entry.records.append(journal.JournalRecord('overlay', {}, True))
            entry.write()
            try:
                yield frozen
            finally:
                raise self.error

    def test_complete_image_stays_and_the_snapshot_succeeds(self):
        self.snapshot()
        self.discard.assert_not_called()
        self.assertEqual('release', self.steps[-1])

    def test_log_has_the_remedy_and_says_that_it_is_tried_again(self):
        self.snapshot()
        output = self.stdlog.logger.output
        for text in ('has the job copy; end it', 'is complete and stays',
                     'tries again by itself'):
            self.assertIn(text, output)
        self.assertIn('left=overlay', self.finished_line())

    def test_what_is_left_stays_in_the_journal(self):
        instance = self.snapshot()
        entry = journal.find(instance.uuid)
        self.assertEqual(['overlay'],
                         [record.kind for record in entry.records])
        self.assertIn('has the job copy', entry.problem)
        self.assertEqual([], journal.images())

    def test_any_error_of_the_release_leaves_the_image(self):
        for self.error in (ZeroDivisionError(), OSError('EIO'),
                           exception.CommitFailed(
                               disk='vda', guest='g', reason='stalls')):
            instance = self.snapshot()
            self.discard.assert_not_called()
            self.clear(instance)
            self.steps.clear()

    def clear(self, instance):
        entry = journal.find(instance.uuid)
        entry.records.clear()
        entry.close()

    def test_end_of_the_process_is_not_caught(self):
        self.error = SystemExit()
        self.assertRaises(SystemExit, self.snapshot)

    def test_error_before_completion_deletes_the_image(self):
        self.stream.side_effect = ZeroDivisionError
        self.assertRaises(exception.ReleaseFailed, self.snapshot)
        self.discard.assert_called_once()

    def test_disk_with_data_that_nova_destroys_next_fails_the_snapshot(self):
        # The overlay has what the guest wrote since the freeze.
        instance = self.instance()
        instance.save = mock.Mock()
        instance.task_state = task_states.SHELVING
        self.assertRaises(exception.ReleaseFailed, self.snapshot_of, instance)

    def test_tasks_that_destroy_the_disk_are_those_of_shelve_and_resize(self):
        for task_state in completion.DISK_GOES:
            self.assertTrue(task_state.startswith(('shelving', 'resize')))
        self.assertNotIn(task_states.IMAGE_UPLOADING, completion.DISK_GOES)
        self.assertNotIn(task_states.IMAGE_BACKUP, completion.DISK_GOES)


class NothingLeftTest(CompletionTestCase):

    def test_line_says_that_nothing_is_left(self):
        self.snapshot()
        self.assertIn('left=nothing', self.finished_line())


class JournalTest(CompletionTestCase):

    def test_journal_that_can_not_be_removed_leaves_the_image(self):
        close = journal.JournalEntry.close
        with mock.patch.object(journal.JournalEntry, 'close', autospec=True,
                               side_effect=OSError('EIO')):
            instance = self.snapshot()
        self.discard.assert_not_called()
        close(journal.find(instance.uuid))


class NativeTest(CompletionTestCase):
    """Nova's own snapshot."""

    def setUp(self):
        super().setUp()
        self.domain.XMLDesc.return_value = base.DOMAIN.format('ploop')
        self.thaw = self.patch(guest_filesystems.GuestFilesystems, 'release')
        self.thaw.side_effect = exception.ThawFailed(
            instance='i', guest='g', reason='no agent')

    def test_complete_image_stays_and_the_snapshot_succeeds(self):
        instance = self.snapshot()
        self.native.assert_called_once()
        self.discard.assert_not_called()
        self.assertIn('virsh domfsthaw', self.stdlog.logger.output)
        self.assertIsNotNone(journal.find(instance.uuid))

    def test_error_before_completion_deletes_the_image(self):
        self.native.side_effect = ZeroDivisionError
        self.assertRaises(exception.ThawFailed, self.snapshot)
        self.discard.assert_called_once()
