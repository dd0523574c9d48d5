# SPDX-License-Identifier: Apache-2.0
"""Recovery after a kill of nova-compute, by commands and at its start."""

from devcloud import compute

from tests.e2e import killed


class CommandTest(killed.KilledTestCase):

    def test_interrupted_snapshot_is_recovered_while_service_is_stopped(self):
        running = self.command('recover')
        self.assertEqual(3, running.returncode)
        self.assertIn('Another process on this host', running.stderr)

        image = self.kill_during_snapshot()

        listed = self.command('recover', '--dry-run')
        self.assertEqual(1, listed.returncode, listed.stderr)
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
        self.assertEqual(3, running.returncode)
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
