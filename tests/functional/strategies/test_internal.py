# SPDX-License-Identifier: Apache-2.0

import contextlib
import dataclasses
import itertools
import os
import pathlib
import threading
import uuid

import fixtures
import libvirt
import libvirt_qemu
from nova.privsep import utils as privsep_utils
from oslo_config import fixture as config_fixture
from oslo_utils import units

from nova_snapext import exception
from nova_snapext.hypervisor import qemu_nbd
from nova_snapext import plan as planning
from nova_snapext import read
from nova_snapext.strategies import backup
from nova_snapext.strategies import internal
from tests.functional import base
from tests.functional.strategies import contract

BEFORE, BETWEEN, AFTER = 0x22, 0x2f, 0x33

DOMAIN = """
<domain type='{virt_type}'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>32</memory>
  <os><type arch='x86_64'>hvm</type></os>
  <devices>{devices}</devices>
</domain>
"""

DISK = """
<disk type='file' device='disk'>
  <driver name='qemu' type='{format}' cache='{cache}'/>
  <source file='{path}'/>
  <target dev='{target}' bus='virtio'/>
</disk>
"""

CONFIG_DRIVE = """
<disk type='file' device='cdrom'>
  <driver name='qemu' type='raw'/>
  <source file='{path}'/>
  <target dev='sda' bus='sata'/>
  <readonly/>
</disk>
"""

# QEMU can't save a guest that shares memory with another process.
UNSAVABLE = """
<shmem name='snapext-test' role='peer'>
  <model type='ivshmem-plain'/>
  <size unit='M'>4</size>
</shmem>
"""

OPERATORS_SNAPSHOT = (
    '<domainsnapshot><name>before-upgrade</name></domainsnapshot>')


