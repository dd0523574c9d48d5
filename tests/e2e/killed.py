# SPDX-License-Identifier: Apache-2.0
"""A nova-compute that is killed during a snapshot."""

import shutil
import signal
import subprocess

from devcloud import compute
from devcloud import config
from devcloud import services
from devcloud import wait

from tests.e2e import base
from tests.e2e import proxy


class KilledTestCase(base.CloudTestCase):
    """nova-compute is killed during a snapshot."""

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

    def kill_during_snapshot(self):
        """Leave a guest on its overlay, while nova-compute is stopped.

        :returns: id of the snapshot's image
        """
        self.proxy.faults = proxy.Faults(before_end=self.kill)
        self.addCleanup(compute.start, self.state)
        image = self.client.post(
            'nova-api', f'/servers/{self.server}/action', {'createImage': {
                'name': 'e2e', 'metadata': {'snapext_strategy': 'external'},
            }})['image_id']
        self.addCleanup(self.client.delete, 'glance', f'/images/{image}',
                        missing_ok=True)
        daemon = services.nova_compute(self.state).daemon(self.state)
        wait.until('end of nova-compute', lambda: not daemon.is_running(),
                   base.SNAPSHOT_TIMEOUT)
        self.proxy.faults = proxy.Faults()
        self.assertIn('disk.snapext', self.host.virsh('dumpxml', self.server))
        self.await_records(self.server, 3)
        return image

    def command(self, name, *words):
        """Run nova-snapext as the user of nova-compute."""
        etc = self.state.etc / 'nova'
        return subprocess.run(
            ('runuser', '-u', config.USER, '--',
             self.state.bin('nova-snapext'), name,
             '--config-file', etc / 'nova.conf',
             '--config-dir', etc / 'nova-compute.d', *words),
            capture_output=True, text=True, cwd=self.state.nova)

    def forget_journal(self):
        """Have the journal not know of any snapshot."""
        for path in (self.state.nova / 'snapext').glob('*.*'):
            path.unlink()
        for path in self.state.snapshots.glob('*'):
            shutil.rmtree(path)
