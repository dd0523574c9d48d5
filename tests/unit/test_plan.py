# SPDX-License-Identifier: Apache-2.0

import os
from unittest import mock

import fixtures
from nova.compute import vm_states
from nova import objects
from nova.virt.libvirt import guest as libvirt_guest

from nova_snapext import exception
from nova_snapext import plan as planning
from nova_snapext.resources import overlay
from tests.unit import base

DOMAIN = """
<domain type='qemu'>
  <os><type>hvm</type></os>
  <devices>{}</devices>
</domain>
"""

SOURCE_ATTRIBUTE = {'file': 'file', 'block': 'dev',
                    'network': "protocol='rbd' name"}


def source(path, storage='file', content=''):
    attribute = SOURCE_ATTRIBUTE[storage]
    return f"<source {attribute}='{path}'>{content}</source>"


def disk(target, path, storage='file', disk_format='qcow2', device='disk',
         bus='virtio', backing=(), more=''):
    """Return the element of a disk.

    :param backing: paths of its backing chain
    :param more: further elements
    """
    chain = '<backingStore/>' if backing else ''
    for each in reversed(backing):
        chain = f"<backingStore type='file'>{source(each)}{chain}" \
                f'</backingStore>'
    return (f"<disk type='{storage}' device='{device}'>"
            f"<driver name='qemu' type='{disk_format}'/>"
            f'{source(path, storage)}{chain}{more}'
            f"<target dev='{target}' bus='{bus}'/></disk>")


class RootDiskTestCase(base.TestCase):
    """Finds root disks.

    :ivar own: directory of the instance
    :ivar mapped: device name of the root's block device mapping; None: it has
        none
    """

    def setUp(self):
        super().setUp()
        self.instances = self.useFixture(fixtures.TempDir()).path
        self.flags(virt_type='qemu', group='libvirt')
        self.flags(instances_path=self.instances)
        self.target = self.instance()
        self.own = f'{self.instances}/{self.target.uuid}'
        self.mapped = None
        self.get_mappings = self.useFixture(fixtures.MockPatchObject(
            objects.BlockDeviceMappingList, 'get_by_instance_uuid')).mock
        self.get_mappings.side_effect = self.mappings

    def mappings(self, _context, instance_uuid):
        self.assertEqual(self.target.uuid, instance_uuid)
        return objects.BlockDeviceMappingList(objects=[
            objects.BlockDeviceMapping(
                instance_uuid=instance_uuid, boot_index=boot_index,
                device_name=name)
            for boot_index, name in ((-1, '/dev/vdz'), (0, self.mapped))
            if name])

    def guest(self, definition):
        domain = mock.MagicMock()
        domain.XMLDesc.return_value = definition
        domain.UUIDString.return_value = self.target.uuid
        return libvirt_guest.Guest(domain)

    def find(self, *disks, name='/dev/vda'):
        """Return the root disk of a guest.

        :param name: root_device_name of the instance
        """
        self.target.root_device_name = name
        return planning.find_root_disk(
            self.guest(DOMAIN.format(''.join(disks))), self.target)

    def assert_unknown(self, *disks, name='/dev/vda'):
        return str(self.assertRaises(
            exception.RootDiskUnknown, self.find, *disks, name=name))

    def own_disk(self, target, **attributes):
        return disk(target, f'{self.own}/disk', **attributes)

    def ephemeral(self, target, **attributes):
        return disk(target, f'{self.own}/disk.eph0', **attributes)


class UnknownDefinitionTest(RootDiskTestCase):

    def test_definition_without_root_disk_fails_with_a_remedy(self):
        for definition in (
                '<domain/>', '<domain><devices/></domain>', '', '<domain',
                '<domain><devices><disk type="mount"/></devices></domain>',
                '<domain><devices><disk/></devices></domain>'):
            error = self.assertRaises(
                exception.RootDiskUnknown, planning.find_root_disk,
                self.guest(definition), self.target)
            self.assertIn(f'virsh dumpxml {self.target.uuid}', str(error))

    def test_source_that_nova_does_not_know_is_an_error(self):
        self.assertIn('vda', self.assert_unknown(
            "<disk type='network'><source protocol='nbd' name='export'/>"
            "<target dev='vda'/></disk>"))

    def test_empty_drive_is_not_a_disk(self):
        drive = "<disk type='file' device='cdrom'><target dev='hda'/></disk>"
        self.assertEqual('vda', self.find(drive, self.own_disk('vda')).target)
        self.assertIn('has no disk', self.assert_unknown(drive))