class InternalTest(contract.RunningGuestContract, base.GuestTestCase):

    def setUp(self):
        super().setUp()
        self.strategy = internal.InternalStrategy(self.driver)
        self.images_of = {}

    def guest(self, disk, running=True, others=(), devices=''):
        """Define a guest, and start it.

        :returns: the plan of its snapshot
        """
        instance = base.FakeInstance(f'guest-{uuid.uuid4()}')
        disks = [dataclasses.replace(each, target=f'vd{letter}')
                 for each, letter in zip((disk, *others), 'abc', strict=False)]
        # As in Nova. qemu-nbd reads through the host's page cache.
        cache = ('none' if privsep_utils.supports_direct_io(str(self.images))
                 else 'writeback')
        domain = self.host.get_connection().defineXML(DOMAIN.format(
            virt_type=base.conf.CONF.libvirt.virt_type, name=instance.name,
            uuid=instance.uuid, devices=devices + ''.join(
                DISK.format(cache=cache, **dataclasses.asdict(each))
                for each in disks)))
        self.addCleanup(self.remove, instance)
        if running:
            domain.create()
        self.images_of[instance.uuid] = [each.path for each in disks]
        return dataclasses.replace(
            self.plan_of(instance, disk), image_id=str(uuid.uuid4()))

    def write_as_guest(self, plan, pattern):
        super().write_as_guest(plan, pattern)
        # Otherwise QEMU keeps the new tables of the qcow2 in its memory, and
        # readers of the file find the old ones.
        libvirt_qemu.qemuMonitorCommand(
            plan.guest._domain,
            'qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend flush',
            libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP)

    def write_before_serving(self, plan):
        """Make the guest write before qemu-nbd opens the disk."""
        def serve(*args):
            self.write_as_guest(plan, BETWEEN)
            return serve_snapshot(*args)

        serve_snapshot = qemu_nbd.serve
        self.useFixture(fixtures.MockPatchObject(qemu_nbd, 'serve', serve))

    @contextlib.contextmanager
    def written_all_the_time(self, plan):
        """Make the guest overwrite its disk in a loop."""
        over = threading.Event()

        def write():
            for pattern in itertools.cycle(range(1, 256)):
                self.write_as_guest(plan, pattern)
                if over.is_set():
                    return

        writer = threading.Thread(target=write)
        writer.start()
        try:
            yield
        finally:
            over.set()
            writer.join()

    def snapshots_in(self, path):
        return [line.split()[1] for line in base.run(
            'qemu-img', 'snapshot', '--force-share', '-l', path,
        ).splitlines()[2:]]

    def content_of(self, disk):
        self.assertEqual(base.DISK_SIZE, disk.size)
        return {byte for _, chunk in disk.read([(0, disk.size)])
                for byte in set(bytes(chunk))}

    def assert_clean(self, path):
        """Check that a file that no process uses has no leaked clusters."""
        base.run('qemu-img', 'check', '-q', path)

    def assert_nothing_left(self, plan):
        super().assert_nothing_left(plan)
        domain = self.host.get_guest(plan.instance)._domain
        self.assertEqual([], domain.snapshotListNames())
        for path in self.images_of[plan.instance.uuid]:
            if not path.endswith('.raw'):
                self.assertEqual([], self.snapshots_in(path))

    def assert_files_clean(self, plan):
        for path in self.images_of[plan.instance.uuid]:
            self.assert_clean(path)

    def assert_state(self, plan, state):
        domain = self.host.get_guest(plan.instance)._domain
        self.assertEqual(state, domain.state()[0])

    def refused(self, plan, error=exception.FreezeFailed):
        return self.freeze_fails(plan, error)

    def frozen_while_guest_writes(self, disk):
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        self.write_before_serving(plan)
        with self.strategy.freeze(plan) as frozen:
            self.assert_state(plan, libvirt.VIR_DOMAIN_RUNNING)
            self.write_as_guest(plan, AFTER)
            self.assertEqual({BEFORE}, self.content(frozen))
        self.assert_state(plan, libvirt.VIR_DOMAIN_RUNNING)
        self.assert_nothing_left(plan)
        plan.guest.poweroff()
        self.assert_holds(disk, AFTER)
        self.assert_files_clean(plan)

    def test_content_of_backing_file_is_read_through_the_chain(self):
        plan = self.guest(self.chained_qcow2())
        self.write_before_serving(plan)
        with self.strategy.freeze(plan) as frozen:
            self.assertEqual({0x11}, self.content(frozen))

    def test_disk_is_read_correctly_while_guest_overwrites_it(self):
        plan = self.guest(self.chained_qcow2())
        with self.written_all_the_time(plan):
            for _ in range(4):
                with self.strategy.freeze(plan) as frozen, \
                        read.Disk(frozen.uri) as nbd:
                    # Each write of the guest fills the whole disk with one
                    # byte. The snapshot is between two of them.
                    [byte] = self.content_of(nbd)
                    for _ in range(5):
                        self.assertEqual({byte}, self.content_of(nbd))
        self.assert_nothing_left(plan)
        plan.guest.poweroff()
        self.assert_files_clean(plan)

    def test_holes_stay_holes_although_guest_fills_them(self):
        disk = self.qcow2()
        base.run('qemu-io', '-f', 'qcow2', '-c', 'write -q -P 1 2M 1M',
                 disk.path)
        plan = self.guest(disk)
        self.write_before_serving(plan)
        with self.strategy.freeze(plan) as frozen, \
                read.Disk(frozen.uri) as nbd:
            data = [(extent.offset, extent.length)
                    for extent in nbd.extents() if extent.data]
        self.assertEqual([(2 * units.Mi, units.Mi)], data)

    def test_paused_guest_stays_paused_and_is_read(self):
        disk = self.qcow2()
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        plan.guest.pause()
        before = plan.guest._domain.state()
        with self.strategy.freeze(plan) as frozen:
            self.assertEqual(before, plan.guest._domain.state())
            self.assertEqual({BEFORE}, self.content(frozen))
        self.assertEqual(before, plan.guest._domain.state())
        self.assert_nothing_left(plan)

    def test_guest_that_is_shut_off_is_read(self):
        for disk in (self.qcow2(), self.chained_qcow2()):
            self.fill(disk, BEFORE)
            plan = self.guest(disk, running=False)
            with self.strategy.freeze(plan) as frozen:
                self.assertEqual(planning.Consistency.OFFLINE,
                                 frozen.consistency)
                self.assertEqual({BEFORE}, self.content(frozen))
            self.assert_nothing_left(plan)
            self.assert_files_clean(plan)

    def test_guest_that_was_shut_off_may_start_and_write_during_snapshot(self):
        disk = self.qcow2()
        self.fill(disk, BEFORE)
        plan = self.guest(disk, running=False, others=[self.qcow2()])
        with self.strategy.freeze(plan) as frozen:
            plan.guest._domain.create()
            self.write_as_guest(plan, AFTER)
            self.assertEqual({BEFORE}, self.content(frozen))
        self.assert_nothing_left(plan)
        plan.guest.poweroff()
        self.assert_holds(disk, AFTER)
        self.assert_files_clean(plan)

    def test_disk_of_suspended_guest_is_crash_consistent(self):
        plan = self.guest(self.qcow2())
        plan.guest.save_memory_state()
        plan = dataclasses.replace(plan, running=False)
        with self.strategy.freeze(plan) as frozen:
            self.assertEqual(planning.Consistency.CRASH,
                             frozen.consistency)
        self.assertTrue(plan.guest._domain.hasManagedSaveImage())
        self.assert_nothing_left(plan)
        plan.guest._domain.create()  # out of its saved memory
        self.assertFalse(plan.guest._domain.hasManagedSaveImage())

    def test_guest_without_agent_is_crash_consistent(self):
        with self.strategy.freeze(self.guest(self.qcow2())) as frozen:
            self.assertEqual(planning.Consistency.CRASH,
                             frozen.consistency)

    def test_snapshot_is_deleted_from_all_disks_but_config_drive(self):
        config_drive = self.raw().path
        plan = self.guest(
            self.chained_qcow2(), others=[self.qcow2(), self.qcow2()],
            devices=CONFIG_DRIVE.format(path=config_drive))
        before = pathlib.Path(config_drive).read_bytes()
        self.assertIsNone(self.strategy.unsupported_reason(plan))
        with self.strategy.freeze(plan):
            for path in self.images_of[plan.instance.uuid]:
                self.assertEqual([f'snapext-{plan.image_id}'],
                                 self.snapshots_in(path))
        self.assert_nothing_left(plan)
        plan.guest.poweroff()
        self.assert_files_clean(plan)
        self.assertEqual(before, pathlib.Path(config_drive).read_bytes())

    def test_domain_is_never_tainted(self):
        plan = self.guest(self.qcow2(), others=[self.qcow2()])
        with self.strategy.freeze(plan):
            self.assertEqual([], self.taints(plan))
        self.assertEqual([], self.taints(plan))

    def taints(self, plan):
        return plan.guest._domain.messages(
            libvirt.VIR_DOMAIN_MESSAGE_TAINTING)

    def test_repeated_snapshots_do_not_grow_the_file(self):
        disk = self.qcow2()
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        sizes = []
        for _ in range(6):
            with self.strategy.freeze(plan):
                self.write_as_guest(plan, AFTER)
            sizes.append(os.stat(disk.path).st_size)
        # Each snapshot uses the clusters of the one before again.
        self.assertLessEqual(max(sizes[2:]), sizes[1])
        self.assert_nothing_left(plan)
        plan.guest.poweroff()
        self.assert_files_clean(plan)

    def test_guest_powered_off_during_snapshot_leaves_nothing(self):
        plan = self.guest(self.qcow2(), others=[self.qcow2()])
        with self.strategy.freeze(plan):
            plan.guest.poweroff()
        self.assert_nothing_left(plan)
        self.assert_files_clean(plan)

    def test_guest_rebooted_hard_during_snapshot_leaves_nothing(self):
        plan = self.guest(self.qcow2(), others=[self.qcow2()])
        xml = plan.guest.get_xml_desc(dump_inactive=True)
        with self.strategy.freeze(plan):
            plan.guest.poweroff()
            plan.guest.delete_configuration()
            self.host.get_connection().defineXML(xml).create()
        self.assert_nothing_left(plan)

    def test_instance_deleted_with_disks_during_snapshot_leaves_nothing(self):
        plan = self.guest(self.qcow2(), others=[self.qcow2()])
        xml = plan.guest.get_xml_desc(dump_inactive=True)
        with self.strategy.freeze(plan):
            plan.guest.poweroff()
            plan.guest.delete_configuration()
            for path in self.images_of[plan.instance.uuid]:
                os.unlink(path)
        self.assertEqual([], list(self.freezes.iterdir()))
        self.host.get_connection().defineXML(xml)  # for the clean-up

    def test_disks_without_their_guest_are_cleaned(self):
        plan = self.guest(self.qcow2(), others=[self.qcow2()])
        xml = plan.guest.get_xml_desc(dump_inactive=True)
        with self.strategy.freeze(plan):
            plan.guest.poweroff()
            plan.guest.delete_configuration()
        self.host.get_connection().defineXML(xml)
        self.assert_nothing_left(plan)
        self.assert_files_clean(plan)

    def test_guest_undefined_while_it_runs_leaves_nothing(self):
        plan = self.guest(self.qcow2())
        xml = plan.guest.get_xml_desc(dump_inactive=True)
        with self.strategy.freeze(plan):
            plan.guest.delete_configuration()
        self.host.get_connection().defineXML(xml)
        self.assert_nothing_left(plan)

    def test_disk_is_released_after_restart_of_libvirtd(self):
        disk = self.qcow2()
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        with self.strategy.freeze(plan) as frozen:
            self.libvirtd.kill()
            self.libvirtd.start()
            self.assertEqual({BEFORE}, self.content(frozen))
        self.assertEqual([], self.snapshots_in(disk.path))
        self.assertEqual([], list(self.freezes.iterdir()))
        self.assert_state(plan, libvirt.VIR_DOMAIN_RUNNING)

    def test_guest_runs_after_libvirtd_died_while_saving_its_memory(self):
        # There is no receiver for Nova's notifications of that.
        self.useFixture(fixtures.MockPatch('nova.rpc.get_notifier'))
        self.useFixture(fixtures.MockPatch(
            'nova.compute.utils.notify_about_libvirt_connect_error'))
        plan = self.guest(self.qcow2(), others=[self.qcow2()])
        died = threading.Event()

        def die(_connection, _domain, event, _detail, _opaque):
            if event == libvirt.VIR_DOMAIN_EVENT_SUSPENDED:
                self.libvirtd.kill()
                died.set()

        def start_again():
            died.wait()
            self.libvirtd.start()

        self.host.get_connection().domainEventRegisterAny(
            plan.guest._domain, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, die,
            None)
        starter = threading.Thread(target=start_again)
        starter.start()
        try:
            self.refused(plan)
        finally:
            died.set()
            starter.join()
        self.assert_state(plan, libvirt.VIR_DOMAIN_RUNNING)
        plan = dataclasses.replace(
            plan, guest=self.host.get_guest(plan.instance))
        self.assert_nothing_left(plan)

    def interrupt_deletion(self, interrupt, calls=1):
        """Interrupt libvirt's deletion, when it knows the snapshot.

        :param interrupt: called instead of the first calls
        """
        delete = libvirt.virDomainSnapshot.delete
        left = [interrupt] * calls

        def delete_or_interrupt(snapshot, flags=0):
            return (left.pop()(snapshot) if left
                    else delete(snapshot, flags))

        self.useFixture(fixtures.MockPatchObject(
            libvirt.virDomainSnapshot, 'delete', delete_or_interrupt))

    def delete_in_qemu(self, snapshot):
        """Delete a snapshot as QEMU does after its libvirtd is gone."""
        libvirt_qemu.qemuMonitorCommand(
            snapshot.getDomain(), f'delvm {snapshot.getName()}',
            libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP)

    def assert_can_be_undefined(self, plan):
        guest = self.host.get_guest(plan.instance)
        if guest.is_active():
            guest.poweroff()
        xml = guest.get_xml_desc(dump_inactive=True)
        guest._domain.undefine()
        self.host.get_connection().defineXML(xml)  # for the clean-up

    def left_half_deleted(self):
        """Leave a snapshot that libvirt knows, as after a kill -9."""
        def die(_snapshot):
            raise SystemExit

        plan = self.guest(self.qcow2(), others=[self.qcow2()])
        self.addCleanup(self.forget_snapshots, plan)
        self.interrupt_deletion(die)
        with contextlib.suppress(SystemExit), self.strategy.freeze(plan):
            pass
        self.assertEqual([f'snapext-{plan.image_id}'],
                         plan.guest._domain.snapshotListNames())
        return plan

    def test_guest_shut_off_after_half_a_deletion_can_be_undefined(self):
        plan = self.left_half_deleted()
        plan.guest.poweroff()
        self.recover(plan)
        self.assert_nothing_left(plan)
        self.assert_can_be_undefined(plan)
        self.assert_files_clean(plan)

    def test_guest_that_runs_after_half_a_deletion_can_be_undefined(self):
        plan = self.left_half_deleted()
        self.recover(plan)
        self.assert_nothing_left(plan)
        self.assert_can_be_undefined(plan)
        self.assert_files_clean(plan)

    def test_half_a_deletion_of_an_undefined_guest_is_finished(self):
        plan = self.left_half_deleted()
        plan.guest.poweroff()
        xml = plan.guest.get_xml_desc(dump_inactive=True)
        plan.guest._domain.undefineFlags(
            libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA)
        self.recover(plan)
        self.host.get_connection().defineXML(xml)  # for the clean-up
        self.assert_nothing_left(plan)

    def test_connection_lost_during_deletion_leaves_no_metadata(self):
        def lose(snapshot):
            with contextlib.suppress(libvirt.libvirtError):
                self.delete_in_qemu(snapshot)
            raise libvirt.libvirtError('client socket is closed')

        plan = self.guest(self.qcow2())
        self.addCleanup(self.forget_snapshots, plan)
        self.interrupt_deletion(lose, calls=2)
        with self.strategy.freeze(plan):
            pass
        self.assert_nothing_left(plan)
        self.assert_can_be_undefined(plan)

    def test_libvirtd_restarted_during_deletion_has_no_metadata(self):
        # There is no receiver for Nova's notifications of that.
        self.useFixture(fixtures.MockPatch('nova.rpc.get_notifier'))
        self.useFixture(fixtures.MockPatch(
            'nova.compute.utils.notify_about_libvirt_connect_error'))
        plan = self.guest(self.qcow2())

        def restart(snapshot):
            self.delete_in_qemu(snapshot)
            self.libvirtd.kill()
            self.libvirtd.start()
            raise libvirt.libvirtError('client socket is closed')

        self.interrupt_deletion(restart)
        with self.strategy.freeze(plan):
            pass
        plan = self.plan_of(plan.instance, plan.disk)
        self.assert_nothing_left(plan)
        self.assert_can_be_undefined(plan)

    def test_snapshots_of_operator_stay(self):
        disk = self.qcow2()
        plan = self.guest(disk, others=[self.qcow2()])
        domain = plan.guest._domain
        self.addCleanup(self.forget_snapshots, plan)
        domain.snapshotCreateXML(OPERATORS_SNAPSHOT)
        with self.strategy.freeze(plan):
            self.assertEqual(['before-upgrade'], domain.snapshotListNames())
        self.assertEqual('before-upgrade', domain.snapshotCurrent().getName())
        self.assertEqual(['before-upgrade'], domain.snapshotListNames())
        for path in self.images_of[plan.instance.uuid]:
            self.assertEqual(['before-upgrade'], self.snapshots_in(path))

    def forget_snapshots(self, plan):
        for snapshot in self.host.get_guest(
                plan.instance)._domain.listAllSnapshots():
            snapshot.delete(libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)

    def test_raw_second_disk_is_refused_by_name(self):
        for running in (True, False):
            plan = self.guest(self.qcow2(), running=running,
                              others=[self.raw()])
            self.assertIn('vdb has the format raw',
                          self.strategy.unsupported_reason(plan))

    def test_memory_without_space_is_refused_with_sizes(self):
        self.useFixture(config_fixture.Config(base.conf.CONF)).config(
            reserved_host_disk_mb=units.Mi)
        plan = self.guest(self.qcow2())
        reason = self.strategy.unsupported_reason(plan)
        self.assertIn('32 MiB', reason)
        self.assertIn(plan.disk.path, reason)

    def test_device_that_can_not_be_saved_is_named_and_leaves_nothing(self):
        plan = self.guest(self.qcow2(), devices=UNSAVABLE)
        self.assertIn('shmem', self.refused(plan))
        self.assert_state(plan, libvirt.VIR_DOMAIN_RUNNING)
        self.assert_nothing_left(plan)

    def test_disk_without_space_for_memory_is_an_error(self):
        disk = self.on_full_file_system(self.qcow2())
        plan = self.guest(disk)
        # The second is QEMU 9.1 and newer.
        self.assertRegex(self.refused(plan), 'while writing VM state|'
                                             'ram_save_setup failed')
        self.assert_state(plan, libvirt.VIR_DOMAIN_RUNNING)
        self.assert_nothing_left(plan)
        plan.guest.poweroff()
        self.assert_files_clean(plan)

    def on_full_file_system(self, disk):
        """Move a disk to a file system with only 64 KiB free."""
        device = self.block().path
        base.run('mkfs.ext4', '-q', '-m', '0', device)
        mount = self.images / 'full'
        mount.mkdir()
        libvirtd = self.libvirtd.daemons[1].identity().pid
        # Twice: libvirtd and QEMU have their own mount namespace.
        for enter in ((), ('nsenter', f'--target={libvirtd}', '--mount')):
            base.run(*enter, 'mount', device, str(mount))
            self.addCleanup(base.run, *enter, 'umount', str(mount))
        path = mount / 'disk.qcow2'
        base.run('mv', disk.path, str(path))
        left = os.statvfs(mount).f_bavail * os.statvfs(mount).f_frsize
        (mount / 'filler').write_bytes(b'\0' * (left - 64 * units.Ki))
        return dataclasses.replace(disk, path=str(path))

    def test_guest_with_job_is_refused(self):
        plan = self.guest(self.qcow2())
        with backup.BackupStrategy(self.driver).freeze(plan):
            self.forget_journal(plan)
            self.assertIn("'backup'", self.refused(plan, exception.GuestBusy))
        self.assert_nothing_left(plan)

    def test_disk_of_running_guest_is_locked_against_offline_snapshot(self):
        plan = dataclasses.replace(self.guest(self.qcow2()), running=False)
        self.assertIn('lock', self.refused(plan))
        self.assert_nothing_left(plan)
