# SPDX-License-Identifier: Apache-2.0
"""The least that has to work with disks in Ceph, in a few minutes."""

from devcloud import compute

from tests.ceph import base


class HeartTest(base.CephTestCase):
    """One guest, cloned from an image in Ceph."""

    MORE = base.RAW

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = cls.boot()

    def test_image_of_running_guest_is_made_inside_ceph_and_quiesced(self):
        self.assert_direct(self.snapshot(self.server), 'filesystem')
        self.assert_nothing_left(self.server)
        self.assert_keeps_writing(self.server)

    def test_image_deleted_during_flatten_cancels_at_once(self):
        # The state of the image is looked at every four seconds.
        with self.slow_ceph(2 * base.SLOW_SECONDS):
            image, log = self.begin_flatten(self.server)
            self.client.delete('glance', f'/images/{image}')
            self.await_log(log, f'Snapshot cancelled: Image {image} could not '
                                f'be found', 60)
            self.await_end(self.server, 60)
        self.assertNotIn('is flattened', log())
        self.assertNotIn('Traceback', log())
        self.assertFalse(self.image_exists(image))
        self.assert_nothing_left(self.server)
        self.assert_keeps_writing(self.server)

    def test_kill_during_flatten_is_recovered_and_disk_deletable(self):
        with self.slow_ceph():
            image, _log = self.begin_flatten(self.server)
            self.kill_compute()
        self.addCleanup(compute.start, self.state)
        self.assertNotEqual([], self.disk_snapshots(self.server))
        self.assertIn(image, self.volumes('images'))
        compute.start(self.state)
        self.await_end(self.server)
        self.await_image_gone(image)
        self.assert_nothing_left(self.server)
        self.assert_direct(self.snapshot(self.server), 'filesystem')

    # By its name, it runs after all others: it restarts nova-compute.
    @base.configured(*base.QCOW2)
    def test_then_qcow2_is_streamed_sparsely_and_the_disk_deletable(self):
        snapshot = self.snapshot(self.server)
        _, reason = self.assert_streamed(snapshot, 'filesystem', 'qcow2')
        self.assertIn('format qcow2', reason)
        self.assert_reads_sparsely(snapshot, self.server)
        self.assert_nothing_left(self.server)
        self.assert_keeps_writing(self.server)
        self.action(self.server, 'os-stop', 'SHUTOFF')
        self.assert_streamed(self.snapshot(self.server), 'offline', 'qcow2')
        self.assert_nothing_left(self.server)
        self.assert_deleted(self.server)
