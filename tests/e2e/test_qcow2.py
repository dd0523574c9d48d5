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

    def test_the_image_is_whole_and_its_filesystem_clean(self):
        shot = self.snapshot(self.server)
        self.assertEqual(('backup', 'filesystem'),
                         (shot.strategy, shot.consistency))
        report = self.assert_snapshot_right(shot)
        self.assertTrue(report.filesystem.clean, report.filesystem.check)
        self.assertFalse(report.filesystem.needs_recovery)
        self.assert_nothing_left(self.server)
        self.assert_writes_on(self.server)

    def test_no_image_is_staged_on_the_host(self):
        shot = self.snapshot(self.server)
        self.assertLess(shot.host_space, self.image(shot.image)['size'] // 4)

    def test_a_paused_guest_is_snapshotted_and_stays_paused(self):
        self.action(self.server, 'pause', 'PAUSED')
        try:
            shot = self.snapshot(self.server)
            self.assertEqual('backup', shot.strategy)
            self.assert_snapshot_right(shot)
            self.assert_nothing_left(self.server)
            self.assertIn('paused', self.host.virsh('domstate', self.server))
            self.assertEqual('PAUSED', servers.show(
                self.client, self.server)['status'])
        finally:
            self.action(self.server, 'unpause', 'ACTIVE')
        self.assert_writes_on(self.server)

    def test_a_stopped_guest_is_snapshotted_and_starts_again(self):
        self.action(self.server, 'os-stop', 'SHUTOFF')
        try:
            shot = self.snapshot(self.server)
            self.assertEqual(('cold', 'offline'),
                             (shot.strategy, shot.consistency))
            report = self.assert_snapshot_right(shot)
            self.assertTrue(report.filesystem.clean)
            self.assert_nothing_left(self.server)
            self.assertEqual('SHUTOFF', servers.show(
                self.client, self.server)['status'])
        finally:
            self.action(self.server, 'os-start', 'ACTIVE')
        self.await_records(self.server, 3)

    def test_where_raw_is_configured_the_image_is_raw_and_whole(self):
        self.configure('libvirt.snapshot_image_format=raw')
        shot = self.snapshot(self.server)
        self.assertEqual('backup', shot.strategy)
        self.assert_snapshot_right(shot, 'raw')
        self.assertEqual(units.Gi, self.image(shot.image)['size'])
        self.assert_nothing_left(self.server)

    def test_without_an_agent_it_is_crash_consistent(self):
        server = self.boot('snap-guest-noagent', add_cleanup=self.addCleanup)
        shot = self.snapshot(server)
        self.assertEqual(('backup', 'crash'),
                         (shot.strategy, shot.consistency))
        self.assert_snapshot_right(shot)
        self.assert_writes_on(server)

    def test_a_second_guest_boots_from_the_image_of_a_running_one(self):
        shot = self.snapshot(self.server)
        last = self.assert_image_whole(shot.image).records.last
        second = self.boot(shot.image, add_cleanup=self.addCleanup)
        self.assert_boots_with_records(second, last)

    def test_nova_compute_and_qemu_run_as_users_of_their_own(self):
        daemon = services.nova_compute(self.state).daemon(self.state)
        domain = self.host.virsh('domname', self.server).strip()
        self.assertEqual('nova', user_of(daemon.identity().pid))
        self.assertEqual('libvirt-qemu',
                         user_of(self.host.guests()[domain].pid))


class CompressedTest(base.CloudTestCase):

    # Nova makes neither of the disks raw: the second guest reads what we have
    # compressed.
    CONFIGURATION = (*matrix.DISKS['flat qcow2'],
                     *matrix.FORMATS['compressed qcow2'])

    def test_a_second_guest_boots_from_a_compressed_image(self):
        first = self.boot(self.copy_image('snap-guest'),
                          add_cleanup=self.addCleanup)
        shot = self.snapshot(first)
        last = self.assert_snapshot_right(shot).records.last
        with self.downloaded(shot.image) as file:
            checked = json.loads(subprocess.run(
                ['qemu-img', 'check', '--output=json', file], check=True,
                capture_output=True).stdout)
        self.assertGreater(checked['compressed-clusters'], 0)
        self.assert_nothing_left(first)
        second = self.boot(shot.image, add_cleanup=self.addCleanup)
        self.assert_boots_with_records(second, last)
        self.assertRegex(self.host.virsh('dumpxml', second),
                         matrix.DEFINITIONS['flat qcow2'])


def user_of(pid):
    with open(f'/proc/{pid}/status') as status:
        uid = next(line.split()[1] for line in status
                   if line.startswith('Uid:'))
    return pwd.getpwuid(int(uid)).pw_name
