# SPDX-License-Identifier: Apache-2.0
"""Snapshots that are cancelled or aborted, and those that survive a fault."""

import signal
import subprocess

from devcloud import api
from devcloud import compute
from devcloud import servers
from devcloud import services
from devcloud import wait

from tests.e2e import base
from tests.e2e import held


class CancelTest(held.HeldUploadTestCase):
    """Each test finds the guest running, and leaves it running."""

    CONFIGURATION = ('snapext.glance_reset_timeout=8',)

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = cls.boot()

    def assert_as_before(self):
        self.assertEqual('ACTIVE', servers.show(
            self.client, self.server)['status'])
        self.assert_nothing_left(self.server)
        self.assert_keeps_writing(self.server)

    def snapshot_with(self, **faults):
        self.set_faults(**faults)
        return self.snapshot(self.server, add_cleanup=self.addCleanup)

    def test_deleted_image_cancels_snapshot_at_once(self):
        for strategy in ('backup', 'external'):
            running = self.begin(self.server, strategy)
            self.client.delete('glance', f'/images/{running.image}')
            self.assert_cancelled(
                running, f'Snapshot cancelled: Image {running.image} could '
                         f'not be found')
            self.await_end(running)
            running.faults.release.set()
            self.assert_as_before()

    def test_stopping_service_aborts_snapshot_and_cleans_up(self):
        running = self.begin(self.server, 'external')
        daemon = services.nova_compute(self.state).daemon(self.state)
        daemon.identity().signal(signal.SIGTERM)
        self.addCleanup(compute.restart, self.state)
        self.assert_cancelled(
            running, 'Snapshot aborted: nova-compute is stopping')
        self.await_end(running)
        # The service has not started again, and so has recovered nothing.
        self.assert_as_before()

    def test_upload_that_glance_refuses_is_not_retried(self):
        for status in (413, 403):
            snapshot = self.snapshot_with(answers=[status])
            self.assertIn('Snapshot aborted: Glance at', snapshot.log)
            self.assertIn(f'refused by the test (HTTP {status})', snapshot.log)
            self.assertEqual(1, len(self.proxy.faults.uploads))
            self.assertFalse(self.image_exists(snapshot.image))
        self.assert_as_before()

    def test_image_with_data_of_another_upload_is_deleted(self):
        snapshot = self.snapshot_with(before_begin=self.upload_other_data)
        self.assertRegex(snapshot.log, 'Snapshot aborted: Glance .*409')
        self.assertFalse(self.image_exists(snapshot.image))
        self.assert_as_before()

    def upload_other_data(self, path):
        file = self.directory / 'other'
        subprocess.run(['qemu-img', 'create', '-q', '-f', 'qcow2', file, '1M'],
                       check=True)
        with open(file, 'rb') as content:
            self.client.open(
                'PUT', 'glance', path.removeprefix('/v2'), content, {
                    'Content-Type': 'application/octet-stream'}).close()

    def test_revoked_token_does_not_fail_snapshot(self):
        client = api.Client.demo(self.state)
        running = self.begin(self.server, client=client)
        admin = api.Client.admin(self.state)
        admin.open('DELETE', 'keystone', '/auth/tokens', headers={
            'X-Subject-Token': client.token()}).close()
        running.faults.release.set()
        self.assert_completes(running)
        self.assertIn(f'Image {running.image} is verified as [service_user]',
                      running.log)
        self.assertNotIn(client.token(), running.log)
        self.assert_as_before()

    def test_restart_of_killed_libvirtd_does_not_fail_snapshot(self):
        running = self.begin(self.server, 'backup')
        self.host.kill()
        self.host.start()
        running.faults.release.set()
        self.assert_completes(running)
        self.assert_as_before()

    def test_hung_libvirtd_delays_snapshot_until_its_restart(self):
        for strategy in ('backup', 'external'):
            self.assert_delayed_by_hung_libvirtd(strategy)

    def assert_delayed_by_hung_libvirtd(self, strategy):
        running = self.begin(self.server, strategy)
        self.hang_libvirtd()
        running.faults.release.set()
        wait.until(f'image {running.image} active', lambda: (
            self.image(running.image)['status'] == 'active'),
            base.SNAPSHOT_TIMEOUT)
        self.assertNotIn('finished: strategy=', running.log)
        self.host.kill()
        self.host.start()
        self.assert_completes(running)
        self.assert_as_before()

    def test_image_left_saving_by_killed_glance_is_deleted(self):
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
        self.assertIn('is retried from its first byte', running.log)
        self.assertIn("its status is 'saving', not queued", running.log)
        self.await_image_gone(running.image)
        self.assert_as_before()

    def power_off(self):
        self.host.virsh('destroy', self.server)
        wait.until(f'server {self.server} to be shut off', lambda: (
            'shut off' in self.host.virsh('domstate', self.server)), held.SOON)
        self.expect_lost_line(self.server)

    def power_on(self):
        self.action(self.server, 'reboot', 'ACTIVE', {'type': 'HARD'})
        self.await_records(self.server, base.WARM_UP_RECORDS)

    def test_guest_that_is_shut_off_aborts_backup_but_not_external(self):
        running = self.begin(self.server, 'backup')
        self.power_off()
        # The disk is not read again until Glance accepts more data.
        running.faults.release.set()
        self.await_end(running)
        self.assertIn('was shut off before its snapshot', running.log)
        self.await_image_gone(running.image)
        self.assert_nothing_left(self.server)
        self.power_on()
        running = self.begin(self.server, 'external')
        self.power_off()
        running.faults.release.set()
        self.assert_completes(running)
        self.assert_nothing_left(self.server)
        self.power_on()
        self.assert_as_before()
