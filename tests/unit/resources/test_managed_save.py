# SPDX-License-Identifier: Apache-2.0

from unittest import mock

import fixtures
import libvirt
from nova import exception as nova_exception

from nova_snapext import durable
from nova_snapext import exception
from nova_snapext.hypervisor import domain
from nova_snapext.hypervisor import libvirt_files
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
        self.overlay.is_outstanding.return_value = False
        self.sync = self.useFixture(fixtures.MockPatchObject(
            libvirt_files, 'sync_saved_memory')).mock

    def memory(self, was_running=True, target=None):
        return managed_save.ManagedSave(
            self.driver, target or self.target, self.overlay, was_running)

    def suspend(self, reason=libvirt.VIR_DOMAIN_SHUTOFF_SAVED):
        self.guest.is_active.return_value = False
        self.guest.has_managed_save.return_value = True
        self.guest.state.return_value = (libvirt.VIR_DOMAIN_SHUTOFF, reason)

    def restored(self, resume_requested=False, rebooted=False):
        """Return the resource as another process restores it."""
        with mock.patch.object(overlay.Overlay, 'restore',
                               return_value=self.overlay):
            return managed_save.ManagedSave.restore(
                self.driver, self.target, {
                    'overlay': {}, 'was_running': True,
                    'boot': 'earlier' if rebooted else durable.boot_id(),
                    'resume_requested': resume_requested})

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

    def test_resume_is_in_the_journal_before_and_synced_after_it(self):
        memory = self.memory()
        recorded = []
        memory.save = lambda: recorded.append(
            memory.record()['resume_requested'])
        self.overlay.record.return_value = {}
        self.driver._create_guest.side_effect = lambda *_args: (
            self.assertEqual([True], recorded),
            self.sync.assert_not_called())
        memory.resume(self.guest)
        self.driver._create_guest.assert_called_once()
        self.sync.assert_called_once_with()

    def test_guest_is_resumed_though_the_journal_can_not_be_written(self):
        for error in (OSError('no space'), exception.JournalFailed(
                path='/j', reason='no space')):
            self.driver.reset_mock()
            memory = self.memory()
            memory.save = mock.Mock(side_effect=error)
            memory.resume(self.guest)
            self.driver._create_guest.assert_called_once()

    def test_memory_that_came_back_after_the_resume_is_discarded(self):
        # Seen from the journal alone: the host lost power, or the guest ran
        # and was shut off while libvirtd was away.
        for rebooted, reason in (
                (True, libvirt.VIR_DOMAIN_SHUTOFF_UNKNOWN),
                (True, libvirt.VIR_DOMAIN_SHUTOFF_SAVED),
                (False, libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN),
                (False, libvirt.VIR_DOMAIN_SHUTOFF_CRASHED)):
            self.guest.reset_mock()
            self.suspend(reason)
            self.restored(resume_requested=True, rebooted=rebooted).release()
            self.guest.remove_managed_save.assert_called_once_with()
            self.driver._create_guest.assert_not_called()

    def test_memory_of_a_resume_that_did_not_happen_is_resumed(self):
        for reason in (libvirt.VIR_DOMAIN_SHUTOFF_SAVED,
                       libvirt.VIR_DOMAIN_SHUTOFF_FAILED,
                       libvirt.VIR_DOMAIN_SHUTOFF_UNKNOWN):
            self.driver.reset_mock()
            self.suspend(reason)
            self.restored(resume_requested=True).release()
            self.driver._create_guest.assert_called_once()
            self.guest.remove_managed_save.assert_not_called()

    def test_memory_that_a_loss_of_power_has_damaged_is_discarded(self):
        self.suspend()
        self.driver._create_guest.side_effect = libvirt.libvirtError('torn')
        self.restored(rebooted=True).release()
        self.guest.remove_managed_save.assert_called_once_with()

    def test_part_of_a_memory_is_discarded_after_a_loss_of_power(self):
        self.suspend()
        self.guest.managed_save_xml.side_effect = base.libvirt_error(
            libvirt.VIR_ERR_OPERATION_FAILED)
        self.restored(rebooted=True).release()
        self.guest.remove_managed_save.assert_called_once_with()
        self.driver._create_guest.assert_not_called()

    def test_damaged_memory_is_kept_while_the_overlay_is_not_merged(self):
        self.suspend()
        self.overlay.merge.side_effect = libvirt.libvirtError('busy')
        self.overlay.is_outstanding.return_value = True
        self.assertRaises(exception.ReleaseFailed,
                          self.restored(rebooted=True).release)
        self.guest.remove_managed_save.assert_not_called()

    def test_unexpected_error_of_the_merge_propagates(self):
        self.suspend()
        self.overlay.merge.side_effect = ValueError
        self.assertRaises(ValueError, self.memory().release)
        self.driver._create_guest.assert_not_called()

    def test_guest_that_vanished_is_not_resumed_on_its_disk(self):
        self.memory().resume_on_disk(
            base.libvirt_error(libvirt.VIR_ERR_NO_DOMAIN))
        self.overlay.merge.assert_not_called()
