# SPDX-License-Identifier: Apache-2.0

import contextlib
import io
from unittest import mock

from oslo_utils.fixture import uuidsentinel as uuids

from nova_snapext.cmd.check import trial
from nova_snapext.cmd import exits
from nova_snapext.cmd import main
from nova_snapext.cmd import recover
from nova_snapext.cmd import standalone
from nova_snapext import exception
from nova_snapext import journal
from nova_snapext import plan as planning
from nova_snapext.recovery import leftovers
from nova_snapext.recovery import recover as recovery
from tests.unit import base

LEFT = leftovers.Leftover('A thing is left.', 'Remove it.')
OVERLAY = leftovers.Leftover('An overlay.', 'Merge it.', uuids.instance)


class DrainTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.patch(standalone, 'configure')
        self.patch(standalone, 'create_driver').return_value = 'driver'
        self.patch(recover, '_trial_guests').return_value = False
        self.recover_all = self.patch(recover, 'recover_all')
        self.find = self.patch(leftovers, 'find')
        self.find.return_value = []
        self.ensure = self.patch(recovery, 'ensure_recovered')
        self.get = self.patch(recovery, 'get_instance')
        self.get.return_value = self.instance()
        self.get.return_value.host = self.CONF.host

    def patch(self, target, name):
        patch = mock.patch.object(target, name)
        self.addCleanup(patch.stop)
        return patch.start()

    def run_(self, *arguments):
        """Return the exit code and all that was printed."""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), \
                contextlib.redirect_stderr(printed):
            code = main.main(['drain', *arguments])
        return code, printed.getvalue()

    def test_clean_host_can_switch_the_driver(self):
        code, printed = self.run_()
        self.assertEqual(0, code)
        self.assertIn('compute_driver can be set to libvirt.LibvirtDriver',
                      printed)
        self.recover_all.assert_called_once_with('driver')

    def test_anything_left_is_printed_with_its_remedy(self):
        self.find.return_value = [LEFT]
        code, printed = self.run_()
        self.assertEqual(1, code)
        for text in ('A thing is left.', 'Remove it.', 'Do not start'):
            self.assertIn(text, printed)
        self.assertNotIn('can be set', printed)

    def test_image_that_waits_for_its_deletion_is_on_no_host(self):
        self.find.return_value = [leftovers.Leftover(
            'An image.', 'Delete it.', is_on_host=False)]
        code, printed = self.run_()
        self.assertEqual(0, code)
        for text in ('An image.', 'can be set'):
            self.assertIn(text, printed)

    def test_image_of_a_trial_is_not_on_this_host(self):
        self.patch(trial, 'left').return_value = [{'name': 'image i'}]
        code, printed = self.run_()
        self.assertEqual(0, code)
        for text in ('image i was left', 'can be set'):
            self.assertIn(text, printed)

    def test_what_a_trial_has_left_is_told(self):
        self.patch(trial, 'left').return_value = [{'name': 'a trial guest'}]
        for arguments in ((), ('--dry-run',)):
            code, printed = self.run_(*arguments)
            self.assertEqual(1, code)
            self.assertIn('a trial guest was left', printed)
            self.assertNotIn('can be set', printed)
            self.assertNotIn('Nothing of nova-snapext is left', printed)

    def test_overlay_without_a_journal_is_recovered(self):
        self.find.side_effect = [[OVERLAY], []]
        code, _ = self.run_()
        self.assertEqual(0, code)
        self.ensure.assert_called_once_with(
            'driver', None, self.get.return_value)

    def test_overlay_that_can_not_be_merged_is_an_error(self):
        self.find.return_value = [OVERLAY]
        self.ensure.side_effect = exception.NotRecovered(
            instance='i', reason='two histories.', blocks_start=True)
        code, printed = self.run_()
        self.assertEqual(1, code)
        for text in ('two histories', 'An overlay.'):
            self.assertIn(text, printed)

    def test_overlay_in_the_journal_is_not_tried_twice(self):
        self.find.return_value = [OVERLAY]
        entry = mock.Mock(instance_uuid=uuids.instance)
        self.patch(journal, 'entries').return_value = [entry]
        self.assertEqual(1, self.run_()[0])
        self.ensure.assert_not_called()

    def test_overlay_of_another_host_is_left_to_it(self):
        self.find.return_value = [OVERLAY]
        self.get.return_value.host = 'elsewhere'
        code, printed = self.run_()
        self.assertEqual(0, code)
        self.assertIn('is on host elsewhere', printed)
        self.ensure.assert_not_called()

    def test_instance_that_nova_does_not_return_is_not_touched(self):
        self.find.return_value = [OVERLAY]
        self.get.return_value = planning.UnknownInstance(uuids.instance, 'i')
        code, printed = self.run_()
        self.assertEqual(1, code)
        self.assertIn('nothing of it is touched', printed)
        self.ensure.assert_not_called()

    def test_running_nova_compute_is_an_error(self):
        with journal.locked():
            code, printed = self.run_()
        self.assertEqual(exits.NOT_DONE, code)
        self.assertIn('Another process on this host', printed)
        self.recover_all.assert_not_called()

    def test_dry_run_changes_nothing_and_nova_compute_may_run(self):
        with journal.locked():
            self.assertEqual(0, self.run_('--dry-run')[0])
            self.find.return_value = [OVERLAY]
            code, printed = self.run_('--dry-run')
        self.assertEqual(1, code)
        self.assertIn('An overlay.', printed)
        self.recover_all.assert_not_called()
        self.ensure.assert_not_called()
