# SPDX-License-Identifier: Apache-2.0

from unittest import mock

import fixtures

from nova_snapext import exception
from nova_snapext.hypervisor import qemu_nbd
from nova_snapext import journal
from nova_snapext import plan as planning
from nova_snapext.resources import disk_definition
from nova_snapext.resources import guest_filesystems
from nova_snapext.resources import overlay
from nova_snapext.resources import work_directory
from nova_snapext.strategies import external
from tests.unit import base

RELEASE = ('stream', 'serve.stop', 'Overlay.release',
           'WorkDirectory.allocate.release')


class ExternalTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.calls = mock.Mock()
        self.useFixture(fixtures.MockPatchObject(
            journal.JournalEntry, 'write'))
        for module, name in ((work_directory, 'WorkDirectory'),
                             (overlay, 'Overlay'),
                             (guest_filesystems, 'GuestFilesystems'),
                             (disk_definition, 'live_chain'),
                             (qemu_nbd, 'serve')):
            self.useFixture(fixtures.MockPatchObject(
                module, name, getattr(self.calls, name)))
        self.frozen = self.calls.GuestFilesystems.return_value.frozen
        self.frozen.return_value = mock.MagicMock()
        directory = self.calls.WorkDirectory.allocate.return_value
        directory.socket = '/s'
        for mocked in (directory, self.calls.Overlay.return_value,
                       self.calls.GuestFilesystems.return_value):
            mocked.kind = 'a resource'
        self.calls.live_chain.return_value = []
        self.strategy = external.ExternalStrategy(mock.MagicMock())

    def freeze(self):
        with self.strategy.freeze(self.plan()):
            self.calls.stream()

    def order(self, *names):
        """Return the calls with these names, in the order they came in."""
        calls = [name.replace('()', '')
                 for name, _args, _kwargs in self.calls.mock_calls]
        return [name for name in calls if name in names]

    def test_filesystems_are_frozen_only_while_the_guest_is_switched(self):
        within = []
        self.frozen.return_value.__enter__.side_effect = (
            lambda: within.append('frozen'))
        self.frozen.return_value.__exit__.side_effect = (
            lambda *_: within.append('thawed'))
        created = self.calls.Overlay.return_value
        created.create.side_effect = lambda _: within.append('create')
        created.switch_to_overlay.side_effect = (
            lambda _: within.append('switch'))
        self.calls.serve.side_effect = (
            lambda *_args, **_kwargs: within.append('serve') or mock.Mock())
        self.freeze()
        self.assertEqual(['create', 'frozen', 'switch', 'thawed', 'serve'],
                         within)

    def test_resources_are_released_before_those_that_they_need(self):
        self.freeze()
        self.assertEqual(list(RELEASE), self.order(*RELEASE))

    def test_filesystems_that_stay_frozen_are_thawed_again_at_the_end(self):
        self.frozen.return_value.__exit__.side_effect = (
            exception.ThawFailed(instance='i', guest='g', reason='r'))
        self.assertRaises(exception.ThawFailed, self.freeze)
        self.assertEqual(
            ['Overlay.release', 'GuestFilesystems.release'],
            self.order('Overlay.release', 'GuestFilesystems.release'))

    def test_failed_release_of_one_resource_does_not_keep_the_others(self):
        failed = exception.ReleaseFailed(instance='i', reason='r')
        for part in (self.calls.serve.return_value.stop,
                     self.calls.Overlay.return_value.release):
            part.side_effect = failed
        self.assertRaises(exception.ReleaseFailed, self.freeze)
        self.assertEqual(list(RELEASE), self.order(*RELEASE))

    def test_guest_that_can_not_be_switched_has_no_overlay_to_merge(self):
        self.calls.Overlay.return_value.prepare.side_effect = (
            exception.UnexpectedState(reason='old'))
        self.assertRaises(exception.FreezeFailed, self.freeze)
        self.assertEqual(['WorkDirectory.allocate.release'],
                         self.order(*RELEASE))

    def test_files_and_block_devices_are_supported(self):
        self.assertIsNone(self.strategy.unsupported_reason(self.plan()))
        self.assertIsNone(self.strategy.unsupported_reason(self.plan(
            disk=planning.RootDisk('vda', 'block', '/dev/vg/d', 'raw'))))

    def test_network_disk_is_refused(self):
        self.assertIn('network', self.strategy.unsupported_reason(self.plan(
            disk=planning.RootDisk('vda', 'network', 'pool/d', 'raw'))))

    def test_shut_off_guest_is_refused(self):
        self.assertIn('shut off', self.strategy.unsupported_reason(
            self.plan(running=False)))

    def test_auto_does_not_skip_it(self):
        self.assertIsNone(self.strategy.auto_skip_reason(self.plan()))
