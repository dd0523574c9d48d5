# SPDX-License-Identifier: Apache-2.0

import contextlib
import io
from unittest import mock

from oslo_utils.fixture import uuidsentinel as uuids

from nova_snapext.cmd import main
from nova_snapext.cmd import standalone
from nova_snapext import exception
from nova_snapext import journal
from nova_snapext.recovery import recover as recovery
from tests.unit import base


class RecoverTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.patch(standalone, 'configure')
        self.patch(standalone, 'create_driver').return_value = 'driver'
        # It ends the process.
        self.patch(standalone, 'end').side_effect = SystemExit
        self.recover = self.patch(recovery, 'recover_entry')
        self.plan_ = self.plan()

    def patch(self, target, name):
        patch = mock.patch.object(target, name)
        self.addCleanup(patch.stop)
        return patch.start()

    def leave(self):
        with mock.patch.object(journal.JournalEntry, 'close'), \
                journal.new_entry(self.plan_, 'external') as entry:
            entry.records.append(journal.JournalRecord(
                'overlay', {'path': '/o'}, blocks_start=True))
            entry.write()

    def run_(self, *arguments):
        """Return the exit code and all that was printed."""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), \
                contextlib.redirect_stderr(printed):
            try:
                code = main.main(['recover', *arguments])
            except SystemExit:
                [code] = standalone.end.call_args.args
        return code, printed.getvalue()

    def test_dry_run_lists_snapshots_and_changes_nothing(self):
        self.leave()
        code, printed = self.run_('--dry-run')
        self.assertEqual(0, code)
        for part in (self.plan_.instance.uuid, base.IMAGE_ID, 'external',
                     "overlay: {'path': '/o'}"):
            self.assertIn(part, printed)
        self.recover.assert_not_called()
        standalone.create_driver.assert_not_called()

    def test_all_snapshots_are_cleaned_up(self):
        self.leave()
        code, printed = self.run_()
        self.assertEqual(0, code)
        self.assertIn('cleaned up', printed)
        self.assertEqual('driver', self.recover.call_args.args[0])

    def test_failed_recovery_is_reported_by_text_and_exit_code(self):
        self.leave()
        self.recover.side_effect = exception.NotRecovered(
            instance='i', reason='two histories.', blocks_start=True)
        code, printed = self.run_()
        self.assertEqual(1, code)
        self.assertIn('two histories', printed)

    def test_instance_without_an_entry_is_reported_by_the_exit_code(self):
        self.leave()
        code, printed = self.run_(uuids.other)
        self.assertEqual(1, code)
        self.assertIn(uuids.other, printed)
        self.recover.assert_not_called()

    def test_empty_journal_is_reported(self):
        code, printed = self.run_()
        self.assertEqual(0, code)
        self.assertIn('nothing to clean up', printed)

    def test_running_nova_compute_is_an_error(self):
        with journal.locked():
            code, printed = self.run_()
        self.assertEqual(1, code)
        self.assertIn('Another process on this host', printed)
        standalone.create_driver.assert_not_called()

    def test_unreachable_libvirtd_is_reported_with_a_hint(self):
        self.leave()
        standalone.create_driver.side_effect = RuntimeError('no socket')
        code, printed = self.run_()
        self.assertEqual(1, code)
        self.assertIn('no socket. Check that libvirtd runs', printed)
