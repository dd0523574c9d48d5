# SPDX-License-Identifier: Apache-2.0

import os
import stat
from unittest import mock

import fixtures

from nova_snapext.freeze import directory
from tests.unit import base


class DirectoryTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.parent = self.useFixture(fixtures.TempDir()).path
        self.flags(freeze_directory=self.parent, group='snapext')

    def make(self):
        made = directory.Directory.choose(self.instance())
        made.make()
        return made

    def mode(self, made):
        return stat.S_IMODE(os.stat(made.path).st_mode)

    def test_only_nova_can_enter_a_new_one(self):
        self.assertEqual(0o700, self.mode(self.make()))

    @mock.patch('nova.privsep.path.chown')
    def test_another_user_becomes_owner_and_nova_s_group_stays(self, chown):
        made = self.make()
        made.share_with(4711)
        self.assertEqual(0o2770, self.mode(made))
        chown.assert_called_once_with(made.path, uid=4711)

    @mock.patch('nova.privsep.path.chown')
    def test_nothing_is_shared_where_qemu_runs_as_nova(self, chown):
        made = self.make()
        made.share_with(os.geteuid())
        self.assertEqual(0o700, self.mode(made))
        chown.assert_not_called()

    def test_it_goes_with_all_that_is_in_it(self):
        made = self.make()
        open(made.scratch, 'w').close()
        made.remove()
        self.assertEqual([], os.listdir(self.parent))

    def test_a_path_too_long_for_a_socket_is_refused_and_leaves_nothing(self):
        long = os.path.join(self.parent, 'x' * 100)
        self.flags(freeze_directory=long, group='snapext')
        error = self.assertRaises(ValueError, directory.Directory.choose,
                                  self.instance())
        self.assertIn('freeze_directory', str(error))
        self.assertFalse(os.path.exists(long))

    def test_the_parent_is_made_where_it_is_missing(self):
        below = os.path.join(self.parent, 'a', 'b')
        self.flags(freeze_directory=below, group='snapext')
        self.make()
        self.assertEqual(1, len(os.listdir(below)))