class RootDiskTest(RootDiskTestCase):

    def test_file_of_the_instance_is_the_root_disk(self):
        self.assertEqual(
            planning.RootDisk('vda', 'file', f'{self.own}/disk', 'qcow2'),
            self.find(self.own_disk('vda'), self.ephemeral('vdb')))

    def test_logical_volume_is_block_storage(self):
        path = f'/dev/vg/{self.target.uuid}_disk'
        found = self.find(
            disk('vda', f'{path}.eph0', 'block', 'raw'),
            disk('vdb', path, 'block', 'raw'), name='/dev/vdb')
        self.assertEqual(planning.RootDisk('vdb', 'block', path, 'raw'), found)

    def test_rbd_image_is_network_storage(self):
        name = f'vms/{self.target.uuid}_disk'
        found = self.find(
            disk('vda', f'{name}.eph0', 'network', 'raw'),
            disk('vdb', name, 'network', 'raw'), name='/dev/vdb')
        self.assertEqual(
            planning.RootDisk('vdb', 'network', f'rbd:{name}', 'raw'), found)

    def test_disk_without_a_format_is_raw(self):
        self.assertEqual('raw', self.find(
            f"<disk type='file'>{source(self.own + '/disk')}"
            "<target dev='vda'/></disk>").format)

    def test_luks_disk_is_unsupported(self):
        self.assertTrue(self.find(self.own_disk(
            'vda', more='<encryption format="luks"/>')).unsupported_reason)

    def test_disk_encrypted_by_nova_is_unsupported(self):
        self.flags(enabled=True, group='ephemeral_storage_encryption')
        self.assertTrue(self.find(self.own_disk('vda')).unsupported_reason)

    def test_volume_that_was_encrypted_at_its_creation_is_unsupported(self):
        self.assertIn('encrypted', self.find(
            "<disk type='block'><source dev='/dev/mapper/"
            f"{self.target.uuid}_disk-dmcrypt'/><target dev='vda'/>"
            "</disk>").unsupported_reason)

    def test_guest_booted_from_an_iso_is_unsupported(self):
        found = self.find(
            self.own_disk('hda', device='cdrom', bus='ide'),
            self.ephemeral('vda'), name='/dev/hda')
        self.assertEqual('hda', found.target)
        self.assertIn('cdrom', found.unsupported_reason)

    def test_container_is_unsupported(self):
        self.flags(virt_type='lxc', group='libvirt')
        self.assertIn('lxc', self.find(
            self.own_disk('vda')).unsupported_reason)

    def test_container_without_a_disk_is_an_error(self):
        self.flags(virt_type='lxc', group='libvirt')
        self.assert_unknown()


