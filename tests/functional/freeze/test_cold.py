# SPDX-License-Identifier: Apache-2.0

import contextlib
import dataclasses
import os
import select
import signal
from unittest import mock

import libvirt

from nova_snapext import exception
from nova_snapext.freeze import base as freeze_base
from nova_snapext.freeze import cold
from nova_snapext import read
from tests.functional import base
from tests.functional.freeze import contract

CONTENT = 0x44


class ColdTest(base.GuestTestCase):

    def setUp(self):
        super().setUp()
        self.strategy = cold.ColdStrategy(self.driver)

    def server(self):
        """The process that serves the only frozen disk."""
        [pid_file] = self.freezes.glob('*/pid')
        pidfd = os.pidfd_open(int(pid_file.read_text()))
        self.addCleanup(os.close, pidfd)
        return pidfd

    def assert_ends(self, pidfd):
        self.assertTrue(select.select([pidfd], [], [], 30)[0])

    def read_as_it_is(self, disk):
        self.fill(disk, CONTENT)
        plan = self.guest(disk, running=False)
        with self.strategy.freeze(plan) as frozen:
            self.assertEqual(freeze_base.Consistency.OFFLINE,
                             frozen.consistency)
            server = self.server()
            with read.Disk(frozen.uri) as nbd:
                self.assertEqual({CONTENT}, {
                    byte for _, piece in nbd.read([(0, nbd.size)])
                    for byte in set(bytes(piece))})
        self.assert_ends(server)
        self.assert_nothing_left(plan)

    def test_a_qcow2_is_read_as_it_is(self):
        self.read_as_it_is(self.qcow2())

    def test_a_backing_chain_is_read_as_it_is(self):
        self.read_as_it_is(self.chained_qcow2())

    def test_a_raw_file_is_read_as_it_is(self):
        self.read_as_it_is(self.raw())

    def test_a_block_device_is_read_as_it_is(self):
        self.read_as_it_is(self.block())

    def test_a_path_full_of_special_characters_is_taken_as_it_is(self):
        disk = self.raw()
        path = self.images / 'a,b:c "d" $(e).raw'
        os.rename(disk.path, path)
        plan = self.guest(self.raw(), running=False)
        self.fill(disk.__class__('vda', 'file', str(path), 'raw'), 1)
        object.__setattr__(plan.disk, 'path', str(path))
        with self.strategy.freeze(plan) as frozen, \
                read.Disk(frozen.uri) as nbd:
            [(_, piece), *_] = nbd.read([(0, 4096)])
        self.assertEqual(b'\1' * 4096, bytes(piece))

    def test_the_server_ends_when_nobody_has_read(self):
        plan = self.guest(self.qcow2(), running=False)
        with self.strategy.freeze(plan):
            server = self.server()
        self.assert_ends(server)
        self.assert_nothing_left(plan)

    def test_the_server_ends_by_itself_when_its_reader_dies(self):
        plan = self.guest(self.qcow2(), running=False)
        with self.strategy.freeze(plan) as frozen:
            server = self.server()
            with read.Disk(frozen.uri):
                pass
            self.assert_ends(server)

    def test_a_server_that_is_killed_is_an_error_and_leaves_nothing(self):
        plan = self.guest(self.qcow2(), running=False)
        self.fill(plan.disk, CONTENT)
        with self.strategy.freeze(plan) as frozen, \
                read.Disk(frozen.uri) as nbd:
            server = self.server()
            signal.pidfd_send_signal(server, signal.SIGKILL)
            self.assert_ends(server)
            self.assertRaises(exception.DiskReadError, list,
                              nbd.read([(0, nbd.size)]))
        self.assert_nothing_left(plan)

    def test_a_disk_that_a_running_guest_has_is_refused(self):
        for disk in (self.qcow2(), self.raw()):
            # Somebody has started it just now.
            plan = dataclasses.replace(self.guest(disk), running=False)
            with contextlib.ExitStack() as stack:
                error = self.assertRaises(
                    exception.FreezeFailed, stack.enter_context,
                    self.strategy.freeze(plan))
            self.assertIn('lock', str(error))
            self.assert_nothing_left(plan)

    def test_a_guest_can_not_start_while_its_disk_is_read(self):
        plan = self.guest(self.qcow2(), running=False)
        with self.strategy.freeze(plan):
            self.assertRaisesRegex(
                Exception, 'lock', plan.guest._domain.create)
        plan.guest._domain.create()

    def test_a_suspended_guest_s_disk_is_crash_consistent(self):
        plan = self.guest(self.qcow2())
        plan.guest.save_memory_state()
        self.addCleanup(plan.guest._domain.managedSaveRemove)
        plan = self.plan_of(plan.instance, plan.disk)
        with self.strategy.freeze(plan) as frozen:
            self.assertEqual(freeze_base.Consistency.CRASH,
                             frozen.consistency)
        self.assertTrue(plan.guest._domain.hasManagedSaveImage())

    def test_a_missing_disk_is_an_error_that_names_it(self):
        plan = self.guest(self.qcow2(), running=False)
        os.unlink(plan.disk.path)
        with contextlib.ExitStack() as stack:
            error = self.assertRaises(
                exception.FreezeFailed, stack.enter_context,
                self.strategy.freeze(plan))
        self.assertIn(plan.disk.path, str(error))
        self.assert_nothing_left(plan)


