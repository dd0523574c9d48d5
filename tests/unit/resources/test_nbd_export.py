# SPDX-License-Identifier: Apache-2.0

from unittest import mock

import fixtures

from nova_snapext.hypervisor import qemu_nbd
from nova_snapext.resources import disk_definition
from nova_snapext.resources import nbd_export
from tests.unit import base


class BaseChainTest(base.TestCase):
    """Which backing chain a disk must have to be exported."""

    def setUp(self):
        super().setUp()
        self.serve = self.useFixture(fixtures.MockPatchObject(
            qemu_nbd, 'serve')).mock
        self.live_chain = self.useFixture(fixtures.MockPatchObject(
            disk_definition, 'live_chain')).mock

    def base_chain(self, running, *live_chain):
        self.live_chain.return_value = list(live_chain)
        nbd_export.NbdExport('uuid', mock.Mock()).serve(
            base.QCOW2, guest=base.fake_guest(running))
        return self.serve.call_args.args[1]

    def test_running_guest_has_been_started_with_it(self):
        self.assertEqual(['/i/base'], self.base_chain(
            True, '/i/disk', '/i/base'))

    def test_sample_of_its_disk_has_the_same(self):
        serve = self.useFixture(fixtures.MockPatchObject(
            qemu_nbd, 'serve_unlocked')).mock
        self.live_chain.return_value = ['/i/disk', '/i/base']
        nbd_export.NbdExport('uuid', mock.Mock()).serve_unlocked(
            base.QCOW2, base.fake_guest())
        self.assertEqual(['/i/base'], serve.call_args.args[1])

    def test_overlay_above_the_disk_is_no_part_of_it(self):
        self.assertEqual(['/i/base'], self.base_chain(
            True, '/i/overlay', '/i/disk', '/i/base'))

    def test_disk_without_backing_file_must_have_none(self):
        self.assertEqual([], self.base_chain(True, '/i/disk'))

    def test_guest_that_is_off_or_uses_another_disk_does_not_tell(self):
        self.assertIsNone(self.base_chain(False, '/i/disk', '/i/base'))
        self.assertIsNone(self.base_chain(True, '/i/other'))

    def test_unknown_guest_does_not_tell(self):
        nbd_export.NbdExport('uuid', mock.Mock()).serve(base.QCOW2)
        self.assertIsNone(self.serve.call_args.args[1])
