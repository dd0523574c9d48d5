# SPDX-License-Identifier: Apache-2.0
"""Ceph, Glance and users that get in the way of a snapshot."""

import uuid

from devcloud import compute
from devcloud import servers
from devcloud import services
from devcloud import wait

from tests.ceph import base
from tests.e2e import held
from tests.e2e import killed


class CephStoppedTest(base.OneGuestTestCase):
    """The OSD ends or hangs."""

    MORE = (*base.RAW, 'snapext.operation_timeout=30')

    def test_osd_that_is_down_during_flatten_and_back_only_delays(self):
        acknowledged = self.last_record(self.server)
        with self.slow_ceph():
            image, log = self.begin_flatten(self.server)
            self.stop_osd()
            self.ceph.start_osd()
        self.await_end(self.server)
        self.assertIsNotNone(base.DIRECT.search(log()), log()[-4000:])
        self.assert_image_complete(image, 'raw', acknowledged)
        self.assert_as_before()

    def test_image_deleted_while_osd_is_down_leaves_nothing_later(self):
        with self.slow_ceph():
            image, log = self.begin_flatten(self.server)
            self.stop_osd()
            self.client.delete('glance', f'/images/{image}')
            self.ceph.start_osd()
        self.await_end(self.server)
        self.assertFalse(self.image_exists(image))
        self.assertNotIn('finished: strategy=', log())
        self.assert_as_before()

    def test_server_deleted_during_flatten_leaves_neither_disk_nor_image(
            self):
        server = servers.create(
            self.client, 'ceph', servers.image_id(self.client, base.IN_CEPH),
            'snap.tiny')
        self.addCleanup(servers.delete, self.client, server)
        with self.slow_ceph():
            image, log = self.begin_flatten(server)
            # Else it may be flattened before the deletion is noticed.
            self.stop_osd()
            self.client.delete('nova-api', f'/servers/{server}')
            wait.until('the cancellation', lambda: (
                'Ending the snapshot' in log()), held.SOON)
            self.ceph.start_osd()
        self.assert_deleted(server)
        self.await_image_gone(image)
        self.assertEqual([], self.journal_files())


class HeldTest(held.HeldUploadTestCase, base.OneGuestTestCase):
    """Streamed images, whose upload is held."""

    MORE = base.QCOW2

    def test_deleted_image_cancels_at_once(self):
        running = self.begin(self.server)
        self.client.delete('glance', f'/images/{running.image}')
        self.assert_cancelled(running, f'Image {running.image} could not be '
                                       f'found')
        self.await_end_of(running)
        running.faults.release.set()
        self.assert_as_before()

    def test_osd_that_is_down_and_back_only_delays(self):
        running = self.begin(self.server)
        self.stop_osd()
        running.faults.release.set()
        self.ceph.start_osd()
        self.await_end_of(running)
        self.assertIn('finished: strategy=rbd', running.log)
        self.assert_image_complete(running.image,
                                   acknowledged=running.acknowledged)
        self.assert_as_before()

    def test_stopped_guest_may_be_started_when_its_snapshot_is_read(self):
        self.action(self.server, 'os-stop', 'SHUTOFF')
        try:
            running = self.begin(self.server)
            # Not by Nova, which waits for the end of the task.
            self.host.virsh('start', self.server)
            self.await_records(self.server, 3)
            running.faults.release.set()
            self.await_end_of(running)
            self.assert_image_complete(running.image,
                                       acknowledged=running.acknowledged)
            self.assert_nothing_left(self.server)
        finally:
            self.host.virsh('destroy', self.server)
            self.expect_lost_line(self.server)
            self.action(self.server, 'reboot', 'ACTIVE', {'type': 'HARD'})
            self.await_records(self.server, 3)

    def await_end_of(self, running):
        base.CephTestCase.await_end(self, running.server)

    def await_end(self, running):
        self.await_end_of(running)


class LeftoverTest(base.CephTestCase):
    """Snapshots inside Ceph that no journal knows. Nobody writes to it."""

    MORE = base.RAW

    def setUp(self):
        super().setUp()
        # It need not have booted.
        self.server = servers.create(
            self.client, 'ceph', servers.image_id(self.client, base.IN_CEPH),
            'snap.tiny')
        self.addCleanup(servers.delete, self.client, self.server)

    def leave(self, with_clone=True):
        """Create what a killed snapshot with a lost journal leaves.

        :returns: name of the clone in Glance's pool
        """
        clone = str(uuid.uuid4())
        left = f'vms/{self.server}_disk@snapext-{uuid.uuid4().hex}'
        self.ceph.rbd('snap', 'create', '--no-progress', left)
        if with_clone:
            self.ceph.rbd('snap', 'protect', left)
            self.ceph.rbd('clone', left, f'images/{clone}')
            self.addCleanup(lambda: clone in self.volumes('images') and
                            self.ceph.rbd('rm', '--no-progress',
                                          f'images/{clone}'))
        return clone

    def test_deleted_server_leaves_neither_disk_nor_clone(self):
        self.leave()
        self.leave(with_clone=False)
        self.assert_deleted(self.server)

    def test_recover_removes_it_with_its_clone(self):
        clone = self.leave()
        services.nova_compute(self.state).stop(self.state)
        self.addCleanup(compute.start, self.state)
        run = killed.KilledTestCase.command(self, 'recover')
        self.assertEqual(0, run.returncode, run.stderr)
        self.assertIn(f'vms/{self.server}_disk@snapext-', run.stdout)
        self.assertEqual([], self.disk_snapshots(self.server))
        self.assertNotIn(clone, self.volumes('images'))

    def test_next_snapshot_is_taken_beside_it(self):
        self.leave(with_clone=False)
        snapshot = self.snapshot(self.server)
        self.assertEqual('rbd', snapshot.strategy)
        self.assertEqual(1, len(self.disk_snapshots(self.server)))

    def test_snapshot_of_somebody_else_stays(self):
        foreign = f'vms/{self.server}_disk@mine'
        self.ceph.rbd('snap', 'create', '--no-progress', foreign)
        self.addCleanup(self.ceph.rbd, 'snap', 'rm', '--no-progress', foreign)
        snapshot = self.snapshot(self.server)
        self.assertEqual('rbd', snapshot.strategy)
        self.assertEqual(['mine'], self.disk_snapshots(self.server))
