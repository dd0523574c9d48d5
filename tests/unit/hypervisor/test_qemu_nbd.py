# SPDX-License-Identifier: Apache-2.0

import os
import pathlib
import signal
import subprocess
from unittest import mock

import fixtures

from nova_snapext.hypervisor import privsep
from nova_snapext.hypervisor import qemu_nbd
from nova_snapext import plan as planning
from tests.unit import base

DEVICE = planning.RootDisk(target='vda', storage='block', path='/dev/vg/disk',
                           format='raw')
UUID = '6b1ee8b6-7a3f-4a0c-a3a4-1d1c0c9cb0c7'


class ServeTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.flags(operation_timeout=7, group='snapext')
        self.execute = self.useFixture(fixtures.MockPatch(
            'oslo_concurrency.processutils.execute')).mock
        self.privileged = self.useFixture(fixtures.MockPatchObject(
            privsep, 'serve_block_device')).mock
        self.access = self.useFixture(fixtures.MockPatch(
            'os.access', return_value=True)).mock
        self.pid_file = pathlib.Path(
            self.useFixture(fixtures.TempDir()).join('pid'))
        self.pid_file.write_text(f'{os.getpid()}\n')

    def serve(self, disk, snapshot=None):
        server = qemu_nbd.serve(
            disk, '/s', str(self.pid_file), UUID, snapshot)
        self.assertEqual(os.getpid(), server.pid)

    def test_own_content_is_served_only_without_other_writers(self):
        self.serve(base.QCOW2)
        self.execute.assert_called_once_with(
            'qemu-nbd', '--read-only', '--fork', '--shared', '2',
            '--pid-file', str(self.pid_file), '--socket', '/s',
            '--export-name', 'vda', '--image-opts',
            'driver=blkdebug,unshare-child-perms.0=write,image.driver=qcow2,'
            'image.file.driver=file,image.file.filename=/i/disk', timeout=7)

    def test_snapshot_is_served_beside_a_guest(self):
        self.serve(base.QCOW2, snapshot='name')
        arguments = self.execute.call_args.args
        self.assertEqual('driver=qcow2,file.driver=file,'
                         'file.filename=/i/disk,force-share=on',
                         arguments[-1])
        self.assertIn('snapshot.name=name', arguments)

    def test_unreadable_block_device_is_served_with_privileges(self):
        self.access.return_value = False
        self.serve(DEVICE)
        self.privileged.assert_called_once_with(
            '/dev/vg/disk', mock.ANY, os.geteuid(), os.getegid(), 7)
        self.execute.assert_not_called()

    def test_unreadable_file_is_served_without_privileges(self):
        self.access.return_value = False
        self.serve(base.QCOW2)
        self.privileged.assert_not_called()


class ServerTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.flags(operation_timeout=1, group='snapext')

    def start(self, script):
        process = subprocess.Popen(['bash', '-c', script],
                                   stdout=subprocess.PIPE)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        process.stdout.readline()
        return process

    def test_server_is_terminated(self):
        process = self.start('echo; exec sleep 60')
        qemu_nbd.Server(process.pid, UUID).stop()
        self.assertEqual(-signal.SIGTERM, process.wait())

    def test_server_that_ignores_termination_is_killed(self):
        process = self.start('trap "" TERM; echo; exec sleep 60')
        qemu_nbd.Server(process.pid, UUID).stop()
        self.assertEqual(-signal.SIGKILL, process.wait())