BEFORE, AFTER = contract.BEFORE, contract.AFTER


class SuspendedTest(contract.RunningGuestContract, contract.RawDiskContract,
                    base.GuestTestCase):
    """Guests that run, and are suspended for the freeze."""

    def setUp(self):
        super().setUp()
        self.strategy = cold.ColdStrategy(self.driver)

    def state(self, plan):
        return tuple(self.host.get_guest(plan.instance)._domain.state())

    def test_its_cpus_are_powered_up_and_its_clock_is_set(self):
        plan = self.guest(self.qcow2())
        with mock.patch.object(
                self.driver.cpu_api, 'power_up_for_instance') as power_up, \
                mock.patch.object(plan.guest, 'sync_guest_time') as sync, \
                self.strategy.freeze(plan):
            power_up.assert_called_once_with(plan.instance)
            sync.assert_called_once_with()

    def test_a_guest_that_can_not_be_put_on_an_overlay_is_not_suspended(self):
        plan = self.guest(self.qcow2())
        overlay = self.images / plan.instance.uuid / 'disk.snapext'
        overlay.write_text('an earlier one')
        number = plan.guest.id
        text = self.freeze_fails(plan, exception.FreezeFailed)
        self.assertIn(str(overlay), text)
        self.assertEqual(number, self.host.get_guest(plan.instance).id)
        overlay.unlink()
        self.assert_nothing_left(plan)

    def test_where_it_can_not_be_resumed_on_the_overlay_it_is_on_its_disk(
            self):
        disk = self.qcow2()
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        before = self.definitions(plan)
        with mock.patch.object(
                self.driver, '_create_guest', side_effect=[
                    libvirt.libvirtError('no memory'), mock.DEFAULT],
                wraps=self.driver._create_guest):
            text = self.freeze_fails(plan, exception.FreezeFailed)
        self.assertIn('no memory', text)
        self.assertEqual((libvirt.VIR_DOMAIN_RUNNING,
                          libvirt.VIR_DOMAIN_RUNNING_RESTORED),
                         self.state(plan))
        self.assert_same(before, self.definitions(plan))
        self.assert_nothing_left(plan)

    def test_where_the_overlay_fails_half_way_it_is_on_its_disk(self):
        plan = self.guest(self.qcow2())
        before = self.definitions(plan)
        # When its definition is on the overlay, and its memory is not.
        with mock.patch.object(
                libvirt.virDomain, 'managedSaveDefineXML',
                side_effect=libvirt.libvirtError('disk full')):
            text = self.freeze_fails(plan, exception.FreezeFailed)
        self.assertIn('disk full', text)
        self.assertEqual(libvirt.VIR_DOMAIN_RUNNING, self.state(plan)[0])
        self.assert_same(before, self.definitions(plan))
        self.assert_nothing_left(plan)

    def test_one_that_can_not_be_resumed_at_all_keeps_its_memory(self):
        plan = self.guest(self.qcow2())
        with mock.patch.object(
                self.driver, '_create_guest',
                side_effect=libvirt.libvirtError('no memory')):
            text = self.freeze_fails(plan, exception.ReleaseFailed)
        self.assertIn(f'virsh start {plan.instance.name}', text)
        self.assertIn('no memory', text)
        self.assertTrue(plan.guest._domain.hasManagedSaveImage())
        self.recover(plan)
        self.assertEqual(libvirt.VIR_DOMAIN_RUNNING_RESTORED,
                         self.state(plan)[1])
        self.assert_nothing_left(plan)

    def test_a_guest_that_is_powered_off_meanwhile_has_its_writes(self):
        disk = self.raw()
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        with self.strategy.freeze(plan):
            self.write_as_guest(plan, AFTER)
            plan.guest.poweroff()
        self.assert_nothing_left(plan)
        self.assert_holds(disk, AFTER)
        plan.guest._domain.create()

    def test_one_that_is_suspended_meanwhile_has_memory_and_writes(self):
        disk = self.qcow2()
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        with self.strategy.freeze(plan):
            self.write_as_guest(plan, AFTER)
            # As libvirt-guests does at the host's shutdown.
            plan.guest.save_memory_state()
        self.assertEqual([], os.listdir(self.images / plan.instance.uuid))
        self.assert_holds(disk, AFTER)
        plan.guest.launch()
        self.assertEqual(libvirt.VIR_DOMAIN_RUNNING_RESTORED,
                         self.state(plan)[1])
        self.assert_nothing_left(plan)
