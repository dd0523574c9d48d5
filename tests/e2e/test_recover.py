# SPDX-License-Identifier: Apache-2.0
"""Recovery after a kill of nova-compute, by commands and at its start."""

import shutil
import signal
import subprocess

from devcloud import compute
from devcloud import config
from devcloud import servers
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

    def forget_journal(self):
        """Have the journal not know of any snapshot."""
        for path in (self.state.nova / 'snapext').glob('*.json'):
            path.unlink()
        for path in self.state.snapshots.glob('*'):
            shutil.rmtree(path)


class CommandTest(KilledTestCase):

    def command(self, name, *words):
        etc = self.state.etc / 'nova'
        return subprocess.run(
            ('runuser', '-u', config.USER, '--',
             self.state.bin('nova-snapext'), name,
             '--config-file', etc / 'nova.conf',
             '--config-dir', etc / 'nova-compute.d', *words),
            capture_output=True, text=True, cwd=self.state.nova)

    def test_interrupted_snapshot_is_recovered_while_service_is_stopped(self):
        running = self.command('recover')
        self.assertEqual(1, running.returncode)
        self.assertIn('Another process on this host', running.stderr)

        image = self.kill_during_snapshot()

        listed = self.command('recover', '--dry-run')
        self.assertEqual(0, listed.returncode, listed.stderr)
        for part in (self.server, image, 'overlay', 'NBD export'):
            self.assertIn(part, listed.stdout)
        self.assertIn('disk.snapext', self.host.virsh('dumpxml', self.server))

        unknown = self.command(
            'recover', '00000000-0000-0000-0000-000000000000')
        self.assertEqual(1, unknown.returncode)

        done = self.command('recover')
        self.assertEqual(0, done.returncode, done.stderr)
        self.assertIn('cleaned up', done.stdout)
        self.assertNotIn('disk.snapext',
                         self.host.virsh('dumpxml', self.server))
        self.assertFalse(self.image_exists(image))
        self.assert_nothing_left(self.server)
        self.await_records(self.server, 3)
        self.assertIn('nothing to clean up', self.command('recover').stdout)

        compute.start(self.state)
        self.assert_snapshot_complete(self.snapshot(self.server))

    def test_drained_host_has_no_overlay_that_the_journal_forgot(self):
        running = self.command('drain')
        self.assertEqual(1, running.returncode)
        self.assertIn('Another process on this host', running.stderr)
        self.assertEqual(0, self.command('drain', '--dry-run').returncode)

        self.kill_during_snapshot()
        self.forget_journal()
        listed = self.command('drain', '--dry-run')
        self.assertEqual(1, listed.returncode, listed.stderr)
        self.assertIn(f'{self.server} has', listed.stdout)

        done = self.command('drain')
        self.assertEqual(0, done.returncode, done.stderr)
        self.assertIn('compute_driver can be set', done.stdout)
        self.assertNotIn('disk.snapext',
                         self.host.virsh('dumpxml', self.server))
        self.assert_nothing_left(self.server)
        self.await_records(self.server, 3)
        self.assertEqual(0, self.command('drain').returncode)


class HostBootTest(KilledTestCase):
    """Nova starts the guests of a host that was rebooted."""

    CONFIGURATION = ('DEFAULT.resume_guests_state_on_host_boot=true',)

    def test_guest_on_a_forgotten_overlay_starts_with_all_its_data(self):
        self.kill_during_snapshot()
        self.forget_journal()
        acknowledged = self.last_record(self.server)
        self.host.virsh('destroy', self.server)
        log = self.state.log('nova-compute')
        offset = log.stat().st_size
        compute.start(self.state)
        found = wait.until(
            'the guest to verify its records',
            lambda: self.console(self.server).find(
                r'^FOUND (\d+) LAST (\d+) GAPS (\d+) BAD (\d+)'),
            base.BOOT_TIMEOUT)
        count, last, gaps, bad = (int(word) for word in found.groups())
        self.assertEqual([count, 0, 0], [last, gaps, bad])
        self.assertGreaterEqual(last, acknowledged)
        self.assertNotIn('disk.snapext',
                         self.host.virsh('dumpxml', self.server))
        with open(log, errors='replace') as lines:
            lines.seek(offset)
            self.assertIn('Nova initializes the instance now', lines.read())
        wait.until('the end of the task', lambda: servers.show(
            self.client, self.server)['OS-EXT-STS:task_state'] is None, 60)
        self.assertEqual('ACTIVE', servers.show(
            self.client, self.server)['status'])


class EventletHostBootTest(HostBootTest):
    """The same under eventlet, Nova's other concurrency mode."""

    CONFIGURATION = (*HostBootTest.CONFIGURATION,
                     'DEFAULT.concurrency_backend=eventlet')
