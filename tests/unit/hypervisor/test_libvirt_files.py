# SPDX-License-Identifier: Apache-2.0

import os
import pathlib
from unittest import mock

import fixtures

from nova_snapext.hypervisor import libvirt_files
from nova_snapext.hypervisor import privsep
from tests.unit import base


class SyncTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.directory = self.useFixture(fixtures.TempDir()).path
        self.flags(libvirt_config_directory=self.directory,
                   libvirt_save_directory=self.directory, group='snapext')
        self.synced = []
        self.useFixture(fixtures.MockPatchObject(
            os, 'fsync', lambda descriptor: self.synced.append(
                os.readlink(f'/proc/self/fd/{descriptor}'))))
        self.sync_all = self.useFixture(fixtures.MockPatchObject(
            os, 'sync')).mock
        self.privileged = self.useFixture(fixtures.MockPatchObject(
            privsep, 'sync')).mock

    def test_directory_of_the_definition_is_synced(self):
        pathlib.Path(self.directory, 'guest.xml').touch()
        libvirt_files.sync_definition('guest')
        self.assertEqual([self.directory], self.synced)
        self.sync_all.assert_not_called()

    def test_directory_of_saved_memory_is_synced(self):
        libvirt_files.sync_saved_memory()
        self.assertEqual([self.directory], self.synced)

    def test_saved_memory_itself_is_synced_if_its_definition_changed(self):
        saved = pathlib.Path(self.directory, 'guest.save')
        saved.touch()
        libvirt_files.sync_saved_definition('guest')
        self.assertEqual([str(saved)], self.synced)
        self.sync_all.assert_not_called()

    def test_what_nova_may_not_open_is_synced_by_root(self):
        with mock.patch.object(os, 'stat', side_effect=PermissionError):
            libvirt_files.sync_definition('guest')
            libvirt_files.sync_saved_memory()
            libvirt_files.sync_saved_definition('guest')
        self.assertEqual([mock.call(self.directory)] * 2 +
                         [mock.call(f'{self.directory}/guest.save')],
                         self.privileged.mock_calls)

    def test_everything_is_synced_if_the_files_are_elsewhere(self):
        libvirt_files.sync_definition('guest')
        self.sync_all.assert_called_once_with()
        self.flags(libvirt_save_directory='/elsewhere', group='snapext')
        libvirt_files.sync_saved_memory()
        self.privileged.side_effect = FileNotFoundError
        with mock.patch.object(os, 'stat', side_effect=PermissionError):
            libvirt_files.sync_saved_definition('guest')
        self.assertEqual(3, self.sync_all.call_count)
        self.assertEqual([], self.synced)
