# SPDX-License-Identifier: Apache-2.0

from nova_snapext.hypervisor import thin_disk
from tests.functional import base


class ThinDiskTest(base.GuestTestCase):

    DISCARD = 'unmap'

    def kept_reason(self, disk):
        return thin_disk.kept_reason(
            disk, self.guest(disk, running=False).guest)

    def preallocated(self, disk):
        """Preallocate a disk as Nova does."""
        base.run('fallocate', '-n', '-l', str(base.DISK_SIZE), disk.path)
        return disk

    def test_thin_disks_take_back_what_is_discarded(self):
        for disk in (self.qcow2(), self.chained_qcow2(), self.raw()):
            self.assertIsNone(self.kept_reason(disk))

    def test_thin_disks_that_are_full_take_back_what_is_discarded(self):
        for disk in (self.qcow2(), self.raw()):
            self.fill(disk, 0x11)
            self.assertIsNone(self.kept_reason(disk))

    def test_preallocated_disks_keep_their_space(self):
        for disk in (self.qcow2(), self.raw()):
            self.assertIn('is preallocated',
                          self.kept_reason(self.preallocated(disk)))

    def test_preallocated_qcow2_in_use_keeps_its_space(self):
        disk = self.preallocated(self.qcow2())
        base.run('qemu-io', '-f', 'qcow2', '-c', 'write -q 0 1M', disk.path)
        self.assertIn('is preallocated', self.kept_reason(disk))

    def test_device_that_supports_discards_takes_them(self):
        # A loop device makes holes in its file.
        self.assertIsNone(self.kept_reason(self.block()))

    def test_size_of_the_active_image_is_known_for_files(self):
        disk = self.qcow2()
        before = thin_disk.allocated(disk)
        self.fill(disk, 0x11)
        self.assertLess(base.DISK_SIZE / 2, thin_disk.allocated(disk) - before)
        self.assertIsNone(thin_disk.allocated(self.block()))


class DiscardIsIgnoredTest(base.GuestTestCase):

    def test_disk_that_does_not_pass_discards_on_frees_nothing(self):
        disk = self.qcow2()
        self.assertIn('hw_disk_discard = unmap', thin_disk.kept_reason(
            disk, self.guest(disk).guest))