class AgreeingRecordsTest(RootDiskTestCase):

    def test_root_disk_may_be_after_an_ephemeral_disk(self):
        self.assertEqual(f'{self.own}/disk', self.find(
            self.ephemeral('vda'), self.own_disk('vdb'),
            name='/dev/vdb').path)

    def test_root_disk_may_be_after_a_volume(self):
        self.assertEqual(f'{self.own}/disk', self.find(
            disk('vda', '/dev/sdx', 'block', 'raw'), self.own_disk('vdb'),
            name='/dev/vdb').path)

    def test_target_is_the_device_name_on_every_bus(self):
        # Nova takes the name of the image property on the bus that it has.
        for name, bus in (('/dev/vda', 'virtio'), ('vda', 'virtio'),
                          ('/dev/sda', 'virtio'), ('/dev/xvda', 'virtio'),
                          ('/dev/sda1', 'scsi'), ('/dev/hda', 'ide')):
            target = name.removeprefix('/dev/')
            self.assertEqual(target, self.find(
                disk('vdx', '/other'), self.own_disk(target, bus=bus),
                name=name).target)

    def test_cdrom_of_the_config_drive_does_not_matter(self):
        self.assertEqual('vda', self.find(
            disk('hda', f'{self.own}/disk.config', device='cdrom', bus='ide'),
            self.own_disk('vda')).target)

    def test_volume_or_image_of_the_instance_is_found_by_its_name(self):
        for storage, name in (('block', f'/dev/vg/{self.target.uuid}_disk'),
                              ('block', f'/dev/mapper/{self.target.uuid}_disk'
                                        '-dmcrypt'),
                              ('network', f'vms/{self.target.uuid}_disk')):
            self.assertEqual('vdb', self.find(
                disk('vda', '/dev/sdx', 'block'), disk('vdb', name, storage),
                name=None).target)

    def test_boot_order_does_not_matter(self):
        self.assertEqual('vdb', self.find(
            self.ephemeral('vda', more="<boot order='1'/>"),
            self.own_disk('vdb', more="<boot order='2'/>"),
            name='/dev/vdb').target)

    def test_instance_directory_may_be_a_link(self):
        elsewhere = self.useFixture(fixtures.TempDir()).path
        os.symlink(elsewhere, self.own)
        self.assertEqual('vdb', self.find(
            disk('vda', f'{elsewhere}/disk.eph0'),
            disk('vdb', f'{elsewhere}/disk'), name=None).target)

    def test_instances_path_may_be_a_link(self):
        link = f'{self.useFixture(fixtures.TempDir()).path}/link'
        os.symlink(self.instances, link)
        for configured, defined in ((link, self.instances),
                                    (self.instances, link)):
            self.flags(instances_path=configured)
            self.assertEqual('vdb', self.find(
                disk('vda', f'{defined}/{self.target.uuid}/disk.eph0'),
                disk('vdb', f'{defined}/{self.target.uuid}/disk'),
                name=None).target)

    def test_disk_may_be_a_link(self):
        elsewhere = f'{self.useFixture(fixtures.TempDir()).path}/fast'
        os.makedirs(self.own)
        os.symlink(elsewhere, f'{self.own}/disk')
        link = f'{elsewhere}-too'
        os.symlink(elsewhere, link)
        for path in (elsewhere, link):
            self.assertEqual('vdb', self.find(
                disk('vda', '/other'), disk('vdb', path), name=None).target)

    def test_instances_path_may_have_changed_since_the_definition(self):
        self.assertEqual('vdb', self.find(
            disk('vda', '/srv/other'),
            disk('vdb', f'/old/{self.target.uuid}/disk'), name=None).target)

    def test_block_device_mapping_is_not_asked_for(self):
        self.find(self.ephemeral('vda'), self.own_disk('vdb'),
                  name='/dev/vdb')
        self.get_mappings.assert_not_called()


class ChangedImageTest(RootDiskTestCase):
    """The guest writes to another image than Nova's."""

    def test_image_over_the_root_disk_is_the_root_disk(self):
        self.assertEqual(f'{self.own}/disk.snap1', self.find(
            self.ephemeral('vda'),
            disk('vdb', f'{self.own}/disk.snap1',
                 backing=[f'{self.own}/disk', '/i/_base/1234']),
            name='/dev/vdb').path)

    def test_image_over_the_root_disk_is_found_without_a_device_name(self):
        self.assertEqual('vdb', self.find(
            disk('vda', f'{self.own}/disk.snap1',
                 backing=[f'{self.own}/disk.eph0']),
            disk('vdb', '/srv/snap2', backing=[f'{self.own}/disk']),
            name=None).target)

    def test_chain_of_a_guest_that_is_shut_off_may_be_unknown(self):
        self.assertEqual('vdb', self.find(
            self.ephemeral('vda'), disk('vdb', f'{self.own}/disk.snap1'),
            name='/dev/vdb').target)

    def test_image_over_another_disk_is_not_the_root_disk(self):
        self.assert_unknown(
            disk('vda', f'{self.own}/disk.snap1',
                 backing=[f'{self.own}/disk.eph0']),
            disk('vdb', '/srv/1'), disk('vdc', '/srv/2'))

    def test_disk_with_the_root_disk_as_backing_file_is_another_disk(self):
        self.assertEqual('vdb', self.find(
            disk('vda', '/srv/inspect', backing=[f'{self.own}/disk']),
            self.own_disk('vdb'), name=None).target)

    def test_mirror_is_not_in_the_backing_chain(self):
        mirror = ("<mirror type='file'><source file='/m'/><backingStore "
                  f"type='file'>{source(self.own + '/disk')}</backingStore>"
                  '</mirror>')
        self.assert_unknown(disk('vda', '/srv/1', more=mirror),
                            disk('vdb', '/srv/2'), name=None)

    def test_overlay_of_a_snapshot_is_the_root_disk(self):
        self.assertEqual(overlay.NAME, planning.OVERLAY_NAME)
        for backing in ([], [f'{self.own}/disk'], ['/dev/vg/volume']):
            self.assertEqual('vdb', self.find(
                self.ephemeral('vda'),
                disk('vdb', f'{self.own}/disk.snapext', backing=backing),
                name=None).target)

    def test_moved_root_disk_has_its_device_name(self):
        self.assertEqual('/srv/root', self.find(
            self.ephemeral('vda'), disk('vdb', '/srv/root'),
            disk('vdc', '/srv/other'), name='/dev/vdb').path)

    def test_moved_root_disk_is_the_only_one_that_is_no_other_disk(self):
        for name in ('disk.local', 'disk.swap', 'disk.eph12', 'disk.config'):
            for other in (disk('vda', f'{self.own}/{name}'),
                          disk('vda', f'/dev/vg/{self.target.uuid}_{name}',
                               'block'),
                          disk('vda', f'vms/{self.target.uuid}_{name}',
                               'network')):
                self.assertEqual('sda', self.find(
                    other, disk('sda', '/srv/root'), name='/dev/vdx').target)


