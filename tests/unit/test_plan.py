# SPDX-License-Identifier: Apache-2.0

from unittest import mock

from nova.virt.libvirt import guest as libvirt_guest

from nova_snapext import exception
from nova_snapext import plan as planning
from tests.unit import base

DOMAIN = """
<domain type='qemu'>
  <os><type>hvm</type></os>
  <devices>
    <disk type='{storage}' device='{device}'>
      <driver name='qemu' type='{format}'/>
      <source {source}>{encryption}</source>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/>
      <source file='/i/disk.config'/>
      <target dev='vdb' bus='virtio'/>
    </disk>
  </devices>
</domain>
"""


class StrangeDefinitionTest(base.TestCase):

    def test_one_without_a_root_disk_is_an_error_that_says_what_to_do(self):
        self.flags(virt_type='qemu', group='libvirt')
        for definition in (
                '<domain/>', '<domain><devices/></domain>', '', '<domain',
                '<domain><devices><disk type="mount"/></devices></domain>',
                '<domain><devices><disk/></devices></domain>'):
            domain = mock.MagicMock()
            domain.XMLDesc.return_value = definition
            domain.UUIDString.return_value = 'uuid-of-guest'
            error = self.assertRaises(
                exception.RootDiskUnknown, planning.root_disk,
                libvirt_guest.Guest(domain))
            self.assertIn('virsh dumpxml uuid-of-guest', str(error))


class RootDiskTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.flags(virt_type='qemu', group='libvirt')

    def root_disk(self, storage='file', disk_format='qcow2',
                  source='file="/i/disk"', encryption='', device='disk'):
        domain = mock.MagicMock()
        domain.XMLDesc.return_value = DOMAIN.format(
            storage=storage, format=disk_format, source=source,
            encryption=encryption, device=device)
        return planning.root_disk(libvirt_guest.Guest(domain))

    def test_it_is_the_first_disk(self):
        self.assertEqual(base.QCOW2, self.root_disk())

    def test_a_logical_volume_is_block_storage(self):
        disk = self.root_disk('block', 'raw', 'dev="/dev/vg/1_disk"')
        self.assertEqual(('block', '/dev/vg/1_disk', 'raw'),
                         (disk.storage, disk.path, disk.format))

    def test_an_rbd_image_is_network_storage(self):
        disk = self.root_disk('network', 'raw',
                              'protocol="rbd" name="vms/1_disk"')
        self.assertEqual(('network', 'rbd:vms/1_disk'),
                         (disk.storage, disk.path))

    def test_luks_in_the_definition_makes_it_encrypted(self):
        self.assertTrue(self.root_disk(
            encryption='<encryption format="luks"/>').obstacle)

    def test_nova_s_own_encryption_makes_it_encrypted(self):
        self.flags(enabled=True, group='ephemeral_storage_encryption')
        self.assertTrue(self.root_disk().obstacle)

    def test_a_guest_that_runs_from_an_iso_is_not_served(self):
        self.assertIn('cdrom', self.root_disk(device='cdrom').obstacle)

    def test_containers_are_not_served(self):
        self.flags(virt_type='lxc', group='libvirt')
        self.assertIn('lxc', self.root_disk().obstacle)


class ImageFormatTest(base.TestCase):

    def image_format(self, disk_format='qcow2', path='/i/disk'):
        return planning.image_format_of(planning.RootDisk(
            'vda', 'file', path, disk_format))

    def test_it_is_that_of_the_disk(self):
        self.assertEqual('qcow2', self.image_format())
        self.assertEqual('raw', self.image_format('raw'))

    def test_snapshot_image_format_overrides_the_disk_s(self):
        self.flags(snapshot_image_format='raw', group='libvirt')
        self.assertEqual('raw', self.image_format())
        self.flags(snapshot_image_format='qcow2', group='libvirt')
        self.assertEqual('qcow2', self.image_format('raw', '/dev/vg/disk'))

    def test_block_and_rbd_disks_become_raw(self):
        self.assertEqual('raw', self.image_format('raw', '/dev/vg/disk'))
        self.assertEqual('raw', self.image_format('raw', 'rbd:vms/disk'))
