# SPDX-License-Identifier: Apache-2.0

import os
import stat
from unittest import mock

import fixtures

from nova_snapext import exception
from nova_snapext.hypervisor import privsep
from nova_snapext.resources import work_directory
from tests.unit import base


class WorkDirectoryTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.parent = self.useFixture(fixtures.TempDir()).path
        self.flags(work_directory=self.parent, group='snapext')

    def create(self):
        directory = work_directory.WorkDirectory.allocate(self.instance())
        directory.create()
        return directory

    def mode(self, directory):
        return stat.S_IMODE(os.stat(directory.path).st_mode)

    def test_new_directory_can_be_entered_by_nova_only(self):
        self.assertEqual(0o700, self.mode(self.create()))

    @mock.patch.object(privsep, 'chown')
    def test_shared_directory_changes_owner_and_keeps_group(self, chown):
        directory = self.create()
        directory.share_with(4711)
        self.assertEqual(0o2770, self.mode(directory))
        chown.assert_called_once_with(directory.path, uid=4711)

    @mock.patch.object(privsep, 'chown')
    def test_directory_is_not_shared_if_qemu_runs_as_nova(self, chown):
        directory = self.create()
        directory.share_with(os.geteuid())
        self.assertEqual(0o700, self.mode(directory))
        chown.assert_not_called()

    def test_removed_directory_is_removed_with_its_files(self):
        directory = self.create()
        open(directory.scratch, 'w').close()
        directory.remove()
        self.assertEqual([], os.listdir(self.parent))

    def test_recorded_directory_is_removed_by_its_record(self):
        directory = self.create()
        restored = work_directory.WorkDirectory.restore(
            None, None, directory.record())
        restored.release()
        restored.release()
        self.assertEqual([], os.listdir(self.parent))

    def test_path_too_long_for_socket_is_refused_and_nothing_created(self):
        long = os.path.join(self.parent, 'x' * 100)
        self.flags(work_directory=long, group='snapext')
        error = self.assertRaises(
            exception.WorkDirectoryError,
            work_directory.WorkDirectory.allocate, self.instance())
        self.assertIn('work_directory', str(error))
        self.assertIn(long, str(error))
        self.assertFalse(os.path.exists(long))

    def test_missing_parent_is_created(self):
        below = os.path.join(self.parent, 'a', 'b')
        self.flags(work_directory=below, group='snapext')
        self.create()
        self.assertEqual(1, len(os.listdir(below)))
