# SPDX-License-Identifier: Apache-2.0

import os
import stat

from nova_snapext.hypervisor import block_device
from tests.functional import base


class ChangedSectorsTest(base.GuestTestCase):

    def setUp(self):
        super().setUp()
        self.disk = self.block()
        self.changed = block_device.changed_sectors(self.disk.path)

    def new_sectors(self):
        """Return how many sectors have changed since the last call."""
        before = self.changed
        self.changed = block_device.changed_sectors(self.disk.path)
        return self.changed - before

    def qemu_io(self, path, command):
        base.run('qemu-io', '-f', 'raw', '-t', 'none', '-d', 'unmap', '-c',
                 command, path)

    def test_writes_through_another_node_of_the_device_count(self):
        node = str(self.images / 'node')
        os.mknod(node, stat.S_IFBLK | 0o600, os.stat(self.disk.path).st_rdev)
        self.qemu_io(node, 'write -P 1 0 64k')
        self.assertEqual(128, self.new_sectors())

    def test_discards_count(self):
        self.qemu_io(self.disk.path, 'discard 0 64k')
        self.assertEqual(128, self.new_sectors())

    def test_reads_do_not_count(self):
        self.qemu_io(self.disk.path, 'read 0 64k')
        self.assertEqual(0, self.new_sectors())
