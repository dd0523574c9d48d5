# SPDX-License-Identifier: Apache-2.0

import contextlib
import io
from unittest import mock

from oslo_utils.fixture import uuidsentinel as uuids

from nova_snapext.cmd import main
from nova_snapext.cmd import recover
from nova_snapext import exception
from nova_snapext import journal
from nova_snapext import recovery
from tests.unit import base


class RecoverTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.patch(recover, '_configure')
        self.patch(recover, '_driver').return_value = 'driver'
        # It ends the process.
        self.patch(recover, '_end').side_effect = SystemExit
        self.recover = self.patch(recovery, 'recover')
        self.plan_ = self.plan()

    def patch(self, target, name):
        patch = mock.patch.object(target, name)
        self.addCleanup(patch.stop)
        return patch.start()

    def leave(self):
        with mock.patch.object(journal.Entry, 'close'), \
                journal.opened(self.plan_, 'external') as entry:
            entry.records.append(journal.Record('overlay', {'path': '/o'}))
            entry.write()

    def run_(self, *words):
        """Give the exit code, and all that was printed."""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), \
                contextlib.redirect_stderr(printed):
            try:
                code = main.main(['recover', *words])
            except SystemExit:
                [code] = recover._end.call_args.args
        return code, printed.getvalue()

    def test_a_dry_run_tells_and_touches_nothing(self):
        self.leave()
        code, printed = self.run_('--dry-run')
        self.assertEqual(0, code)
        for part in (self.plan_.instance.uuid, base.IMAGE_ID, 'external',
                     "overlay: {'path': '/o'}"):
            self.assertIn(part, printed)
        self.recover.assert_not_called()
        recover._driver.assert_not_called()

    def test_all_are_cleaned_up(self):
        self.leave()
        code, printed = self.run_()
        self.assertEqual(0, code)
        self.assertIn('cleaned up', printed)
        self.assertEqual('driver', self.recover.call_args.args[0])

    def test_what_is_left_is_told_and_fails(self):
        self.leave()
        self.recover.side_effect = exception.NotRecovered(
            instance='i', reason='two histories.', vital=True)
        code, printed = self.run_()
        self.assertEqual(1, code)
        self.assertIn('two histories', printed)

    def test_an_instance_that_the_journal_does_not_have_fails(self):
        self.leave()
        code, printed = self.run_(uuids.other)
        self.assertEqual(1, code)
        self.assertIn(uuids.other, printed)
        self.recover.assert_not_called()

    def test_nothing_to_do_is_told(self):
        code, printed = self.run_()
        self.assertEqual(0, code)
        self.assertIn('nothing to clean up', printed)

    def test_it_refuses_while_nova_compute_runs(self):
        with journal.locked():
            code, printed = self.run_()
        self.assertEqual(1, code)
        self.assertIn('Another process of this host', printed)
        recover._driver.assert_not_called()

    def test_a_libvirt_that_can_not_be_reached_is_told(self):
        self.leave()
        recover._driver.side_effect = RuntimeError('no socket')
        code, printed = self.run_()
        self.assertEqual(1, code)
        self.assertIn('no socket. Does libvirtd run', printed)
