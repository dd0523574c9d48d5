# SPDX-License-Identifier: Apache-2.0
"""Shelve, createBackup, rescue and resize with disks in Ceph."""

from devcloud import errors
from devcloud import layout
from devcloud import servers
from devcloud import wait
from oslo_utils import timeutils

from tests.ceph import base
from tests.e2e import base as e2e
from tests.e2e import test_operations as operations


class OperationsTestCase(base.CephTestCase):
    """One guest, which is active again after each test.

    :cvar SHELVED_BY: strategy of the image of a shelved guest
    """

    SHELVED_BY = 'rbd'

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = cls.boot()

    def setUp(self):
        super().setUp()
        # After a failed test the server may be in another state.
        shown = self.server_shown()
        if (shown['status'], shown['OS-EXT-STS:task_state']) != (
                'ACTIVE', None):
            type(self).server = self.boot()

    def assert_all_images_have_their_data(self):
        """Check that no image of the server is active and empty.

        Glance saves an image again that is deleted while Glance reads it.
        """
        listed = self.client.get(
            'glance', f'/images?instance_uuid={self.server}')['images']
        for image in listed:
            self.assertEqual('active', image['status'])
            self.assertGreater(image['size'] or 0, layout.MIB)
            with self.downloaded(image['id']):
                pass
        return {image['id'] for image in listed}

    def backup(self):
        acknowledged = self.last_record(self.server)
        task_states, response, log = self.run_action(
            self.server, 'createBackup',
            {'name': 'ceph-backup', 'backup_type': 'daily', 'rotation': 1})
        image = response['image_id']
        self.addCleanup(self.client.delete, 'glance', f'/images/{image}',
                        missing_ok=True)
        self.assertSequenceEqual(operations.BACKUP, task_states)
        self.assertIsNotNone(base.DIRECT.search(log), log[-4000:])
        return image, acknowledged

    def await_next_second(self, image):
        """Wait until a new image has a later date, to the second."""
        created = timeutils.parse_isotime(self.image(image)['created_at'])
        wait.until('the next second',
                   lambda: timeutils.is_older_than(created, 1), 10)

    def shelve(self, image_format='raw'):
        """Shelve the server.

        :returns: its image, the last record in it, and the log
        """
        acknowledged = self.last_record(self.server)
        task_states, _, log = self.run_action(self.server, 'shelve')
        [image] = self.client.get(
            'glance', f'/images?name=e2e-shelved&instance_uuid={self.server}'
        )['images']
        self.addCleanup(self.client.delete, 'glance', f'/images/{image["id"]}',
                        missing_ok=True)
        self.assertSequenceEqual(operations.SHELVE_AND_OFFLOAD, task_states)
        servers.await_status(self.client, self.server, 'SHELVED_OFFLOADED')
        self.assertEqual((self.SHELVED_BY, 'offline'), (
            image['snapext_strategy_used'], image['snapext_consistency']))
        self.assertIsNotNone(e2e.FINISHED.search(log), log[-4000:])
        report = self.assert_image_complete(
            image['id'], image_format, acknowledged)
        self.assertTrue(report.filesystem.clean, report.filesystem.check)
        # Nova has deleted the disk: nothing of the snapshot was in its way.
        self.assert_disk_gone(self.server)
        self.assertEqual([], list(self.state.snapshots.glob('*')))
        return image['id'], report.records.last, log

    def unshelve(self, image, last):
        task_states, _, _ = self.run_action(self.server, 'unshelve')
        self.assertSequenceEqual(operations.UNSHELVE, task_states)
        servers.await_status(self.client, self.server, 'ACTIVE')
        self.assert_boots_with_records(self.server, last)
        self.assert_keeps_writing(self.server)
        self.await_image_gone(image)


