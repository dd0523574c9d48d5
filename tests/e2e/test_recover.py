# SPDX-License-Identifier: Apache-2.0
"""The command ``nova-snapext recover`` after a kill of nova-compute."""

import signal
import subprocess

from devcloud import compute
from devcloud import config
from devcloud import services
from devcloud import wait

from tests.e2e import base
from tests.e2e import proxy


class RecoverCommandTest(base.CloudTestCase):

    @classmethod
    def setUpClass(cls):
        cls.proxy = cls.use_glance_proxy()
        super().setUpClass()
        cls.server = cls.boot()

    def kill(self):
        """Kill nova-compute during an upload, and end the connection."""
        process = services.nova_compute(self.state).daemon(
            self.state).identity()
        process.signal(signal.SIGKILL)
        wait.until('end of nova-compute', lambda: not process.is_alive(), 30)
        # No client waits for a response any more.
        raise ConnectionAbortedError()

    def command(self, *words):
        etc = self.state.etc / 'nova'
        return subprocess.run(
            ('runuser', '-u', config.USER, '--',
             self.state.bin('nova-snapext'), 'recover',
             '--config-file', etc / 'nova.conf',
             '--config-dir', etc / 'nova-compute.d', *words),
            capture_output=True, text=True, cwd=self.state.nova)

    def test_interrupted_snapshot_is_recovered_while_service_is_stopped(self):
        running = self.command()
        self.assertEqual(1, running.returncode)
        self.assertIn('Another process on this host', running.stderr)

        self.proxy.faults = proxy.Faults(before_end=self.kill)
        self.addCleanup(compute.start, self.state)
        image = self.client.post(
            'nova-api', f'/servers/{self.server}/action', {'createImage': {
                'name': 'e2e', 'metadata': {'snapext_strategy': 'external'},
            }})['image_id']
        daemon = services.nova_compute(self.state).daemon(self.state)
        wait.until('end of nova-compute', lambda: not daemon.is_running(),
                   base.SNAPSHOT_TIMEOUT)
        self.proxy.faults = proxy.Faults()
        self.assertIn('disk.snapext', self.host.virsh('dumpxml', self.server))
        self.await_records(self.server, 3)

        listed = self.command('--dry-run')
        self.assertEqual(0, listed.returncode, listed.stderr)
        for part in (self.server, image, 'overlay', 'NBD export'):
            self.assertIn(part, listed.stdout)
        self.assertIn('disk.snapext', self.host.virsh('dumpxml', self.server))

        unknown = self.command('00000000-0000-0000-0000-000000000000')
        self.assertEqual(1, unknown.returncode)

        done = self.command()
        self.assertEqual(0, done.returncode, done.stderr)
        self.assertIn('cleaned up', done.stdout)
        self.assertNotIn('disk.snapext',
                         self.host.virsh('dumpxml', self.server))
        self.assertFalse(self.image_exists(image))
        self.assert_nothing_left(self.server)
        self.await_records(self.server, 3)
        self.assertIn('nothing to clean up', self.command().stdout)

        compute.start(self.state)
        self.assert_snapshot_complete(self.snapshot(self.server))
