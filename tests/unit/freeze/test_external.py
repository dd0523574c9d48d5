# SPDX-License-Identifier: Apache-2.0

from unittest import mock

import fixtures

from nova_snapext import exception
from nova_snapext.freeze import directory
from nova_snapext.freeze import external
from nova_snapext.freeze import overlay
from nova_snapext.freeze import qemu_nbd
from nova_snapext.freeze import quiesce
from nova_snapext import journal
from nova_snapext import plan as planning
from tests.unit import base

RELEASE = ('stream', 'serve.end', 'Overlay.release',
           'Directory.choose.release')


class ExternalTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.calls = mock.Mock()
        self.useFixture(fixtures.MockPatchObject(journal.Entry, 'write'))
        for module, name in ((directory, 'Directory'), (overlay, 'Overlay'),
                             (quiesce, 'Filesystems'), (qemu_nbd, 'serve')):
            self.useFixture(fixtures.MockPatchObject(
                module, name, getattr(self.calls, name)))
        self.quiesced = self.calls.Filesystems.return_value.quiesced
        self.quiesced.return_value = mock.MagicMock()
        self.calls.Directory.choose.return_value.socket = '/s'
        self.strategy = external.ExternalStrategy(mock.MagicMock())

    def freeze(self):
        with self.strategy.freeze(self.plan()):
            self.calls.stream()

    def order(self, *names):
        """The calls of these names, in the order they came in."""
        calls = [name.replace('()', '')
                 for name, _args, _kwargs in self.calls.mock_calls]
        return [name for name in calls if name in names]

    def test_filesystems_are_frozen_for_the_snapshot_and_no_longer(self):
        within = []
        self.quiesced.return_value.__enter__.side_effect = (
            lambda: within.append('frozen'))
        self.quiesced.return_value.__exit__.side_effect = (
            lambda *_: within.append('thawed'))
        self.calls.Overlay.return_value.create.side_effect = (
            lambda _: within.append('create'))
        self.calls.Overlay.return_value.take.side_effect = (
            lambda _: within.append('take'))
        self.calls.serve.side_effect = (
            lambda *_: within.append('serve') or mock.Mock())
        self.freeze()
        self.assertEqual(['create', 'frozen', 'take', 'thawed', 'serve'],
                         within)

    def test_it_is_released_in_the_order_in_which_each_needs_the_other(self):
        self.freeze()
        self.assertEqual(list(RELEASE), self.order(*RELEASE))

    def test_filesystems_that_are_not_thawed_are_once_more_at_the_end(self):
        self.quiesced.return_value.__exit__.side_effect = (
            exception.ThawFailed(instance='i', guest='g', reason='r'))
        self.assertRaises(exception.ThawFailed, self.freeze)
        self.assertEqual(['Overlay.release', 'Filesystems.release'],
                         self.order('Overlay.release', 'Filesystems.release'))

    def test_a_release_that_fails_in_part_goes_on(self):
        failed = exception.ReleaseFailed(instance='i', reason='r')
        for part in (self.calls.serve.return_value.end,
                     self.calls.Overlay.return_value.release):
            part.side_effect = failed
        self.assertRaises(exception.ReleaseFailed, self.freeze)
        self.assertEqual(list(RELEASE), self.order(*RELEASE))

    def test_an_overlay_that_is_not_ours_is_not_merged(self):
        self.calls.Overlay.return_value.prepare.side_effect = ValueError('old')
        self.assertRaises(exception.FreezeFailed, self.freeze)
        self.assertEqual(['Directory.choose.release'],
                         self.order(*RELEASE))

    def test_files_and_devices_are_served(self):
        self.assertIsNone(self.strategy.reason_against(self.plan()))
        self.assertIsNone(self.strategy.reason_against(self.plan(
            disk=planning.RootDisk('vda', 'block', '/dev/vg/d', 'raw'))))

    def test_network_disks_are_not(self):
        self.assertIn('network', self.strategy.reason_against(self.plan(
            disk=planning.RootDisk('vda', 'network', 'pool/d', 'raw'))))

    def test_a_guest_that_is_shut_off_is_not(self):
        self.assertIn('shut off',
                      self.strategy.reason_against(self.plan(running=False)))

    def test_auto_need_not_be_asked_for_it(self):
        self.assertIsNone(self.strategy.reason_against_unasked(self.plan()))
