# SPDX-License-Identifier: Apache-2.0

import os
import pathlib

import fixtures
from oslo_utils import units

from nova_snapext.hypervisor import block_device
from nova_snapext.hypervisor import thin_disk
from nova_snapext import plan as planning
from tests.unit import base

DOMAIN = """
<domain><devices>
  <disk><driver name='qemu' {}/><target dev='vda'/></disk>
  <disk><driver name='qemu' discard='unmap'/><target dev='vdb'/></disk>
</devices></domain>
"""
UNMAP = DOMAIN.format("discard='unmap'")

SIZE = units.Mi


class ThinDiskTestCase(base.TestCase):

    def setUp(self):
        super().setUp()
        self.directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path)
        self.guest = base.fake_guest()
        self.guest.get_xml_desc.return_value = UNMAP
        self.guest.disk_size.return_value = SIZE

    def kept_reason(self, storage, path, disk_format='raw'):
        return thin_disk.kept_reason(planning.RootDisk(
            'vda', storage, str(path), disk_format), self.guest)


class PassesDiscardsTest(ThinDiskTestCase):

    def test_definition_of_the_running_guest_decides(self):
        for attribute, expected in (("discard='unmap'", True),
                                    ("discard='ignore'", False), ('', False)):
            self.guest.get_xml_desc.return_value = DOMAIN.format(attribute)
            self.assertIs(expected, thin_disk.passes_discards(
                base.QCOW2, self.guest))
        self.guest.get_xml_desc.assert_called_with()

    def test_disk_that_ignores_discards_says_what_to_do(self):
        self.guest.get_xml_desc.return_value = DOMAIN.format('')
        reason = self.kept_reason('file', '/i/disk')
        self.assertIn('hw_disk_discard = unmap', reason)
        self.assertIn('hard reboot', reason)


class FileDiskTest(ThinDiskTestCase):

    def file(self, allocated=0):
        path = self.directory / 'disk'
        with open(path, 'wb') as file:
            file.truncate(SIZE)
            if allocated:
                os.posix_fallocate(file.fileno(), 0, allocated)
        return path

    def test_sparse_file_gives_its_space_back(self):
        for disk_format in ('raw', 'qcow2'):
            self.assertIsNone(
                self.kept_reason('file', self.file(), disk_format))
            self.assertIsNone(
                self.kept_reason('file', self.file(SIZE // 2), disk_format))

    def test_preallocated_file_keeps_its_space(self):
        for disk_format in ('raw', 'qcow2'):
            self.assertIn('preallocated', self.kept_reason(
                'file', self.file(SIZE), disk_format))

    def test_file_that_is_full_gives_its_space_back(self):
        path = self.directory / 'full'
        with open(path, 'wb') as file:
            file.write(b'x' * SIZE)
            file.flush()
            os.fsync(file.fileno())
        self.assertIsNone(self.kept_reason('file', path))

    def test_option_of_nova_keeps_the_space(self):
        self.flags(preallocate_images='space')
        self.assertIn('preallocated', self.kept_reason('file', self.file()))

    def test_raw_file_needs_a_file_system_that_makes_holes(self):
        self.useFixture(fixtures.MockPatchObject(
            thin_disk, '_can_punch_holes', return_value=False))
        self.assertIn('can\'t make holes',
                      self.kept_reason('file', self.file()))
        # A qcow2 has free clusters.
        self.assertIsNone(self.kept_reason('file', self.file(), 'qcow2'))

    def test_file_system_is_tried_and_nothing_is_left_in_it(self):
        self.assertTrue(thin_disk._can_punch_holes(str(self.directory)))
        self.assertEqual([], list(self.directory.iterdir()))
        # No file of this one has holes.
        self.assertRaises(OSError, thin_disk._can_punch_holes, '/proc')

    def test_allocated_bytes_are_those_of_the_active_image(self):
        disk = planning.RootDisk('vda', 'file', str(self.file(SIZE)), 'raw')
        self.assertLessEqual(SIZE, thin_disk.allocated(disk))
        self.assertIsNone(thin_disk.allocated(
            planning.RootDisk('vda', 'block', '/dev/x', 'raw')))


class BlockTest(ThinDiskTestCase):

    def setUp(self):
        super().setUp()
        self.useFixture(fixtures.MockPatchObject(
            block_device, 'DEVICES', self.directory))
        # Any device that each host has.
        number = os.stat('/dev/null').st_rdev
        self.device = self.directory / (
            f'{os.major(number)}:{os.minor(number)}')

    def describe(self, device, maximum=None, uuid=None):
        """Describe a device as Linux does in /sys."""
        (device / 'slaves').mkdir(parents=True)
        if maximum is not None:
            (device / 'queue').mkdir()
            (device / 'queue' / 'discard_max_bytes').write_text(
                f'{maximum}\n')
        if uuid is not None:
            (device / 'dm').mkdir()
            (device / 'dm' / 'uuid').write_text(f'{uuid}\n')

    def reason(self):
        return self.kept_reason('block', '/dev/null')

    def test_device_without_discards_keeps_its_space(self):
        self.describe(self.device, 0)
        self.assertIn('supports no discards', self.reason())

    def test_device_with_discards_gives_its_space_back(self):
        self.describe(self.device, 4 * units.Gi)
        self.assertIsNone(self.reason())

    def test_partition_has_the_discards_of_its_disk(self):
        disk = self.directory / 'sda'
        self.describe(disk, 0)
        self.describe(disk / 'sda1')
        (disk / 'sda1' / 'partition').write_text('1\n')
        self.device.symlink_to(disk / 'sda1')
        self.assertIn('supports no discards', self.reason())
        (disk / 'queue' / 'discard_max_bytes').write_text('4096\n')
        self.assertIsNone(self.reason())

    def test_thick_volume_keeps_its_space(self):
        # On a device that supports discards.
        self.describe(self.device, 4096, 'LVM-vgvgvglvlvlv')
        below = self.directory / 'sda'
        self.describe(below, 4096)
        (self.device / 'slaves' / 'sda').symlink_to(below)
        self.assertIn('thick LVM volume', self.reason())

    def test_thin_volume_gives_its_space_back(self):
        self.describe(self.device, 4096, 'LVM-vgvgvglvlvlv')
        pool = self.directory / 'dm-3'
        self.describe(pool, 4096, 'LVM-vgvgvgpoolpool-tpool')
        (self.device / 'slaves' / 'dm-3').symlink_to(pool)
        self.assertIsNone(self.reason())

    def test_device_mapper_without_lvm_gives_its_space_back(self):
        self.describe(self.device, 4096, 'mpath-3600')
        self.assertIsNone(self.reason())


class NetworkTest(ThinDiskTestCase):

    def test_ceph_gives_its_space_back(self):
        self.assertIsNone(self.kept_reason('network', 'rbd:vms/u_disk'))

    def test_other_storage_is_left_alone(self):
        self.assertIn('unknown', self.kept_reason('network', 'volume'))
