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


class OwnerNoteTest(base.TestCase):
    """libvirt's note of a block device, after the guest has come back."""

    def setUp(self):
        super().setUp()
        self.original = {'dac': '+0:+6', 'ref_dac': '1',
                         'timestamp_dac': '1700000000'}
        self.note = ownership.OwnerNote(dict(self.original))
        self.disk = mock.Mock(path='/dev/vg/disk', storage='block')
        self.found = {}
        self.calls = []
        for name, act in (
                ('read_owner_label', lambda _path: self.found),
                ('write_owner_label', self.write),
                ('remove_owner_label', self.remove),
                ('chown', lambda _path, *owner: self.calls.append(owner))):
            self.useFixture(fixtures.MockPatchObject(
                privsep, name, side_effect=act))
        self.useFixture(fixtures.MockPatch(
            'os.stat', return_value=mock.Mock(st_uid=NOVA, st_gid=NOVA)))

    def write(self, _path, label):
        self.found = label
        self.calls.append('write')

    def remove(self, _path):
        self.found = {}
        self.calls.append('remove')

    def put_back(self, *active):
        self.note.put_back(self.disk, mock.Mock(side_effect=active))

    def test_note_that_libvirt_has_lost_is_written(self):
        self.put_back(True, True)
        self.assertEqual(self.original, self.found)
        self.assertEqual(['write'], self.calls)

    def test_note_that_libvirt_has_kept_is_not_touched(self):
        self.found = dict(self.original)
        self.put_back(True, True)
        self.assertEqual([], self.calls)

    def test_guest_that_has_ended_gets_no_note_and_the_owner_the_disk(self):
        self.put_back(False)
        self.assertEqual({}, self.found)
        self.assertEqual([(0, 6)], self.calls)

    def test_note_written_for_a_guest_that_ends_just_then_is_removed(self):
        self.put_back(True, False)
        self.assertEqual({}, self.found)
        self.assertEqual(['write', 'remove', (0, 6)], self.calls)

    def test_without_a_note_nothing_is_done(self):
        self.note = ownership.OwnerNote()
        self.put_back()
        self.assertEqual([], self.calls)
