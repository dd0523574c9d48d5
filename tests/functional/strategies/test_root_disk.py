# SPDX-License-Identifier: Apache-2.0
"""A guest whose ephemeral disk comes before its root disk.

Nova defines such a guest for an image with root_device_name=/dev/vdb and a
flavor with an ephemeral disk.
"""

import dataclasses
import uuid

import libvirt
import libvirt_qemu

from nova_snapext import plan as planning
from nova_snapext.strategies import backup
from nova_snapext.strategies import cold
from nova_snapext.strategies import external
from nova_snapext.strategies import internal
from nova_snapext.strategies import native
from tests.functional import base
from tests.functional.strategies import contract

ROOT, EPHEMERAL, AFTER = 0x22, 0x44, 0x33

DOMAIN = """
<domain type='{virt_type}'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>32</memory>
  <os><type arch='x86_64'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='{directory}/disk'/>
      <target dev='vdb' bus='virtio'/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='{directory}/disk.eph0'/>
      <target dev='vda' bus='virtio'/>
    </disk>
  </devices>
</domain>
"""

OPERATORS_SNAPSHOT = """
<domainsnapshot>
  <disks>
    <disk name='vda' snapshot='no'/>
    <disk name='vdb' snapshot='external'>
      <source file='{directory}/disk.snap1'/>
    </disk>
  </disks>
</domainsnapshot>
"""


class SecondDiskTest(contract.FreezeAssertions, base.GuestTestCase):

    def guest_with_root_disk_second(self, running=True):
        """Define a guest, and start it.

        :returns: the plan of its snapshot, with the disk that is found
        """
        instance = base.FakeInstance(f'guest-{uuid.uuid4()}')
        instance.root_device_name = '/dev/vdb'
        self.own = self.images / instance.uuid
        self.own.mkdir()
        self.root, self.ephemeral = (
            planning.RootDisk(target, 'file', str(self.own / name), 'qcow2')
            for target, name in (('vdb', 'disk'), ('vda', 'disk.eph0')))
        for disk, pattern in ((self.root, ROOT), (self.ephemeral, EPHEMERAL)):
            base.run('qemu-img', 'create', '-q', '-f', 'qcow2', disk.path,
                     str(base.DISK_SIZE))
            self.fill(disk, pattern)
        domain = self.host.get_connection().defineXML(DOMAIN.format(
            virt_type=base.conf.CONF.libvirt.virt_type, name=instance.name,
            uuid=instance.uuid, directory=self.own))
        self.addCleanup(self.remove, instance)
        if running:
            domain.create()
        return self.found(instance)

    def found(self, instance):
        """Return the plan of a snapshot of the disk that is found."""
        disk = planning.find_root_disk(self.host.get_guest(instance), instance)
        return dataclasses.replace(
            self.plan_of(instance, disk), image_id=str(uuid.uuid4()))

    def write_to_root_disk(self, plan):
        for command in (f'"write -P {AFTER} 0 {base.DISK_SIZE}"', 'flush'):
            libvirt_qemu.qemuMonitorCommand(
                plan.guest._domain,
                'qemu-io -d /machine/peripheral/virtio-disk1/virtio-backend '
                f'{command}',
                libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP)

    def root_disk_is_frozen(self, strategy, running=True):
        plan = self.guest_with_root_disk_second(running)
        self.assertEqual(self.root, plan.disk)
        self.strategy = strategy(self.driver)
        self.assertIsNone(self.strategy.unsupported_reason(plan))
        before = self.definitions(plan)
        with self.strategy.freeze(plan) as frozen:
            if running:
                self.write_to_root_disk(plan)
            self.assertEqual({ROOT}, self.content(frozen))
        self.assert_same(before, self.definitions(plan))
        self.assertEqual({'disk', 'disk.eph0'},
                         {path.name for path in self.own.iterdir()})
        if running:
            plan.guest.poweroff()
        self.assert_holds(self.root, AFTER if running else ROOT)
        self.assert_holds(self.ephemeral, EPHEMERAL)

    def test_definition_has_the_ephemeral_disk_first(self):
        plan = self.guest_with_root_disk_second(running=False)
        definition = plan.guest.get_xml_desc()
        self.assertLess(definition.index('disk.eph0'),
                        definition.index('/disk\''))

    def test_root_disk_is_frozen_by_backup(self):
        self.root_disk_is_frozen(backup.BackupStrategy)

    def test_root_disk_is_frozen_by_external(self):
        self.root_disk_is_frozen(external.ExternalStrategy)

    def test_root_disk_of_a_running_guest_is_frozen_by_cold(self):
        self.root_disk_is_frozen(cold.ColdStrategy)

    def test_root_disk_of_a_shut_off_guest_is_frozen_by_cold(self):
        self.root_disk_is_frozen(cold.ColdStrategy, running=False)

    def test_root_disk_of_a_running_guest_is_frozen_by_internal(self):
        self.root_disk_is_frozen(internal.InternalStrategy)

    def test_root_disk_of_a_shut_off_guest_is_frozen_by_internal(self):
        self.root_disk_is_frozen(internal.InternalStrategy, running=False)

    def test_snapshot_of_nova_is_refused(self):
        plan = self.guest_with_root_disk_second()
        self.assertIn('vda', native.NativeStrategy(
            self.driver).unsupported_reason(plan))

    def test_operator_s_snapshot_over_the_root_disk_is_the_root_disk(self):
        plan = self.guest_with_root_disk_second()
        plan.guest.create_snapshot(
            OPERATORS_SNAPSHOT.format(directory=self.own),
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY |
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA)
        instance = plan.instance
        # The chain tells it, also without the name.
        for instance.root_device_name in ('/dev/vdb', None):
            plan = self.found(instance)
            self.assertEqual(('vdb', f'{self.own}/disk.snap1'),
                             (plan.disk.target, plan.disk.path))
        self.write_to_root_disk(plan)
        with backup.BackupStrategy(self.driver).freeze(plan) as frozen:
            self.assertEqual({AFTER}, self.content(frozen))
