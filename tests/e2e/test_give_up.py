# SPDX-License-Identifier: Apache-2.0
"""Snapshots that end before their time, and those that go on all the same."""

import signal
import subprocess

from devcloud import api
from devcloud import compute
from devcloud import servers
from devcloud import services
from devcloud import wait

from tests.e2e import base
from tests.e2e import held


class GiveUpTest(held.HeldUploadTestCase):
    """With a guest that all tests find running, and leave so."""

    CONFIGURATION = ('snapext.glance_settle_timeout=8',)

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = cls.boot()

    def assert_as_before(self):
        self.assertEqual('ACTIVE', servers.show(
            self.client, self.server)['status'])
        self.assert_nothing_left(self.server)
        self.assert_writes_on(self.server)

    def snapshot_with(self, **faults):
        self.set_faults(**faults)
        return self.snapshot(self.server, add_cleanup=self.addCleanup)

    def test_an_image_that_its_owner_deletes_ends_it_at_once(self):
        for strategy in ('backup', 'external'):
            running = self.begin(self.server, strategy)
            self.client.delete('glance', f'/images/{running.image}')
            self.assert_given_up(
                running, f'Image {running.image} could not be found')
            self.await_end(running)
            running.faults.release.set()
            self.assert_as_before()

    def test_a_service_that_is_stopped_ends_it_and_leaves_nothing(self):
        running = self.begin(self.server, 'external')
        daemon = services.nova_compute(self.state).daemon(self.state)
        daemon.identity().signal(signal.SIGTERM)
        self.addCleanup(compute.restart, self.state)
        self.assert_given_up(running, 'nova-compute is being stopped')
        self.await_end(running)
        # By itself, before the next start could clean anything up.
        self.assert_as_before()

    def test_what_glance_refuses_is_not_tried_again(self):
        for status in (413, 403):
            shot = self.snapshot_with(answers=[status])
            self.assertIn('Snapshot given up: Glance at', shot.log)
            self.assertIn(f'refused by the test (HTTP {status})', shot.log)
            self.assertEqual(1, len(self.proxy.faults.uploads))
            self.assertFalse(self.image_exists(shot.image))
        self.assert_as_before()

    def test_an_image_that_somebody_else_has_filled_goes(self):
        shot = self.snapshot_with(before_begin=self.fill)
        self.assertRegex(shot.log, 'Snapshot given up: Glance .*409')
        self.assertFalse(self.image_exists(shot.image))
        self.assert_as_before()

    def fill(self, path):
        file = self.place / 'other'
        subprocess.run(['qemu-img', 'create', '-q', '-f', 'qcow2', file, '1M'],
                       check=True)
        with open(file, 'rb') as content:
            self.client.open(
                'PUT', 'glance', path.removeprefix('/v2'), content, {
                    'Content-Type': 'application/octet-stream'}).close()

    def test_a_token_that_is_revoked_meanwhile_does_no_harm(self):
        client = api.Client.demo(self.state)
        running = self.begin(self.server, client=client)
        admin = api.Client.admin(self.state)
        admin.open('DELETE', 'keystone', '/auth/tokens', headers={
            'X-Subject-Token': client.token()}).close()
        running.faults.release.set()
        self.assert_right(running)
        self.assertIn('is looked at as [service_user]', running.log)
        self.assertNotIn(client.token(), running.log)
        self.assert_as_before()

    def test_a_libvirtd_that_is_killed_and_comes_back_does_no_harm(self):
        running = self.begin(self.server, 'backup')
        self.host.kill()
        self.host.start()
        running.faults.release.set()
        self.assert_right(running)
        self.assert_as_before()

    def test_a_libvirtd_that_hangs_is_waited_for_until_it_is_killed(self):
        for strategy in ('backup', 'external'):
            self.assert_hung_libvirtd_is_waited_for(strategy)

    def assert_hung_libvirtd_is_waited_for(self, strategy):
        running = self.begin(self.server, strategy)
        self.hang_libvirtd()
        running.faults.release.set()
        wait.until(f'image {running.image} active', lambda: (
            self.image(running.image)['status'] == 'active'),
            base.SNAPSHOT_TIMEOUT)
        self.assertNotIn('finished: strategy=', running.log)
        self.host.kill()
        self.host.start()
        self.assert_right(running)
        self.assert_as_before()

    def test_an_image_that_a_killed_glance_left_saving_is_given_up(self):
        running = self.begin(self.server)
        glance = services.glance(self.state)
        killed = glance.daemon(self.state).identity().session()
        for process in killed:
            process.signal(signal.SIGKILL)
        wait.until('end of Glance', lambda: not any(
            process.is_alive() for process in killed), held.SOON)
        glance.start(self.state)
        glance.await_ready(self.state)
        running.faults.release.set()
        self.await_end(running)
        self.assertIn('begins anew', running.log)
        self.assertIn("it is 'saving', not queued", running.log)
        self.await_image_gone(running.image)
        self.assert_as_before()

    def power_off(self):
        self.host.virsh('destroy', self.server)
        wait.until(f'server {self.server} to be off', lambda: (
            'shut off' in self.host.virsh('domstate', self.server)), held.SOON)
        # Its line in the file comes after the record, or not any more.
        type(self).lost_lines |= {self.last_record(self.server) + 1}

    def power_on(self):
        self.action(self.server, 'reboot', 'ACTIVE', {'type': 'HARD'})
        self.await_records(self.server, base.WARM_UP_RECORDS)

    def test_a_guest_that_goes_off_ends_its_backup_alone(self):
        running = self.begin(self.server, 'backup')
        self.power_off()
        # The disk is read again only when Glance takes more.
        running.faults.release.set()
        self.await_end(running)
        self.assertIn('was shut off before its snapshot', running.log)
        self.await_image_gone(running.image)
        self.assert_nothing_left(self.server)
        self.power_on()
        running = self.begin(self.server, 'external')
        self.power_off()
        running.faults.release.set()
        self.assert_right(running)
        self.assert_nothing_left(self.server)
        self.power_on()
        self.assert_as_before()
