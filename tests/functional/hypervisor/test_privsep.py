# SPDX-License-Identifier: Apache-2.0

import os
import pathlib
import sys

import fixtures
from oslo_config import cfg
from oslo_config import fixture as config_fixture
from oslo_privsep import capabilities
from oslotest import base
import psutil

from nova_snapext.hypervisor import privsep
from nova_snapext.hypervisor import qemu_nbd
from tests.functional import base as functional_base

ROOT = pathlib.Path(__file__).parents[3]

# Any users but root.
QEMU = 64055
NOVA = 64742

SIZE = '1M'


def daemons():
    return {process for process in psutil.process_iter(['cmdline'])
            if privsep.context.pypath in (process.info['cmdline'] or ())}


class PrivsepDaemonTest(base.BaseTestCase):
    """The steps in a real daemon, with nothing but its capabilities."""

    def setUp(self):
        super().setUp()
        self.useFixture(config_fixture.Config(cfg.CONF)).config(
            helper_command=str(
                pathlib.Path(sys.executable).parent / 'privsep-helper'),
            group='nova_snapext_privileged')
        self.useFixture(fixtures.EnvironmentVariable(
            'PYTHONPATH', str(ROOT)))
        self.addCleanup(privsep.context.stop)
        self.directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path)
        self.disks = self.directory / 'disks'
        self.disks.mkdir(mode=0o700)
        os.chown(self.disks, QEMU, QEMU)

    def qemu_disk(self, name, *options):
        """Create a disk that only QEMU's user can reach."""
        path = self.disks / name
        functional_base.run('qemu-img', 'create', '-q', '-f', 'qcow2',
                            *options, str(path), SIZE)
        os.chown(path, QEMU, QEMU)
        path.chmod(0o600)
        return str(path)

    def test_daemon_has_two_capabilities(self):
        before = daemons()
        privsep.image_info(self.qemu_disk('disk'), 'qcow2', timeout=60)
        [daemon] = daemons() - before
        status = dict(line.split(':\t', 1) for line in pathlib.Path(
            f'/proc/{daemon.pid}/status').read_text().splitlines())
        expected = sum(1 << capability for capability in (
            capabilities.CAP_CHOWN, capabilities.CAP_DAC_READ_SEARCH))
        for name in ('CapEff', 'CapPrm'):
            self.assertEqual(expected, int(status[name], 16))
        self.assertEqual(0, int(status['CapInh'], 16))

    def test_file_of_qemus_user_changes_its_owner(self):
        path = self.qemu_disk('disk')
        privsep.chown(path, NOVA)
        self.assertEqual((NOVA, QEMU), (os.stat(path).st_uid,
                                        os.stat(path).st_gid))
        privsep.chown(path, NOVA, NOVA)
        self.assertEqual(NOVA, os.stat(path).st_gid)

    def test_missing_file_is_an_os_error(self):
        self.assertRaises(FileNotFoundError, privsep.chown,
                          str(self.disks / 'missing'), NOVA)

    def test_overlay_of_qemus_user_is_committed(self):
        disk = self.qemu_disk('disk')
        overlay = self.qemu_disk('overlay', '-b', disk, '-F', 'qcow2')
        functional_base.run('qemu-io', '-f', 'qcow2', '-c',
                            f'write -q -P 7 0 {SIZE}', overlay)
        privsep.commit_overlay(overlay, disk, 'file', 'qcow2')
        self.assertNotIn('failed', functional_base.run(
            'qemu-io', '-r', '-f', 'qcow2', '-c', f'read -P 7 0 {SIZE}',
            disk))

    def test_image_of_qemus_user_is_changed(self):
        disk, other = self.qemu_disk('disk'), self.qemu_disk('other')
        overlay = self.qemu_disk('overlay', '-b', disk, '-F', 'qcow2')
        privsep.change_backing_file(overlay, 'qcow2', other, 'qcow2')
        privsep.change_snapshots('-c', 'name', overlay)
        info = privsep.image_info(overlay, 'qcow2', timeout=60)
        self.assertIn(other, info)
        self.assertIn('"name": "name"', info)

    def test_block_device_of_group_is_served_by_novas_user(self):
        image = self.directory / 'raw'
        image.write_bytes(bytes(1 << 20))
        device = functional_base.run(
            'losetup', '--find', '--show', str(image)).strip()
        self.addCleanup(functional_base.run, 'losetup', '--detach', device)
        os.chown(device, 0, QEMU)
        os.chmod(device, 0o640)
        work = self.directory / 'work'
        work.mkdir(mode=0o700)
        os.chown(work, NOVA, NOVA)
        for directory in (self.directory, self.directory.parent):
            directory.chmod(0o711)
        socket, pid_file = str(work / 'nbd'), work / 'pid'
        privsep.serve_block_device(
            device, ['--read-only', '--fork', '--socket', socket,
                     '--pid-file', str(pid_file), '--format', 'raw', device],
            NOVA, NOVA, 60)
        server = qemu_nbd.Server(int(pid_file.read_text()), 'uuid')
        self.addCleanup(server.stop)
        process = psutil.Process(server.pid)
        self.assertEqual(NOVA, process.uids().effective)
        self.assertIn(f'Groups:\t{QEMU}', pathlib.Path(
            f'/proc/{server.pid}/status').read_text())
        self.assertEqual(NOVA, os.stat(socket).st_uid)
        self.assertEqual([server.pid], [
            found.pid for found in qemu_nbd.servers_on(socket, 'uuid')])
