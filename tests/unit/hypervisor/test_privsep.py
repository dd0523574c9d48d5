# SPDX-License-Identifier: Apache-2.0

from concurrent import futures
import os
import pathlib
import socket
import subprocess
import sys
import threading

import fixtures
from oslo_privsep import daemon

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


class Channel:
    """Like that of a daemon that does as it is told."""

    running = True

    def remote_call(self, *_args):
        return 'done'

    def close(self):
        pass


class StartTest(base.TestCase):
    """The daemon starts before its first step, which waits for it."""

    def setUp(self):
        super().setUp()
        self.useFixture(fixtures.MockPatchObject(
            privsep.context, 'client_mode', True))
        self.may_start = threading.Event()
        self.start = self.useFixture(fixtures.MockPatch(
            'oslo_privsep.daemon.RootwrapClientChannel',
            side_effect=self.begin)).mock
        self.useFixture(fixtures.MockPatchObject(
            privsep.context, '_failed_ahead', False))
        self.addCleanup(privsep.context.stop)

    def begin(self, context):
        self.may_start.wait(60)
        return Channel()

    def fail(self, context):
        raise daemon.FailedToDropPrivileges('sudo: a password is required')

    def test_step_waits_for_the_start_and_logs_no_warning(self):
        privsep.context.start_ahead()
        [starting] = self.threads()
        with futures.ThreadPoolExecutor(1) as pool, \
                self.assertNoLogs(level='WARNING'):
            step = pool.submit(privsep.sync, '/')
            self.assertEqual((set(), {step}), futures.wait([step], 0.05))
            self.may_start.set()
            self.assertEqual('done', step.result(60))
        starting.join(60)
        self.start.assert_called_once()

    def test_two_snapshots_start_one_daemon(self):
        privsep.context.start_ahead()
        privsep.context.start_ahead()
        starting = self.threads()
        self.may_start.set()
        for thread in starting:
            thread.join(60)
        privsep.context.start_ahead()
        self.assertEqual([], self.threads())
        self.start.assert_called_once()

    def test_step_tries_again_and_raises_and_snapshots_do_not(self):
        self.start.side_effect = self.fail
        privsep.context.start_ahead()
        for thread in self.threads():
            thread.join(60)
        privsep.context.start_ahead()
        self.assertEqual([], self.threads())
        self.start.assert_called_once()
        self.assertRaises(daemon.FailedToDropPrivileges, privsep.sync, '/')
        self.assertEqual(2, self.start.call_count)

    def threads(self):
        return [thread for thread in threading.enumerate()
                if thread.name == 'snapext-privsep']


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