class DirectTest(OperationsTestCase):
    """With raw images, which are made inside Ceph."""

    MORE = base.RAW

    def test_backups_rotate_and_no_empty_image_is_left(self):
        last = None
        for _ in range(3):
            if last:
                self.await_next_second(last)
            image, acknowledged = self.backup()
            if last:
                self.await_image_gone(last)
            last = image
        self.assertEqual({last}, self.assert_all_images_have_their_data())
        report = self.assert_image_complete(last, 'raw', acknowledged)
        self.assertTrue(report.filesystem.clean, report.filesystem.check)
        self.assert_nothing_left(self.server)
        self.assert_keeps_writing(self.server)

    def test_image_boots_as_parent_of_clones_and_is_taken_again(self):
        snapshot = self.snapshot(self.server)
        taken = self.assert_direct(snapshot, 'filesystem')
        clone = self.boot(snapshot.image, add_cleanup=self.addCleanup)
        self.assertEqual(f'images/{snapshot.image}',
                         self.parent(f'vms/{clone}_disk'))
        self.assert_boots_with_records(clone, taken.report.records.last)
        self.assert_direct(
            self.snapshot(clone, add_cleanup=self.addCleanup), 'filesystem')
        self.assert_nothing_left(clone)
        # Its image can't be deleted as long as it has a clone.
        refusal = self.assertRaises(
            errors.ApiError, self.client.delete, 'glance',
            f'/images/{snapshot.image}')
        self.assertEqual(409, refusal.code)
        self.assert_deleted(clone)

    def test_rescued_guest_is_refused_and_taken_after_its_rescue(self):
        self.action(self.server, 'rescue', 'RESCUE')
        try:
            refusal = self.assertRaises(
                errors.ApiError, servers.action, self.client, self.server,
                'createImage', {'name': 'ceph'})
            self.assertEqual(409, refusal.code)
            self.assert_nothing_left(self.server)
        finally:
            self.action(self.server, 'unrescue', 'ACTIVE')
        self.await_records(self.server, 3)
        self.assert_direct(self.snapshot(self.server), 'filesystem')
        self.assertEqual({f'{self.server}_disk'}, {
            name for name in self.volumes('vms')
            if name.startswith(self.server)})

    def test_resized_guest_is_taken_before_and_after(self):
        self.assert_direct(self.snapshot(self.server), 'filesystem')
        self.action(self.server, 'resize', 'VERIFY_RESIZE', {
            'flavorRef': self.flavor('snap.mixed')})
        refusal = self.assertRaises(
            errors.ApiError, servers.action, self.client, self.server,
            'createImage', {'name': 'ceph'})
        self.assertEqual(409, refusal.code)
        self.action(self.server, 'confirmResize', 'ACTIVE')
        self.await_records(self.server, 3)
        taken = self.assert_direct(self.snapshot(self.server), 'filesystem')
        self.assertEqual(8, taken.image['size'] // 1024 ** 3)
        self.assert_nothing_left(self.server)

    def flavor(self, name):
        return next(flavor['id'] for flavor in self.client.get(
            'nova-api', '/flavors')['flavors'] if flavor['name'] == name)

    # By its name, it runs after all others: the disk is no clone then.
    def test_then_shelved_guest_is_unshelved_from_its_image(self):
        image, last, log = self.shelve()
        self.assertIsNotNone(base.DIRECT.search(log), log[-4000:])
        self.unshelve(image, last)
        # The disk that Nova has flattened still tells the pool by the image
        # that the guest was booted from.
        self.assertIsNone(self.parent(f'vms/{self.server}_disk'))
        self.assert_direct(self.snapshot(self.server), 'filesystem')
        self.assert_nothing_left(self.server)


class StreamedTest(OperationsTestCase):
    """With qcow2 images, which are streamed."""

    MORE = base.QCOW2

    def test_then_shelved_guest_is_unshelved_from_its_image(self):
        image, last, log = self.shelve('qcow2')
        self.assertIsNone(base.DIRECT.search(log))
        self.unshelve(image, last)
        self.assert_streamed(self.snapshot(self.server), 'filesystem',
                             'qcow2')
        self.assert_nothing_left(self.server)
