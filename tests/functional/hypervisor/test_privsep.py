# SPDX-License-Identifier: Apache-2.0

import os
import pathlib
import subprocess
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
SECRET = b'of root' * 100


class PrivsepTestCase(base.BaseTestCase):

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


class PrivsepDaemonTest(PrivsepTestCase):
    """The steps in a real daemon, with nothing but its capabilities."""

    def setUp(self):
        super().setUp()
        # Of the daemon, too.
        self.useFixture(fixtures.EnvironmentVariable(
            'SNAPEXT_TEST', str(self.directory)))

    def daemons(self):
        """Return the daemon of this test. Others may run at the same time."""
        privsep.read_qcow2(self.qemu_disk('disk'), 0, 4)
        found = []
        for process in psutil.process_iter(['cmdline', 'environ']):
            if (privsep.context.pypath in (process.info['cmdline'] or ()) and
                    (process.info['environ'] or {}).get('SNAPEXT_TEST') ==
                    str(self.directory)):
                found.append(process)
        return found

    def test_daemon_has_two_capabilities(self):
        [daemon] = self.daemons()
        status = dict(line.split(':\t', 1) for line in pathlib.Path(
            f'/proc/{daemon.pid}/status').read_text().splitlines())
        expected = sum(1 << capability for capability in (
            capabilities.CAP_CHOWN, capabilities.CAP_DAC_READ_SEARCH))
        for name in ('CapEff', 'CapPrm'):
            self.assertEqual(expected, int(status[name], 16))
        self.assertEqual(0, int(status['CapInh'], 16))

    def test_step_uses_the_daemon_that_was_started_ahead(self):
        privsep.context.start_ahead()
        with self.assertNoLogs('oslo_privsep', 'WARNING'):
            self.assertEqual(1, len(self.daemons()))

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

    def test_qcow2_of_qemus_user_is_read_and_nothing_else(self):
        path = self.qemu_disk('disk')
        self.assertEqual(b'QFI', privsep.read_qcow2(path, 0, 3))
        self.assertEqual(b'', privsep.read_qcow2('/etc/shadow', 0, 3))
        os.mkfifo(self.disks / 'pipe')
        self.assertEqual(
            b'', privsep.read_qcow2(str(self.disks / 'pipe'), 0, 3))
        self.assertRaises(FileNotFoundError, privsep.read_qcow2,
                          str(self.disks / 'missing'), 0, 3)

    def test_file_or_directory_of_qemus_user_is_synced_and_no_device(self):
        privsep.sync(str(self.disks))
        privsep.sync(self.qemu_disk('disk'))
        self.assertRaises(PermissionError, privsep.sync, '/dev/null')
        self.assertRaises(FileNotFoundError, privsep.sync,
                          str(self.disks / 'missing'))


# Runs in a process of its own, which becomes Nova's user once the helper is
# started as root.
AS_NOVA = """
import json, os, pathlib, sys
from oslo_config import cfg
from nova_snapext import conf, exception, plan
from nova_snapext.hypervisor import privsep, qemu_img, qemu_nbd
cfg.CONF([], default_config_files=[])
cfg.CONF.set_override('helper_command', sys.argv[1],
                      'nova_snapext_privileged')
conf.CONF.set_override('instances_path', sys.argv[2])
privsep.context.start()
os.setgroups([])
os.setresgid(NOVA, NOVA, NOVA)
os.setresuid(NOVA, NOVA, NOVA)
directory = pathlib.Path(sys.argv[2])
path, overlay = str(directory / 'disk'), str(directory / 'disk.snapext')
disk = plan.RootDisk('vda', 'file', path, 'qcow2')
ACTION
"""


