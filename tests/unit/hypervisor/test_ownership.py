# SPDX-License-Identifier: Apache-2.0

import os
from unittest import mock

import fixtures

from nova_snapext.hypervisor import ownership
from nova_snapext.hypervisor import privsep
from tests.unit import base

NOVA, QEMU, KVM = 42436, 64055, 109


class LentTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.owner = QEMU, KVM
        self.access = self.patch('os.access', return_value=False)
        self.patch('os.geteuid', return_value=NOVA)
        self.patch('os.stat', side_effect=self.stat)
        self.chown = self.useFixture(fixtures.MockPatchObject(
            privsep, 'chown', side_effect=self.change_owner)).mock

    def patch(self, name, **kwargs):
        return self.useFixture(fixtures.MockPatch(name, **kwargs)).mock

    def stat(self, _path):
        uid, gid = self.owner
        return mock.Mock(st_uid=uid, st_gid=gid)

    def change_owner(self, _path, uid, gid=None):
        self.owner = uid, self.owner[1] if gid is None else gid

    def lent(self):
        return ownership.lent('/i/disk', os.R_OK)

    def test_accessible_image_keeps_its_owner(self):
        self.access.return_value = True
        with self.lent():
            self.assertEqual((QEMU, KVM), self.owner)
        self.chown.assert_not_called()

    def test_image_belongs_to_nova_inside_the_context_only(self):
        with self.lent():
            self.assertEqual((NOVA, KVM), self.owner)
        self.assertEqual((QEMU, KVM), self.owner)

    def test_link_to_a_logical_volume_is_followed_by_nova(self):
        self.patch('os.path.realpath', return_value='/dev/dm-7')
        with self.lent():
            pass
        self.assertEqual(['/dev/dm-7'] * 2, [
            call.args[0] for call in self.chown.mock_calls])

    def test_owner_is_put_back_after_an_error(self):
        def fail():
            with self.lent():
                raise ZeroDivisionError()

        self.assertRaises(ZeroDivisionError, fail)
        self.assertEqual((QEMU, KVM), self.owner)

    def test_owner_that_libvirt_has_changed_stays(self):
        self.owner = NOVA + 1, NOVA + 1
        with self.lent():
            self.owner = QEMU, KVM
        self.assertEqual((QEMU, KVM), self.owner)
