# SPDX-License-Identifier: Apache-2.0
"""``nova-snapext recover``, after a nova-compute that was killed."""

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
        """Kill nova-compute while an image is on its way to Glance."""
        compute_ = services.nova_compute(self.state).daemon(
            self.state).identity()
        compute_.signal(signal.SIGKILL)
        wait.until('end of nova-compute', lambda: not compute_.is_alive(), 30)
        raise ConnectionAbortedError()  # nobody is there to be answered

    def command(self, *words):
        etc = self.state.etc / 'nova'
        return subprocess.run(
            ('runuser', '-u', config.USER, '--',
             self.state.bin('nova-snapext'), 'recover',
             '--config-file', etc / 'nova.conf',
             '--config-dir', etc / 'nova-compute.d', *words),
            capture_output=True, text=True, cwd=self.state.nova)

    def test_it_cleans_up_what_was_left_while_the_service_is_down(self):
        running = self.command()
        self.assertEqual(1, running.returncode)
        self.assertIn('Another process of this host', running.stderr)

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

        told = self.command('--dry-run')
        self.assertEqual(0, told.returncode, told.stderr)
        for part in (self.server, image, 'overlay', 'qemu-nbd'):
            self.assertIn(part, told.stdout)
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
        shot = self.snapshot(self.server)
        self.assert_snapshot_right(shot)