class NovasUserTest(PrivsepTestCase):
    """Nova's user works on files that only QEMU's user, or root, may open."""

    def setUp(self):
        super().setUp()
        self.instance = self.directory / 'instance'
        self.instance.mkdir()
        self.work = self.directory / 'work'
        for directory in (self.instance, self.work):
            directory.mkdir(exist_ok=True)
            os.chown(directory, NOVA, NOVA)
        for directory in (self.directory, self.directory.parent):
            directory.chmod(0o711)
        self.secret = self.directory / 'secret'
        self.secret.write_bytes(SECRET)
        self.secret.chmod(0o600)

    def image(self, name, *options, owner=QEMU):
        path = self.instance / name
        functional_base.run('qemu-img', 'create', '-q', '-f', 'qcow2',
                            *options, str(path), SIZE)
        os.chown(path, owner, owner)
        path.chmod(0o600)
        return path

    def overlay(self, disk, owner=QEMU):
        path = self.image('disk.snapext', '-b', str(disk), '-F', 'qcow2',
                          owner=owner)
        functional_base.run('qemu-io', '-f', 'qcow2', '-c',
                            f'write -q -P 7 0 {SIZE}', str(path))
        return path

    def as_nova(self, action):
        """Run code as Nova's user, with the real helper.

        :returns: the error's text; empty if there was none
        """
        script = AS_NOVA.replace('NOVA', str(NOVA)).replace('ACTION', action)
        process = subprocess.run(
            [sys.executable, '-W', 'ignore', '-c', script,
             str(pathlib.Path(sys.executable).parent / 'privsep-helper'),
             str(self.instance)],
            capture_output=True, text=True, timeout=60)
        self.assertEqual(SECRET, self.secret.read_bytes())
        if not process.returncode:
            return ''
        return process.stderr.strip().split('\n')[-1]

    def assert_owner(self, owner, *paths):
        self.assertEqual({(owner, owner)}, {
            (os.stat(path).st_uid, os.stat(path).st_gid) for path in paths})

    def assert_holds_seven(self, disk):
        self.assertNotIn('failed', functional_base.run(
            'qemu-io', '-r', '-f', 'qcow2', '-c', f'read -P 7 0 {SIZE}',
            str(disk)))

    def test_overlay_is_committed_and_the_owners_are_put_back(self):
        for owner in (QEMU, 0):
            disk = self.image('disk', owner=owner)
            overlay = self.overlay(disk, owner=owner)
            self.assertEqual('', self.as_nova(
                'assert not qemu_img.holds_same_data(overlay, disk); '
                'qemu_img.commit(overlay, disk); '
                'assert qemu_img.holds_same_data(overlay, disk)'))
            self.assert_owner(owner, disk, overlay)
            self.assert_holds_seven(disk)

    def test_snapshots_and_backing_file_are_changed(self):
        disk = self.image('disk')
        overlay = self.overlay(disk)
        self.assertEqual('', self.as_nova(
            'qemu_img.create_snapshot("name", path); '
            'assert qemu_img.holds_snapshot("name", path); '
            'qemu_img.delete_snapshot("name", path); '
            'assert not qemu_img.holds_snapshot("name", path); '
            'assert qemu_img.backing_chain(overlay, "qcow2") == '
            '[overlay, path]; '
            'qemu_img.change_backing_file(overlay, disk)'))
        self.assert_owner(QEMU, disk, overlay)

    def test_file_of_root_is_not_overwritten_through_a_data_file(self):
        disk = self.image('disk', '-o', f'data_file={self.instance}/data')
        overlay = self.overlay(disk)
        functional_base.run('qemu-img', 'amend', '-f', 'qcow2', '-o',
                            f'data_file={self.secret}', str(disk))
        text = self.as_nova('qemu_img.commit(overlay, disk)')
        self.assertIn('UnexpectedHeader', text)
        self.assertIn(str(self.secret), text)
        self.assert_owner(QEMU, disk, overlay)

    def test_header_that_changes_after_its_check_reaches_no_file_of_root(
            self):
        disk = self.image('disk', '-o', f'data_file={self.instance}/data')
        overlay = self.overlay(disk)
        functional_base.run('qemu-img', 'amend', '-f', 'qcow2', '-o',
                            f'data_file={self.secret}', str(disk))
        text = self.as_nova(
            'from nova_snapext.hypervisor import image_header; '
            'image_header.Header.check = lambda *_: None; '
            'qemu_img.commit(overlay, disk)')
        self.assertIn('Permission denied', text)
        self.assert_owner(QEMU, disk, overlay)

    def test_block_device_is_served_by_novas_user_alone(self):
        image = self.directory / 'raw'
        image.write_bytes(bytes(1 << 20))
        device = functional_base.run(
            'losetup', '--find', '--show', str(image)).strip()
        self.addCleanup(functional_base.run, 'losetup', '--detach', device)
        os.chown(device, 0, QEMU)
        os.chmod(device, 0o660)
        socket, pid_file = self.work / 'nbd', self.work / 'pid'
        self.assertEqual('', self.as_nova(
            f'disk = plan.RootDisk("vda", "block", "{device}", "raw"); '
            f'qemu_nbd.serve(disk, None, "{socket}", "{pid_file}", "uuid")'))
        server = qemu_nbd.Server(int(pid_file.read_text()), 'uuid')
        self.addCleanup(server.stop)
        self.assertEqual((0, QEMU), (os.stat(device).st_uid,
                                     os.stat(device).st_gid))
        process = psutil.Process(server.pid)
        self.assertEqual(NOVA, process.uids().effective)
        status = pathlib.Path(f'/proc/{server.pid}/status').read_text()
        self.assertRegex(status, r'(?m)^Groups:\s*$')
        self.assertRegex(status, r'(?m)^CapEff:\t0+$')
        self.assertEqual(NOVA, os.stat(socket).st_uid)
        self.assertEqual([server.pid], [
            found.pid for found in qemu_nbd.servers_on(str(socket), 'uuid')])
