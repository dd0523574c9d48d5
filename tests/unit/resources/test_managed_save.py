# SPDX-License-Identifier: Apache-2.0

from unittest import mock

import fixtures
import libvirt
from nova import exception as nova_exception

from nova_snapext import exception
from nova_snapext.hypervisor import domain
from nova_snapext import plan as planning
from nova_snapext.resources import managed_save
from nova_snapext.resources import overlay
from tests.unit import base

GONE = nova_exception.InstanceNotFound(instance_id='gone')
HALTED = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_SAVE)


class ManagedSaveTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.target = self.plan()
        self.guest = self.target.guest
        self.driver = mock.MagicMock()
        self.get_guest = self.useFixture(fixtures.MockPatchObject(
            domain, 'get')).mock
        self.get_guest.return_value = self.guest
        self.overlay = mock.create_autospec(overlay.Overlay, instance=True)

    def memory(self, was_running=True, target=None):
        return managed_save.ManagedSave(
            self.driver, target or self.target, self.overlay, was_running)

    def suspend(self):
        self.guest.is_active.return_value = False
        self.guest.has_managed_save.return_value = True

    def test_restored_resource_has_the_same_record(self):
        real = overlay.Overlay(self.driver._host, self.target)
        for was_running in (True, False):
            record = managed_save.ManagedSave(
                self.driver, self.target, real, was_running).record()
            self.assertEqual(was_running, record['was_running'])
            self.assertEqual(record, managed_save.ManagedSave.restore(
                self.driver, self.target, record).record())

    def test_managed_save_blocks_start_and_moves_with_its_disk(self):
        self.assertTrue(managed_save.ManagedSave.blocks_start)
        self.assertTrue(managed_save.ManagedSave.moves_with_disk)

    def test_suspended_guest_is_resumed_after_the_merge(self):
        self.suspend()
        self.driver._create_guest.side_effect = (
            lambda *_args: self.overlay.merge.assert_called_once_with())
        self.memory().release()
        self.driver._create_guest.assert_called_once()
        self.guest.sync_guest_time.assert_called_once_with()

    def test_clock_of_paused_guest_is_not_set(self):
        self.suspend()
        self.memory(was_running=False).release()
        self.guest.sync_guest_time.assert_not_called()

    def test_guest_of_unknown_instance_is_launched_by_libvirt(self):
        self.suspend()
        unknown = planning.Target(
            context=None, disk=base.QCOW2, image_id=base.IMAGE_ID,
            instance=planning.UnknownInstance('uuid', 'name'))
        self.memory(target=unknown).release()
        self.guest.launch.assert_called_once_with()
        self.driver._create_guest.assert_not_called()

    def test_undefined_guest_needs_no_release(self):
        self.get_guest.side_effect = GONE
        self.memory().release()
        self.overlay.merge.assert_not_called()

    def test_shut_off_guest_without_saved_memory_stays_off(self):
        self.guest.is_active.return_value = False
        self.memory().release()
        self.overlay.merge.assert_not_called()
        self.driver._create_guest.assert_not_called()

    def test_guest_that_libvirtd_left_halted_is_resumed(self):
        self.guest.state.return_value = HALTED
        self.memory().release()
        self.guest.resume.assert_called_once_with()

    def test_guest_that_was_paused_before_stays_paused(self):
        self.guest.state.return_value = HALTED
        self.memory(was_running=False).release()
        self.guest.resume.assert_not_called()

    def test_guest_that_its_user_paused_stays_paused(self):
        self.guest.state.return_value = (
            libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER)
        self.memory().release()
        self.guest.resume.assert_not_called()

    def test_guest_that_can_not_be_resumed_keeps_its_memory(self):
        self.suspend()
        self.driver._create_guest.side_effect = libvirt.libvirtError('full')
        error = self.assertRaises(exception.ReleaseFailed,
                                  self.memory().release)
        self.assertIn(f'virsh start {self.target.instance.name}', str(error))

    def test_unexpected_error_of_the_merge_propagates(self):
        self.suspend()
        self.overlay.merge.side_effect = ValueError
        self.assertRaises(ValueError, self.memory().release)
        self.driver._create_guest.assert_not_called()

    def test_guest_that_vanished_is_not_resumed_on_its_disk(self):
        self.memory().resume_on_disk(
            base.libvirt_error(libvirt.VIR_ERR_NO_DOMAIN))
        self.overlay.merge.assert_not_called()
