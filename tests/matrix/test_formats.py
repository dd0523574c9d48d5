# SPDX-License-Identifier: Apache-2.0
"""Image formats that are staged on the host, of a running guest."""

import json
import os
import re
import shutil
import subprocess
import tempfile


from oslo_utils import units

from tests.e2e import base

# Bytes of a file system that no image has room in.
ROOM = units.Mi

STAGED = re.compile(r'Staged the (\w+) image of \S+ in [\d.]+ s: (\d+) bytes '
                    r'on the host, of (\d+) at the most')


class FormatsTest(base.CloudTestCase):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = cls.boot()

    def staged(self, image_format):
        """Take a snapshot, and prove it and that it was staged."""
        shot = self.snapshot(self.server)
        self.assertEqual(('backup', 'filesystem'),
                         (shot.strategy, shot.consistency))
        self.assert_snapshot_right(shot, image_format)
        made, written, most = STAGED.search(shot.log).groups()
        self.assertEqual(image_format, made)
        self.assertLessEqual(int(written), int(most))
        self.assertGreater(int(shot.figures[3]), 0)
        self.assert_untouched()
        return shot.image

    def assert_untouched(self):
        self.assert_nothing_left(self.server)
        self.assert_writes_on(self.server)

    def info(self, image):
        with self.downloaded(image) as file:
            return json.loads(subprocess.run(
                ['qemu-img', 'info', '--output=json', file], check=True,
                capture_output=True).stdout)

    def test_vmdk(self):
        self.configure('libvirt.snapshot_image_format=vmdk')
        info = self.info(self.staged('vmdk'))
        # Of what [compute]vmdk_allowed_types has by default.
        self.assertEqual('monolithicSparse',
                         info['format-specific']['data']['create-type'])

    def test_vdi(self):
        self.configure('libvirt.snapshot_image_format=vdi')
        self.assertEqual('vdi', self.info(self.staged('vdi'))['format'])

    def test_without_room_for_it_there_is_no_image_and_it_says_why(self):
        small = self.small_file_system()
        self.configure('libvirt.snapshot_image_format=vdi',
                       f'libvirt.snapshots_directory={small}',
                       f'snapext.freeze_directory={self.state.snapshots}')
        shot = self.snapshot(self.server)
        self.assertFalse(self.image_exists(shot.image))
        self.assertIn(f'but in {small} there are {ROOM} bytes free for it',
                      shot.log)
        self.assertIsNone(STAGED.search(shot.log))
        self.assert_untouched()

    def small_file_system(self):
        # Where Nova's user finds its way, too.
        small = tempfile.mkdtemp(dir=self.state.nova)
        self.addCleanup(os.rmdir, small)
        subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={ROOM}', 'tmpfs',
                        small], check=True)
        self.addCleanup(subprocess.run, ['umount', small], check=True)
        shutil.chown(small, 'nova', 'nova')
        return small
