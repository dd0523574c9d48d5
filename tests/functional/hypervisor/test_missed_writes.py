# SPDX-License-Identifier: Apache-2.0
"""Whether QEMU misses what a guest writes while a commit starts.

blkdebug stops the job twice where it reads the tables of the overlay. The
write begins at the first stop, behind the place that the job has reached, and
ends when the job continues from the second, before it notes writes.
"""

import os
import pathlib
import socket
import subprocess
import time

from devcloud import wait
import fixtures
from oslo_serialization import jsonutils
from oslotest import base

from nova_snapext.hypervisor import known_defects
from nova_snapext.hypervisor import qemu_process
from tests.functional.base import run

QEMU = 'qemu-system-x86_64'

# Seconds.
TIMEOUT = 60

# Each table of a qcow2 is for 512 MiB.
PLACE = '64M'
TABLES = ('1G', '3G')

DEVICE = '/machine/peripheral/disk/virtio-backend'


class MissedWritesTest(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        directory = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self.disk, self.overlay, monitor = (
            str(directory / name) for name in ('disk', 'overlay', 'monitor'))
        run('qemu-img', 'create', '-q', '-f', 'qcow2', self.disk, '4G')
        run('qemu-img', 'create', '-q', '-f', 'qcow2', '-b', self.disk,
            '-F', 'qcow2', self.overlay)
        run('qemu-io', *(part for place in TABLES for part in (
            '-c', f'write -P 1 {place} 64k')), self.overlay)
        self.qemu = subprocess.Popen([
            QEMU, '-machine', 'q35,accel=tcg', '-m', '64', '-S', '-nodefaults',
            '-display', 'none', '-qmp', f'unix:{monitor},server=on,wait=off',
            '-blockdev', f'qcow2,node-name=disk,file.driver=file,'
                         f'file.filename={self.disk}',
            '-blockdev', f'qcow2,node-name=overlay,backing=disk,'
                         f'file.driver=blkdebug,file.image.driver=file,'
                         f'file.image.filename={self.overlay}',
            '-device', 'virtio-blk-pci,drive=overlay,id=disk'],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(self.end)
        wait.until('the monitor', lambda: os.path.exists(monitor), TIMEOUT)
        client = socket.socket(socket.AF_UNIX)
        self.addCleanup(client.close)
        client.settimeout(TIMEOUT)
        client.connect(monitor)
        self.monitor = client.makefile('rw')
        self.addCleanup(self.monitor.close)
        self.monitor.readline()
        self.query('qmp_capabilities')

    def end(self):
        self.qemu.kill()
        self.qemu.wait(TIMEOUT)

    def query(self, command, **arguments):
        print(jsonutils.dumps({'execute': command, 'arguments': arguments}),
              file=self.monitor, flush=True)
        answer = {}
        while not {'return', 'error'} & set(answer):
            answer = jsonutils.loads(self.monitor.readline())
        return answer['return']

    def qemu_io(self, command, where=f'-d {DEVICE}'):
        self.query('human-monitor-command', **{
            'command-line': f'qemu-io {where} "{command}"'})

    def jobs(self):
        return self.query('query-block-jobs')

    def commit(self, write):
        """Commit, and call a function while the job starts."""
        self.qemu_io('break l2_load first', 'overlay')
        self.query('block-commit', **{
            'job-id': 'commit', 'device': 'overlay', 'top-node': 'overlay',
            'base-node': 'disk'})
        write()
        self.qemu_io('break l2_load second')
        for tag in ('first', 'second'):
            # What it reads is on its way, and so is the write.
            time.sleep(1)
            self.assertEqual((False, 0), (
                self.jobs()[0]['ready'], self.jobs()[0]['len']))
            self.qemu_io(f'resume {tag}')
        wait.until('the commit', lambda: self.jobs()[0]['ready'], TIMEOUT)
        self.assertGreater(self.jobs()[0]['len'], 0)

    def write(self):
        self.qemu_io(f'aio_write -P 2 {PLACE} 64k')

    def is_missed(self):
        """End the commit, and return whether the disk lacks the write."""
        # Waits for the write.
        self.qemu_io('aio_flush')
        self.query('block-job-complete', device='commit')
        wait.until('the pivot', lambda: not self.jobs(), TIMEOUT)
        self.query('quit')
        self.qemu.wait(TIMEOUT)
        return 'failed' in subprocess.run(
            ['qemu-io', '-r', '-c', f'read -P 2 {PLACE} 64k', self.disk],
            capture_output=True, text=True, timeout=TIMEOUT).stdout

    def test_only_versions_of_the_table_miss_writes(self):
        version = qemu_process.parse_version(run(QEMU, '--version'))
        self.commit(self.write)
        self.assertEqual(version in known_defects.MISSED_WRITES.qemu,
                         self.is_missed())

    def test_write_after_the_start_is_not_missed(self):
        self.commit(lambda: None)
        self.write()
        self.assertFalse(self.is_missed())