class ChangedNameTest(RootDiskTestCase):
    """The root disk has not the target that Nova gave it."""

    def test_changed_target_does_not_matter(self):
        self.assertEqual('sdb', self.find(
            self.ephemeral('sda', bus='scsi'),
            self.own_disk('sdb', bus='scsi')).target)

    def test_root_device_name_may_be_missing(self):
        for name in (None, ''):
            self.assertEqual('vdb', self.find(
                self.ephemeral('vda'), self.own_disk('vdb'),
                name=name).target)

    def test_rescued_guest_has_other_targets(self):
        self.target.vm_state = vm_states.RESCUED
        self.assertEqual('vdb', self.find(
            disk('vda', f'{self.own}/disk.rescue'), self.own_disk('vdb'),
            name='/dev/vda').target)

    def test_disk_of_an_unknown_instance_is_found_by_its_name(self):
        unknown = planning.UnknownInstance(self.target.uuid, 'instance-1')
        found = planning.find_root_disk(self.guest(DOMAIN.format(
            self.ephemeral('vda') + self.own_disk('vdb'))), unknown)
        self.assertEqual('vdb', found.target)

    def test_unknown_instance_with_two_unknown_disks_is_refused(self):
        unknown = planning.UnknownInstance(self.target.uuid, 'instance-1')
        self.assertRaises(
            exception.RootDiskUnknown, planning.find_root_disk,
            self.guest(DOMAIN.format(
                disk('vda', '/srv/1') + disk('vdb', '/srv/2'))), unknown)
        self.get_mappings.assert_not_called()


class DisagreeingRecordsTest(RootDiskTestCase):

    def test_error_names_guest_and_both_disks_and_a_remedy(self):
        error = self.assert_unknown(
            self.own_disk('vda'), self.ephemeral('vdb'), name='/dev/vdb')
        for text in (self.target.uuid, f'vda ({self.own}/disk)',
                     f'vdb ({self.own}/disk.eph0)', '/dev/vdb', 'virsh',
                     'undo', 'hard reboot'):
            self.assertIn(text, error)

    def test_block_device_mapping_settles_it(self):
        # As when Nova defines the guest again.
        self.mapped = '/dev/vda'
        self.assertEqual('vda', self.find(
            self.own_disk('vda'), self.ephemeral('vdb'),
            name='/dev/vdb').target)

    def test_block_device_mapping_of_another_disk_settles_nothing(self):
        for self.mapped in ('/dev/vdb', '/dev/vdx'):
            self.assertIn(self.mapped, self.assert_unknown(
                self.own_disk('vda'), self.ephemeral('vdb'),
                name='/dev/vdb'))

    def test_copied_root_disk_and_the_old_one_are_refused(self):
        # virsh blockcopy --pivot, and the old file attached again
        self.mapped = '/dev/vda'
        self.assert_unknown(disk('vda', '/srv/copy'), self.own_disk('vdb'))

    def test_other_disk_with_the_device_name_is_refused(self):
        self.mapped = '/dev/vda'
        self.assert_unknown(self.ephemeral('vda'), disk('vdb', '/srv/root'))

    def test_two_disks_that_could_be_it_are_refused(self):
        self.assert_unknown(disk('sda', '/srv/1'), disk('sdb', '/srv/2'))
        self.assert_unknown(disk('sda', '/srv/1'), disk('sdb', '/srv/2'),
                            name=None)

    def test_device_name_selects_one_of_two_images_over_the_root_disk(self):
        self.assertEqual('vdb', self.find(
            *(disk(target, f'/srv/{target}', backing=[f'{self.own}/disk'])
              for target in ('vda', 'vdb')), name='/dev/vdb').target)


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
