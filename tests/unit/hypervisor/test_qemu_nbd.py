# SPDX-License-Identifier: Apache-2.0

import os
import pathlib
import signal
import subprocess
from unittest import mock

import fixtures
from oslo_concurrency import processutils

from nova_snapext import exception
from nova_snapext.hypervisor import image_header
from nova_snapext.hypervisor import ownership
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
        self.calls = mock.Mock()
        self.calls.lent.side_effect = lambda *_args: mock.MagicMock()
        self.calls.checked_chain.side_effect = lambda disk, _expected: [
            image_header.Image(disk.path, disk.format, disk.storage)]
        for owner, name in ((ownership, 'lent'),
                            (image_header, 'checked_chain'),
                            (processutils, 'execute'),
                            (qemu_nbd, '_check_opened')):
            self.useFixture(fixtures.MockPatchObject(
                owner, name, getattr(self.calls, name)))
        self.pid_file = pathlib.Path(
            self.useFixture(fixtures.TempDir()).join('pid'))
        self.pid_file.write_text(f'{os.getpid()}\n')

    def serve(self, disk, snapshot=None):
        server = qemu_nbd.serve(
            disk, ['/i/base'], '/s', str(self.pid_file), UUID, snapshot)
        self.assertEqual(os.getpid(), server.pid)

    def order(self):
        return [name for name, _args, _kwargs in self.calls.mock_calls]

    def test_own_content_is_served_only_without_other_writers(self):
        self.serve(base.QCOW2)
        self.calls.execute.assert_called_once_with(
            'qemu-nbd', '--read-only', '--fork', '--shared', '2',
            '--pid-file', str(self.pid_file), '--socket', '/s',
            '--export-name', 'vda',
            'json:{"driver": "blkdebug", "unshare-child-perms": ["write"], '
            '"image": {"driver": "qcow2", "file": {"driver": "file", '
            '"filename": "/i/disk"}, "backing": null}}', timeout=7)

    def test_snapshot_is_served_beside_a_guest(self):
        self.serve(base.QCOW2, snapshot='name')
        arguments = self.calls.execute.call_args.args
        self.assertEqual(
            'json:{"driver": "qcow2", "file": {"driver": "file", "filename": '
            '"/i/disk"}, "backing": null, "force-share": true}',
            arguments[-1])
        self.assertIn('snapshot.name=name', arguments)

    def test_content_for_a_sample_is_served_without_locks_and_lending(self):
        self.calls.checked_chain.side_effect = lambda disk, _expected: [
            image_header.Image(disk.path, 'qcow2', disk.storage),
            image_header.Image('/i/base', 'raw', 'file')]
        qemu_nbd.serve_unlocked(
            DEVICE, ['/i/base'], '/s', str(self.pid_file), UUID)
        arguments = self.calls.execute.call_args.args
        self.assertIn('--read-only', arguments)
        self.assertEqual(
            'json:{"driver": "qcow2", "file": {"driver": "host_device", '
            '"filename": "/dev/vg/disk", "locking": "off"}, "backing": '
            '{"driver": "raw", "file": {"driver": "file", "filename": '
            '"/i/base", "locking": "off"}}}', arguments[-1])
        self.assertEqual(['checked_chain', 'execute', '_check_opened'],
                         self.order())

    def test_chain_is_checked_before_it_is_opened_and_files_after(self):
        self.serve(base.QCOW2)
        self.assertEqual(['checked_chain', 'execute', '_check_opened'],
                         self.order())
        self.assertEqual(['/i/base'],
                         self.calls.checked_chain.call_args.args[1])

    def test_server_with_another_file_is_stopped(self):
        stop = self.useFixture(fixtures.MockPatchObject(
            qemu_nbd.Server, 'stop')).mock
        self.calls._check_opened.side_effect = exception.UnexpectedHeader(
            path='/i/disk', reason='changed')
        self.assertRaises(exception.UnexpectedHeader, self.serve, base.QCOW2)
        stop.assert_called_once_with()

    def test_block_device_is_lent_until_it_is_open(self):
        self.serve(DEVICE)
        self.calls.lent.assert_called_once_with('/dev/vg/disk', os.R_OK)
        self.assertEqual(['lent', 'checked_chain', 'execute',
                          '_check_opened'], self.order())

    def test_file_is_not_lent(self):
        self.serve(base.QCOW2)
        self.calls.lent.assert_not_called()


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
