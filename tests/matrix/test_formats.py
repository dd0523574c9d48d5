# SPDX-License-Identifier: Apache-2.0
"""Snapshots of a running guest in formats that are staged on the host."""

import json
import os
import re
import shutil
import subprocess
import tempfile

from oslo_utils import units

from tests.e2e import base

# Size of a file system that is too small for any image, in bytes.
SMALL = units.Mi

STAGED = re.compile(r'Staged the (\w+) image of \S+ in [\d.]+ s: (\d+) bytes '
                    r'on the host, of at most (\d+)')


class FormatsTest(base.CloudTestCase):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = cls.boot()

    def staged(self, image_format):
        """Take a snapshot, and check that it is complete and was staged."""
        snapshot = self.snapshot(self.server)
        self.assertEqual(('backup', 'filesystem'),
                         (snapshot.strategy, snapshot.consistency))
        self.assert_snapshot_complete(snapshot, image_format)
        logged_format, written, max_size = STAGED.search(
            snapshot.log).groups()
        self.assertEqual(image_format, logged_format)
        self.assertLessEqual(int(written), int(max_size))
        self.assertGreater(int(snapshot.figures[3]), 0)
        self.assert_guest_unchanged()
        return snapshot.image

    def assert_guest_unchanged(self):
        self.assert_nothing_left(self.server)
        self.assert_keeps_writing(self.server)

    def info(self, image):
        with self.downloaded(image) as file:
            return json.loads(subprocess.run(
                ['qemu-img', 'info', '--output=json', file], check=True,
                capture_output=True).stdout)

    def test_vmdk_image_is_staged(self):
        self.configure('libvirt.snapshot_image_format=vmdk')
        info = self.info(self.staged('vmdk'))
        # One of the default values of [compute]vmdk_allowed_types.
        self.assertEqual('monolithicSparse',
                         info['format-specific']['data']['create-type'])

    def test_vdi_image_is_staged(self):
        self.configure('libvirt.snapshot_image_format=vdi')
        self.assertEqual('vdi', self.info(self.staged('vdi'))['format'])

    def test_insufficient_space_fails_snapshot_with_the_reason(self):
        small = self.small_file_system()
        self.configure('libvirt.snapshot_image_format=vdi',
                       f'libvirt.snapshots_directory={small}',
                       f'snapext.work_directory={self.state.snapshots}')
        snapshot = self.snapshot(self.server)
        self.assertFalse(self.image_exists(snapshot.image))
        self.assertIn(f'only {SMALL} bytes are free for it in {small}',
                      snapshot.log)
        self.assertIsNone(STAGED.search(snapshot.log))
        self.assert_guest_unchanged()

    def small_file_system(self):
        # Nova's user can reach this directory.
        small = tempfile.mkdtemp(dir=self.state.nova)
        self.addCleanup(os.rmdir, small)
        subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={SMALL}', 'tmpfs',
                        small], check=True)
        self.addCleanup(subprocess.run, ['umount', small], check=True)
        shutil.chown(small, 'nova', 'nova')
        return small
