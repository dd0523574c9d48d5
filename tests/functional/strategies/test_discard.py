# SPDX-License-Identifier: Apache-2.0
"""A guest that discards while its disk is frozen, as fstrim in it does."""

import os

from oslo_utils import units

from nova_snapext import read
from nova_snapext.strategies import backup
from nova_snapext.strategies import external
from tests.functional import base

OLD, NEW = 0x22, 0x33

# Half of the disk has data; the other half was never written.
HALF = base.DISK_SIZE // 2

# Bytes of the tables of a small qcow2.
TABLES = units.Mi


def allocated(path):
    return os.stat(path).st_blocks * 512


class NoSnapshotTest(base.GuestTestCase):

    DISCARD = 'unmap'

    def test_disk_gets_smaller_by_what_its_guest_discards(self):
        for disk in (self.qcow2(), self.raw()):
            self.fill(disk, OLD)
            plan = self.guest(disk)
            self.run_as_guest(plan, f'discard 0 {HALF}')
            self.assertLess(allocated(disk.path), HALF + TABLES)


class _DiscardContract:
    """Tests of one strategy.

    :cvar GROWING: where the file is that grows during the snapshot
    """

    DISCARD = 'unmap'

    def setUp(self):
        super().setUp()
        self.strategy = self.STRATEGY(self.driver)

    def grown(self):
        """Return the size of what has grown during the snapshot."""
        [growing] = self.directory.glob(self.GROWING)
        return allocated(growing)

    def half_full(self, disk):
        base.run('qemu-io', '-f', disk.format,
                 '-c', f'write -q -P {OLD} 0 {HALF}', disk.path)
        return disk

    def halves(self, frozen):
        """Return the bytes in each half of a frozen disk."""
        with read.Disk(frozen.uri) as disk:
            return [{byte for _, chunk in disk.read([(start, HALF)])
                     for byte in set(bytes(chunk))} for start in (0, HALF)]

    def disks(self):
        yield self.half_full(self.qcow2())
        yield self.half_full(self.raw())
        yield self.half_full(self.block())

    def test_discard_changes_nothing_of_the_frozen_disk(self):
        for disk in self.disks():
            plan = self.guest(disk)
            before = allocated(disk.path)
            with self.strategy.freeze(plan) as frozen:
                self.run_as_guest(plan, f'discard 0 {base.DISK_SIZE}')
                self.assertEqual([{OLD}, {0}], self.halves(frozen))
                # Old content at most, and not the free half.
                self.assertLess(self.grown(), HALF + TABLES)
            self.assertLessEqual(allocated(disk.path), before)
            self.assert_nothing_left(plan)

    def test_discard_of_backing_file_s_data_grows_nothing(self):
        plan = self.guest(self.chained_qcow2())
        with self.strategy.freeze(plan) as frozen:
            self.run_as_guest(plan, f'discard 0 {base.DISK_SIZE}')
            self.assertEqual([{0x11}, {0x11}], self.halves(frozen))
            self.assertLess(self.grown(), TABLES)
        self.assertLess(allocated(plan.disk.path), TABLES)

    def test_discard_of_free_space_grows_nothing(self):
        for disk in self.disks():
            plan = self.guest(disk)
            before = allocated(disk.path)
            with self.strategy.freeze(plan) as frozen:
                for _ in range(2):
                    self.run_as_guest(plan, f'discard {HALF} {HALF}')
                self.assertEqual([{OLD}, {0}], self.halves(frozen))
                self.assertLess(self.grown(), TABLES)
            self.assertLessEqual(allocated(disk.path), before)

    def test_zeros_that_guest_writes_by_discarding_are_not_in_the_frozen_disk(
            self):
        # "blkdiscard --zeroout", or a file system that zeroes its tables.
        for disk in self.disks():
            plan = self.guest(disk)
            with self.strategy.freeze(plan) as frozen:
                self.run_as_guest(plan, f'write -z -u 0 {base.DISK_SIZE}')
                self.assertEqual([{OLD}, {0}], self.halves(frozen))
                self.assertLess(self.grown(), self.LIMIT_OF_ZEROS + TABLES)
            plan.guest.poweroff()
            self.assert_holds(disk, 0)

    def test_discard_of_what_was_written_since_leaves_the_frozen_disk(self):
        plan = self.guest(self.half_full(self.qcow2()))
        with self.strategy.freeze(plan) as frozen:
            self.write_as_guest(plan, NEW)
            written = self.grown()
            self.run_as_guest(plan, f'discard 0 {base.DISK_SIZE}')
            self.assertEqual([{OLD}, {0}], self.halves(frozen))
            self.assertLessEqual(self.grown(), written)


class BackupTest(_DiscardContract, base.GuestTestCase):

    STRATEGY = backup.BackupStrategy
    GROWING = '*/*/*/scratch'
    # The old content is saved. A block device does not report what is free.
    LIMIT_OF_ZEROS = base.DISK_SIZE


class ExternalTest(_DiscardContract, base.GuestTestCase):

    STRATEGY = external.ExternalStrategy
    GROWING = '*/*/disk.snapext'
    # The overlay only notes that they are zeros.
    LIMIT_OF_ZEROS = 0

    def test_merge_frees_what_guest_has_discarded(self):
        for disk in (self.qcow2(), self.raw()):
            plan = self.guest(self.half_full(disk))
            with self.strategy.freeze(plan):
                self.run_as_guest(plan, f'discard 0 {base.DISK_SIZE}')
            self.assertLess(allocated(disk.path), TABLES)

    def test_overlay_gives_back_what_was_written_and_discarded(self):
        plan = self.guest(self.qcow2())
        with self.strategy.freeze(plan):
            self.write_as_guest(plan, NEW)
            self.assertGreater(self.grown(), base.DISK_SIZE)
            self.run_as_guest(plan, f'discard 0 {base.DISK_SIZE}')
            self.assertLess(self.grown(), TABLES)
