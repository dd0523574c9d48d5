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


class UnknownDefinitionTest(base.TestCase):

    def test_definition_without_root_disk_fails_with_a_remedy(self):
        self.flags(virt_type='qemu', group='libvirt')
        for definition in (
                '<domain/>', '<domain><devices/></domain>', '', '<domain',
                '<domain><devices><disk type="mount"/></devices></domain>',
                '<domain><devices><disk/></devices></domain>'):
            domain = mock.MagicMock()
            domain.XMLDesc.return_value = definition
            domain.UUIDString.return_value = 'uuid-of-guest'
            error = self.assertRaises(
                exception.RootDiskUnknown, planning.find_root_disk,
                libvirt_guest.Guest(domain))
            self.assertIn('virsh dumpxml uuid-of-guest', str(error))


class RootDiskTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.flags(virt_type='qemu', group='libvirt')

    def find_root_disk(self, storage='file', disk_format='qcow2',
                       source='file="/i/disk"', encryption='', device='disk'):
        domain = mock.MagicMock()
        domain.XMLDesc.return_value = DOMAIN.format(
            storage=storage, format=disk_format, source=source,
            encryption=encryption, device=device)
        return planning.find_root_disk(libvirt_guest.Guest(domain))

    def test_first_disk_is_the_root_disk(self):
        self.assertEqual(base.QCOW2, self.find_root_disk())

    def test_logical_volume_is_block_storage(self):
        disk = self.find_root_disk('block', 'raw', 'dev="/dev/vg/1_disk"')
        self.assertEqual(('block', '/dev/vg/1_disk', 'raw'),
                         (disk.storage, disk.path, disk.format))

    def test_rbd_image_is_network_storage(self):
        disk = self.find_root_disk('network', 'raw',
                                   'protocol="rbd" name="vms/1_disk"')
        self.assertEqual(('network', 'rbd:vms/1_disk'),
                         (disk.storage, disk.path))

    def test_luks_disk_is_unsupported(self):
        self.assertTrue(self.find_root_disk(
            encryption='<encryption format="luks"/>').unsupported_reason)

    def test_disk_encrypted_by_nova_is_unsupported(self):
        self.flags(enabled=True, group='ephemeral_storage_encryption')
        self.assertTrue(self.find_root_disk().unsupported_reason)

    def test_guest_booted_from_an_iso_is_unsupported(self):
        self.assertIn('cdrom', self.find_root_disk(
            device='cdrom').unsupported_reason)

    def test_container_is_unsupported(self):
        self.flags(virt_type='lxc', group='libvirt')
        self.assertIn('lxc', self.find_root_disk().unsupported_reason)


class ImageFormatTest(base.TestCase):

    def image_format(self, disk_format='qcow2', path='/i/disk'):
        return planning.image_format_of(planning.RootDisk(
            'vda', 'file', path, disk_format))

    def test_image_has_the_format_of_the_disk(self):
        self.assertEqual('qcow2', self.image_format())
        self.assertEqual('raw', self.image_format('raw'))

    def test_snapshot_image_format_overrides_that_of_the_disk(self):
        self.flags(snapshot_image_format='raw', group='libvirt')
        self.assertEqual('raw', self.image_format())
        self.flags(snapshot_image_format='qcow2', group='libvirt')
        self.assertEqual('qcow2', self.image_format('raw', '/dev/vg/disk'))

    def test_block_and_rbd_disks_become_raw_images(self):
        self.assertEqual('raw', self.image_format('raw', '/dev/vg/disk'))
        self.assertEqual('raw', self.image_format('raw', 'rbd:vms/disk'))
