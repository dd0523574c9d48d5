# SPDX-License-Identifier: Apache-2.0

import contextlib
import io
import os
import pathlib
from unittest import mock

import libvirt
from nova import exception as nova_exception
from oslo_utils.fixture import uuidsentinel as uuids

from nova_snapext.cmd.check import trial
from nova_snapext.cmd import exits
from nova_snapext.cmd import main
from nova_snapext.cmd import recover as recover_command
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
        self.patch(recover_command, '_trial_guests').return_value = False
        self.recover = self.patch(recovery, 'recover_entry')
        self.recover_image = self.patch(recovery, 'recover_image')
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

    def leave_image(self):
        with journal.new_image(self.plan_, 'external', True):
            pass

    def files(self):
        """Return the state of all files in the journal."""
        return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns)
                for path in pathlib.Path(self.journal).iterdir()}

    def run_(self, *arguments):
        """Return the exit code and all that was printed."""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), \
                contextlib.redirect_stderr(printed):
            code = main.main(['recover', *arguments])
        return code, printed.getvalue()

    def test_dry_run_lists_snapshots_and_changes_nothing(self):
        self.leave()
        code, printed = self.run_('--dry-run')
        self.assertEqual(1, code)
        for part in (self.plan_.instance.uuid, base.IMAGE_ID, 'external',
                     "overlay: {'path': '/o'}"):
            self.assertIn(part, printed)
        self.recover.assert_not_called()
        standalone.create_driver.assert_not_called()

    def test_dry_run_writes_nothing_whatever_it_finds(self):
        self.leave()
        self.leave_image()
        for name, text in (('x.json', '{'), ('y.image', '['),
                           (f'{uuids.newer}.json', '{"version": 2}'),
                           (f'{uuids.half}.json.new', '{')):
            pathlib.Path(self.journal, name).write_text(text)
        before = self.files()
        code, printed = self.run_('--dry-run')
        self.assertEqual(1, code)
        self.assertEqual(before, self.files())
        for text in (self.plan_.instance.uuid, base.IMAGE_ID, 'x.json',
                     'y.image', f'{uuids.newer}.json', 'version 2'):
            self.assertIn(text, printed)
        self.assertNotIn('nothing', printed)
        self.assertNotIn(uuids.half, printed)
        self.recover_image.assert_not_called()

    def test_dry_run_tells_by_its_code_that_it_lists_something(self):
        self.assertEqual(0, self.run_('--dry-run')[0])
        with mock.patch.object(trial, 'left', return_value=[{'name': 'g'}]):
            code, printed = self.run_('--dry-run')
            self.assertIn('g, which "nova-snapext check --trial"', printed)
        self.assertEqual(1, code)
        self.leave_image()
        self.assertEqual(1, self.run_('--dry-run')[0])

    def test_dry_run_creates_no_journal(self):
        self.flags(journal_directory=f'{self.journal}/none', group='snapext')
        code, printed = self.run_('--dry-run')
        self.assertEqual(0, code)
        self.assertIn('nothing to clean up', printed)
        self.assertEqual([], os.listdir(self.journal))

    def test_dry_run_says_that_nova_compute_runs(self):
        self.leave()
        with mock.patch.object(journal, 'is_locked_by_another',
                               return_value=True):
            code, printed = self.run_('--dry-run')
        self.assertEqual(1, code)
        self.assertIn('run now', printed)
        self.assertIn('nova-snapext recover or drain', printed)
        self.assertNotIn('run now', self.run_('--dry-run')[1])

    def test_dry_run_with_an_empty_journal_does_not_contradict_itself(self):
        with mock.patch.object(journal, 'is_locked_by_another',
                               return_value=True):
            code, printed = self.run_('--dry-run')
        self.assertEqual(
            (0, 'There is nothing to clean up in the journal.\n'),
            (code, printed))

    def test_unreadable_journal_is_reported(self):
        self.flags(journal_directory='/dev/null/x', group='snapext')
        code, printed = self.run_('--dry-run')
        self.assertEqual(exits.NOT_DONE, code)
        self.assertIn("can't be used", printed)

    def test_file_that_can_not_be_used_is_left_alone_and_reported(self):
        self.leave()
        for name, text in (('x.json', '{'),
                           (f'{uuids.newer}.json', '{"version": 2}')):
            pathlib.Path(self.journal, name).write_text(text)
        before = self.files()
        code, printed = self.run_()
        self.assertEqual(1, code)
        self.assertIn('x.json is left alone', printed)
        self.assertIn('cleaned up', printed)
        self.assertEqual(before.keys() | {'lock'}, self.files().keys())
        # Another instance is not concerned.
        self.assertEqual(0, self.run_(self.plan_.instance.uuid)[0])
        self.assertEqual(1, self.run_(uuids.newer)[0])

    def test_nonsense_does_not_control_the_terminal(self):
        pathlib.Path(self.journal, '\x1b[2J\udcff.json').write_text('{')
        _code, printed = self.run_('--dry-run')
        self.assertIn(r'\x1b[2J\udcff.json', printed)

    def test_images_are_deleted(self):
        self.leave_image()
        code, printed = self.run_()
        self.assertEqual(0, code)
        self.assertIn('deleted', printed)
        [(image,), _] = self.recover_image.call_args
        self.assertEqual(base.IMAGE_ID, image.image_id)

    def test_image_that_can_not_be_deleted_is_reported(self):
        def refuse(image):
            image.reason = 'it is protected'
            return False

        self.leave_image()
        self.recover_image.side_effect = refuse
        code, printed = self.run_(self.plan_.instance.uuid)
        self.assertEqual(1, code)
        self.assertIn('it is protected', printed)

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
        self.assertEqual(exits.NOT_DONE, code)
        self.assertIn('Another process on this host', printed)
        standalone.create_driver.assert_not_called()

    def test_unreachable_libvirtd_is_reported_with_a_hint(self):
        self.leave()
        standalone.create_driver.side_effect = libvirt.libvirtError(
            'no socket')
        code, printed = self.run_()
        self.assertEqual(exits.NOT_DONE, code)
        self.assertIn('no socket. Check that libvirtd runs', printed)

    def test_what_libvirt_said_to_nova_is_told(self):
        unavailable = nova_exception.HypervisorUnavailable()
        unavailable.__context__ = libvirt.libvirtError('no socket')
        standalone.create_driver.side_effect = unavailable
        _code, printed = self.run_()
        self.assertIn('no socket. Check that libvirtd runs', printed)

    def test_another_cause_is_reported_without_that_hint(self):
        standalone.create_driver.side_effect = PermissionError('no right')
        code, printed = self.run_()
        self.assertEqual(exits.NOT_DONE, code)
        self.assertIn('PermissionError: no right. "nova-snapext --debug" '
                      'shows more', printed)
        self.assertNotIn('libvirtd', printed)
