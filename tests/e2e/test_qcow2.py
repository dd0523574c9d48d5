# SPDX-License-Identifier: Apache-2.0
"""Guests whose root disk is a qcow2 on a backing file, Nova's default."""

import json
import pwd
import subprocess

from devcloud import servers
from devcloud import services
from oslo_utils import units

from tests.e2e import base
from tests.e2e import matrix


class RunningGuestTest(base.CloudTestCase):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = cls.boot()

    def test_image_is_complete_and_its_filesystem_is_clean(self):
        snapshot = self.snapshot(self.server)
        self.assertEqual(('backup', 'filesystem'),
                         (snapshot.strategy, snapshot.consistency))
        report = self.assert_snapshot_complete(snapshot)
        self.assertTrue(report.filesystem.clean, report.filesystem.check)
        self.assertFalse(report.filesystem.needs_recovery)
        self.assert_nothing_left(self.server)
        self.assert_keeps_writing(self.server)

    def test_image_is_not_staged_on_host(self):
        snapshot = self.snapshot(self.server)
        self.assertLess(snapshot.host_space,
                        self.image(snapshot.image)['size'] // 4)

    def test_paused_guest_is_snapshotted_and_stays_paused(self):
        self.action(self.server, 'pause', 'PAUSED')
        try:
            snapshot = self.snapshot(self.server)
            self.assertEqual('backup', snapshot.strategy)
            self.assert_snapshot_complete(snapshot)
            self.assert_nothing_left(self.server)
            self.assertIn('paused', self.host.virsh('domstate', self.server))
            self.assertEqual('PAUSED', servers.show(
                self.client, self.server)['status'])
        finally:
            self.action(self.server, 'unpause', 'ACTIVE')
        self.assert_keeps_writing(self.server)

    def test_stopped_guest_is_snapshotted_and_starts_again(self):
        self.action(self.server, 'os-stop', 'SHUTOFF')
        try:
            snapshot = self.snapshot(self.server)
            self.assertEqual(('cold', 'offline'),
                             (snapshot.strategy, snapshot.consistency))
            report = self.assert_snapshot_complete(snapshot)
            self.assertTrue(report.filesystem.clean)
            self.assert_nothing_left(self.server)
            self.assertEqual('SHUTOFF', servers.show(
                self.client, self.server)['status'])
        finally:
            self.action(self.server, 'os-start', 'ACTIVE')
        self.await_records(self.server, 3)

    def test_configured_raw_format_makes_complete_raw_image(self):
        self.configure('libvirt.snapshot_image_format=raw')
        snapshot = self.snapshot(self.server)
        self.assertEqual('backup', snapshot.strategy)
        self.assert_snapshot_complete(snapshot, 'raw')
        self.assertEqual(units.Gi, self.image(snapshot.image)['size'])
        self.assert_nothing_left(self.server)

    def test_guest_without_agent_is_crash_consistent(self):
        server = self.boot('snap-guest-noagent', add_cleanup=self.addCleanup)
        snapshot = self.snapshot(server)
        self.assertEqual(('backup', 'crash'),
                         (snapshot.strategy, snapshot.consistency))
        self.assert_snapshot_complete(snapshot)
        self.assert_keeps_writing(server)

    def test_second_guest_boots_from_image_of_running_guest(self):
        snapshot = self.snapshot(self.server)
        last = self.assert_image_complete(snapshot.image).records.last
        second = self.boot(snapshot.image, add_cleanup=self.addCleanup)
        self.assert_boots_with_records(second, last)

    def test_nova_compute_and_qemu_run_as_different_users(self):
        daemon = services.nova_compute(self.state).daemon(self.state)
        domain = self.host.virsh('domname', self.server).strip()
        self.assertEqual('nova', user_of(daemon.identity().pid))
        self.assertEqual('libvirt-qemu',
                         user_of(self.host.guests()[domain].pid))


class CompressedTest(base.CloudTestCase):

    # Nova converts neither of the disks to raw: the second guest reads our
    # compressed data.
    CONFIGURATION = (*matrix.DISKS['flat qcow2'],
                     *matrix.FORMATS['compressed qcow2'])

    def test_second_guest_boots_from_compressed_image(self):
        first = self.boot(self.copy_image('snap-guest'),
                          add_cleanup=self.addCleanup)
        snapshot = self.snapshot(first)
        last = self.assert_snapshot_complete(snapshot).records.last
        with self.downloaded(snapshot.image) as file:
            checked = json.loads(subprocess.run(
                ['qemu-img', 'check', '--output=json', file], check=True,
                capture_output=True).stdout)
        self.assertGreater(checked['compressed-clusters'], 0)
        self.assert_nothing_left(first)
        second = self.boot(snapshot.image, add_cleanup=self.addCleanup)
        self.assert_boots_with_records(second, last)
        self.assertRegex(self.host.virsh('dumpxml', second),
                         matrix.DEFINITIONS['flat qcow2'])


def user_of(pid):
    with open(f'/proc/{pid}/status') as status:
        uid = next(line.split()[1] for line in status
                   if line.startswith('Uid:'))
    return pwd.getpwuid(int(uid)).pw_name
