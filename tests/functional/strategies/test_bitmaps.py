# SPDX-License-Identifier: Apache-2.0
"""Dirty bitmaps that somebody else keeps in the disk of a guest.

A backup program copies what a bitmap says was written since the last backup.
If a merge loses a bit, the next backup lacks a write.
"""

import libvirt
from oslo_serialization import jsonutils
from oslo_utils import units

from nova_snapext import libnbd
from nova_snapext.strategies import external
from tests.functional import base
from tests.functional.strategies import contract

nbd = libnbd.load()

NAME = 'backup-1'

CHECKPOINT = f"""
<domaincheckpoint>
  <name>{NAME}</name>
  <disks>
    <disk name='vda' checkpoint='bitmap' bitmap='{NAME}'/>
    <disk name='vdb' checkpoint='no'/>
  </disks>
</domaincheckpoint>
"""

# Where the guest writes before, during and after the snapshot (MiB).
EARLY, MEANWHILE, LATE = 1, 3, 5


class BitmapTest(contract.FreezeAssertions, base.GuestTestCase):

    def setUp(self):
        super().setUp()
        self.strategy = external.ExternalStrategy(self.driver)

    def bitmaps(self, disk):
        """Return the flags of each bitmap in a disk, with no guest about."""
        info = jsonutils.loads(base.run(
            'qemu-img', 'info', '--output=json', disk.path))
        return {bitmap['name']: bitmap['flags'] for bitmap in
                info['format-specific']['data'].get('bitmaps', [])}

    def dirty(self, disk):
        """Return the MiB that a bitmap says were written."""
        found, at = set(), 0

        def note(_context, _offset, extents, _error):
            nonlocal at
            for length, flags in zip(*[iter(extents)] * 2, strict=True):
                if flags:
                    found.update(range(at // units.Mi,
                                       -(-(at + length) // units.Mi)))
                at += length

        handle = nbd.NBD()
        handle.add_meta_context(f'qemu:dirty-bitmap:{NAME}')
        handle.connect_systemd_socket_activation(
            ['qemu-nbd', '-r', '-f', 'qcow2', '-B', NAME, disk.path])
        while at < base.DISK_SIZE:
            handle.block_status(base.DISK_SIZE - at, at, note)
        handle.shutdown()
        return found

    def write(self, plan, place):
        self.run_as_guest(plan, f'write -P {place} {place}M 1M')

    def assert_kept(self, plan):
        """Take a snapshot, and check the bitmap and the disk after it."""
        self.write(plan, EARLY)
        before = self.definitions(plan)
        with self.strategy.freeze(plan) as frozen:
            self.write(plan, MEANWHILE)
            self.assertEqual({0, EARLY}, self.content(frozen))
        self.assert_same(before, self.definitions(plan))
        self.assert_nothing_left(plan)
        self.write(plan, LATE)
        plan.guest.poweroff()
        # Without "in-use": QEMU has stored it.
        self.assertEqual({NAME: ['auto']}, self.bitmaps(plan.disk))
        self.assertEqual({EARLY, MEANWHILE, LATE}, self.dirty(plan.disk))
        for place in (EARLY, MEANWHILE, LATE):
            self.assertNotIn('failed', base.run(
                'qemu-io', '-r', '-c', f'read -P {place} {place}M 1M',
                plan.disk.path))
        base.run('qemu-img', 'check', plan.disk.path)

    def test_bitmap_in_the_disk_notes_the_writes_during_a_snapshot(self):
        disk = self.qcow2()
        base.run('qemu-img', 'bitmap', '--add', disk.path, NAME)
        self.assert_kept(self.guest(disk))

    def test_checkpoint_of_libvirt_notes_the_writes_during_a_snapshot(self):
        plan = self.guest(self.qcow2())
        guest = plan.guest._domain
        checkpoint = guest.checkpointCreateXML(CHECKPOINT, 0)
        # Else the guest can't be undefined.
        self.addCleanup(
            checkpoint.delete,
            libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
        self.assert_kept(plan)
        self.assertEqual([NAME], [
            found.getName() for found in guest.listAllCheckpoints(0)])
