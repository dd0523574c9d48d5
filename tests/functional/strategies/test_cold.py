# SPDX-License-Identifier: Apache-2.0

import collections
import contextlib
import dataclasses
import os
import select
import signal
import stat
from unittest import mock

import fixtures
import libvirt

from nova_snapext import encode
from nova_snapext import exception
from nova_snapext import plan as planning
from nova_snapext import read
from nova_snapext.strategies import cold
from tests.functional import base
from tests.functional.strategies import contract

CONTENT = 0x44


class ColdTest(base.GuestTestCase):

    def setUp(self):
        super().setUp()
        self.strategy = cold.ColdStrategy(self.driver)

    def server(self):
        """Return a pidfd of the process that serves the only frozen disk."""
        [pid_file] = self.freezes.glob('*/*/pid')
        pidfd = os.pidfd_open(int(pid_file.read_text()))
        self.addCleanup(os.close, pidfd)
        return pidfd

    def assert_ends(self, pidfd):
        self.assertTrue(select.select([pidfd], [], [], 30)[0])

    def device_without_lock(self):
        """Return a block device, and the guest's own node of it.

        QEMU's locks on the two do not meet, as if libvirt had made the node
        in the guest's own /dev.
        """
        disk = self.block()
        node = self.images / 'node'
        os.mknod(node, stat.S_IFBLK | 0o600, os.stat(disk.path).st_rdev)
        return disk, dataclasses.replace(disk, path=str(node))

    def shut_off_guest_of_device(self):
        disk, node = self.device_without_lock()
        self.fill(disk, CONTENT)
        return dataclasses.replace(
            self.guest(node, running=False), disk=disk)

    def assert_no_image_is_complete(self, frozen):
        """Check that no stream of an image reaches its end."""
        with read.Disk(frozen.uri, lost_reason=frozen.lost_reason) as disk, \
                encode.encoder('raw', disk) as encoder:
            error = self.assertRaises(
                exception.DiskReadError, collections.deque, encoder.stream())
        self.assertIn('was started', str(error))

    def reads_disk_of_shut_off_guest(self, disk):
        self.fill(disk, CONTENT)
        plan = self.guest(disk, running=False)
        with self.strategy.freeze(plan) as frozen:
            self.assertEqual(planning.Consistency.OFFLINE,
                             frozen.consistency)
            server = self.server()
            with read.Disk(frozen.uri) as nbd:
                self.assertEqual({CONTENT}, {
                    byte for _, chunk in nbd.read([(0, nbd.size)])
                    for byte in set(bytes(chunk))})
            self.assertIsNone(frozen.lost_reason())
        self.assert_ends(server)
        self.assert_nothing_left(plan)

    def test_qcow2_of_shut_off_guest_is_read(self):
        self.reads_disk_of_shut_off_guest(self.qcow2())

    def test_backing_chain_of_shut_off_guest_is_read(self):
        self.reads_disk_of_shut_off_guest(self.chained_qcow2())

    def test_raw_file_of_shut_off_guest_is_read(self):
        self.reads_disk_of_shut_off_guest(self.raw())

    def test_block_device_of_shut_off_guest_is_read(self):
        self.reads_disk_of_shut_off_guest(self.block())

    def test_path_with_special_characters_is_read(self):
        disk = self.raw()
        path = self.images / 'a,b:c "d" $(e).raw'
        os.rename(disk.path, path)
        plan = self.guest(self.raw(), running=False)
        self.fill(disk.__class__('vda', 'file', str(path), 'raw'), 1)
        object.__setattr__(plan.disk, 'path', str(path))
        with self.strategy.freeze(plan) as frozen, \
                read.Disk(frozen.uri) as nbd:
            [(_, chunk), *_] = nbd.read([(0, 4096)])
        self.assertEqual(b'\1' * 4096, bytes(chunk))

    def test_server_without_any_reader_ends_with_the_release(self):
        plan = self.guest(self.qcow2(), running=False)
        with self.strategy.freeze(plan):
            server = self.server()
        self.assert_ends(server)
        self.assert_nothing_left(plan)

    def test_server_ends_when_its_reader_disconnects(self):
        plan = self.guest(self.qcow2(), running=False)
        with self.strategy.freeze(plan) as frozen:
            server = self.server()
            with read.Disk(frozen.uri):
                pass
            self.assert_ends(server)

    def test_killed_server_fails_the_read_and_leaves_nothing(self):
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

    def test_disk_of_a_guest_started_just_now_is_refused(self):
        for disk in (self.qcow2(), self.raw()):
            # The plan was made before the guest was started.
            plan = dataclasses.replace(self.guest(disk), running=False)
            with contextlib.ExitStack() as stack:
                error = self.assertRaises(
                    exception.FreezeFailed, stack.enter_context,
                    self.strategy.freeze(plan))
            self.assertIn('lock', str(error))
            self.assert_nothing_left(plan)

    def test_block_device_of_a_guest_started_just_now_is_refused(self):
        disk, node = self.device_without_lock()
        # The plan was made before the guest was started.
        plan = dataclasses.replace(self.guest(node), disk=disk,
                                   running=False)
        with contextlib.ExitStack() as stack:
            error = self.assertRaises(
                exception.FreezeFailed, stack.enter_context,
                self.strategy.freeze(plan))
        self.assertIn('has just been started', str(error))
        self.assert_nothing_left(plan)

    def test_no_image_is_complete_if_the_guest_of_a_device_is_started(self):
        plan = self.shut_off_guest_of_device()
        with self.strategy.freeze(plan) as frozen:
            plan.guest._domain.create()
            self.assert_no_image_is_complete(frozen)
        self.assert_nothing_left(plan)

    def test_no_image_is_complete_if_a_guest_wrote_and_is_shut_off(self):
        plan = self.shut_off_guest_of_device()
        with self.strategy.freeze(plan) as frozen:
            plan.guest._domain.create()
            self.run_as_guest(plan, 'write -P 1 4M 64k')
            plan.guest.poweroff()
            self.assert_no_image_is_complete(frozen)
        self.assert_nothing_left(plan)

    def test_image_of_a_device_is_complete_although_libvirtd_restarts(self):
        # There is no receiver for Nova's notifications of that.
        self.useFixture(fixtures.MockPatch('nova.rpc.get_notifier'))
        self.useFixture(fixtures.MockPatch(
            'nova.compute.utils.notify_about_libvirt_connect_error'))
        plan = self.shut_off_guest_of_device()
        with self.strategy.freeze(plan) as frozen:
            self.libvirtd.kill()
            self.libvirtd.start()
            self.assertIsNone(frozen.lost_reason())

    def test_guest_can_not_start_while_its_disk_is_read(self):
        plan = self.guest(self.qcow2(), running=False)
        with self.strategy.freeze(plan):
            self.assertRaisesRegex(
                Exception, 'lock', plan.guest._domain.create)
        plan.guest._domain.create()

    def test_disk_of_suspended_guest_is_crash_consistent(self):
        plan = self.guest(self.qcow2())
        plan.guest.save_memory_state()
        self.addCleanup(plan.guest._domain.managedSaveRemove)
        plan = self.plan_of(plan.instance, plan.disk)
        with self.strategy.freeze(plan) as frozen:
            self.assertEqual(planning.Consistency.CRASH,
                             frozen.consistency)
        self.assertTrue(plan.guest._domain.hasManagedSaveImage())

    def test_missing_disk_fails_with_its_path(self):
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
    """Running guests, which are suspended for the freeze."""

    def setUp(self):
        super().setUp()
        self.strategy = cold.ColdStrategy(self.driver)

    def state(self, plan):
        return tuple(self.host.get_guest(plan.instance)._domain.state())

    def test_resumed_guest_has_its_cpus_powered_up_and_its_clock_set(self):
        plan = self.guest(self.qcow2())
        with mock.patch.object(
                self.driver.cpu_api, 'power_up_for_instance') as power_up, \
                mock.patch.object(plan.guest, 'sync_guest_time') as sync, \
                self.strategy.freeze(plan):
            power_up.assert_called_once_with(plan.instance)
            sync.assert_called_once_with()

    def test_guest_that_can_not_have_an_overlay_is_not_suspended(self):
        plan = self.guest(self.qcow2())
        overlay = self.images / plan.instance.uuid / 'disk.snapext'
        overlay.write_text('an earlier one')
        number = plan.guest.id
        text = self.freeze_fails(plan, exception.FreezeFailed)
        self.assertIn(str(overlay), text)
        self.assertEqual(number, self.host.get_guest(plan.instance).id)
        overlay.unlink()
        self.assert_nothing_left(plan)

    def test_guest_is_resumed_on_its_disk_if_it_can_not_on_the_overlay(self):
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

    def test_guest_is_resumed_on_its_disk_if_the_switch_fails_half_way(self):
        plan = self.guest(self.qcow2())
        before = self.definitions(plan)
        # The persistent definition is on the overlay, the saved memory not.
        with mock.patch.object(
                libvirt.virDomain, 'managedSaveDefineXML',
                side_effect=libvirt.libvirtError('disk full')):
            text = self.freeze_fails(plan, exception.FreezeFailed)
        self.assertIn('disk full', text)
        self.assertEqual(libvirt.VIR_DOMAIN_RUNNING, self.state(plan)[0])
        self.assert_same(before, self.definitions(plan))
        self.assert_nothing_left(plan)

    def test_guest_that_can_not_be_resumed_keeps_its_memory(self):
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

    def test_guest_powered_off_during_the_snapshot_keeps_its_writes(self):
        disk = self.raw()
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        with self.strategy.freeze(plan):
            self.write_as_guest(plan, AFTER)
            plan.guest.poweroff()
        self.assert_nothing_left(plan)
        self.assert_holds(disk, AFTER)
        plan.guest._domain.create()

    def test_guest_suspended_during_the_snapshot_keeps_memory_and_writes(self):
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
