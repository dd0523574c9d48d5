# SPDX-License-Identifier: Apache-2.0

import os
import pathlib
import socket
import subprocess
import sys

import fixtures

from nova_snapext.hypervisor import privsep
from tests.unit import base

MODULES = ('import sys; import nova_snapext.hypervisor.privsep; '
           'print(*sys.modules)')


class PrivsepTest(base.TestCase):

    def test_daemon_imports_neither_nova_nor_libvirt(self):
        modules = subprocess.run(
            [sys.executable, '-W', 'ignore', '-c', MODULES], check=True,
            capture_output=True, text=True).stdout.split()
        self.assertIn('nova_snapext.hypervisor.privsep', modules)
        self.assertEqual([], [
            module for module in modules
            if module.partition('.')[0] in ('nova', 'libvirt')])

    def test_daemon_can_not_run_programs(self):
        modules = [name for name in vars(privsep)
                   if name in ('processutils', 'subprocess')]
        self.assertEqual([], modules)


class ChownTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path)
        self.disk = self.directory / 'disk'
        self.disk.touch()
        self.changed = []
        self.useFixture(fixtures.MockPatch('os.chown', self.chown))

    def chown(self, path, uid, gid):
        # The path leads to what was opened, wherever it is by now.
        self.changed.append((os.stat(path).st_ino, uid, gid))

    def assert_changed(self, path, uid, gid):
        self.assertEqual([(os.stat(path).st_ino, uid, gid)], self.changed)

    def test_chown_without_group_keeps_group(self):
        privsep.chown(str(self.disk), 64055)
        self.assert_changed(self.disk, 64055, -1)

    def test_chown_with_group_changes_both(self):
        privsep.chown(str(self.disk), 64055, 0)
        self.assert_changed(self.disk, 64055, 0)

    def test_directory_changes_its_owner(self):
        privsep.chown(str(self.directory), 64055)
        self.assert_changed(self.directory, 64055, -1)

    def test_nothing_else_changes_its_owner(self):
        link, pipe, unix = (str(self.directory / name)
                            for name in ('link', 'pipe', 'socket'))
        os.symlink(self.disk, link)
        os.mkfifo(pipe)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(unix)
        for path in (link, pipe, unix, '/dev/null'):
            error = self.assertRaises(OSError, privsep.chown, path, 64055)
            self.assertIn(path, str(error))
        self.assertEqual([], self.changed)
