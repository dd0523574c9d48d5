# SPDX-License-Identifier: Apache-2.0
"""Actions of Nova that use snapshots: backup, shelve, rescue, suspend."""

from devcloud import api
from devcloud import errors
from devcloud import servers
from devcloud import wait
from oslo_utils import timeutils

from tests.e2e import base

# The task states of each action in the documentation of Nova, in order.
BACKUP = ('image_backup', 'image_pending_upload', 'image_uploading')
SHELVE = ('shelving', 'shelving_image_pending_upload',
          'shelving_image_uploading')
SHELVE_AND_OFFLOAD = (*SHELVE, 'shelving_offloading')
OFFLOAD = ('shelving_offloading',)
UNSHELVE_ON_HOST = ('unshelving', 'powering-on')
UNSHELVE = ('unshelving', 'spawning')

# Seconds that Nova may take to delete an image that it no longer needs.
DELETE_TIMEOUT = 60


class _OneServer(base.CloudTestCase):
    """Actions on one server, which is active again after each test."""

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

    def await_image_gone(self, image):
        wait.until(f'end of image {image}',
                   lambda: not self.image_exists(image), DELETE_TIMEOUT)

    def server_shown(self):
        return servers.show(self.client, self.server)

    def shelve(self, documented, status):
        """Shelve the server, and check its image.

        :param documented: the expected task states
        :param status: the expected status of the server
        :returns: id of the image, and number of the last record in it
        """
        acknowledged = self.last_record(self.server)
        task_states, _, log = self.run_action(self.server, 'shelve')
        [image] = self.client.get(
            'glance', f'/images?name=e2e-shelved&instance_uuid={self.server}'
        )['images']
        self.addCleanup(self.client.delete, 'glance', f'/images/{image["id"]}',
                        missing_ok=True)
        self.assertSequenceEqual(documented, task_states)
        self.assertIn('strategy=cold', log)
        servers.await_status(self.client, self.server, status)
        report = self.assert_image_complete(
            image['id'], acknowledged=acknowledged)
        return image['id'], report.records.last

    def unshelve(self, documented, image, last):
        """Unshelve the server, and check its records and its image's end.

        :param documented: the expected task states
        :param image: id of its image, which Nova deletes
        :param last: number of the last record that the server has
        """
        task_states, _, _ = self.run_action(self.server, 'unshelve')
        self.assertSequenceEqual(documented, task_states)
        servers.await_status(self.client, self.server, 'ACTIVE')
        self.assert_boots_with_records(self.server, last)
        self.assert_keeps_writing(self.server)
        self.await_image_gone(image)


class OperationsTest(_OneServer):

    def backup(self):
        """Create a daily backup. Nova keeps the last two.

        :returns: id of the image, and number of the last record that the
            guest had acknowledged before
        """
        acknowledged = self.last_record(self.server)
        task_states, response, log = self.run_action(
            self.server, 'createBackup',
            {'name': 'e2e-backup', 'backup_type': 'daily', 'rotation': 2})
        image = response['image_id']
        self.addCleanup(self.client.delete, 'glance', f'/images/{image}',
                        missing_ok=True)
        self.assertSequenceEqual(BACKUP, task_states)
        self.assertIn('strategy=backup', log)
        return image, acknowledged

    def await_next_second(self, image):
        """Wait until a new image would have a later date than this one.

        Nova deletes the backup with the oldest date, and Glance's dates are in
        seconds.
        """
        created_at = timeutils.parse_isotime(self.image(image)['created_at'])
        wait.until('the next second',
                   lambda: timeutils.is_older_than(created_at, 1), 10)

    def test_third_backup_deletes_first_if_two_are_kept(self):
        first, _ = self.backup()
        self.await_next_second(first)
        second = self.backup()
        self.assertTrue(self.image_exists(first))
        third = self.backup()
        self.await_image_gone(first)
        for image, acknowledged in (second, third):
            shown = self.image(image)
            self.assertEqual(
                ('backup', 'daily', self.server),
                (shown['image_type'], shown['backup_type'],
                 shown['instance_uuid']))
            self.assert_image_complete(image, acknowledged=acknowledged)
        self.assert_nothing_left(self.server)
        self.assert_keeps_writing(self.server)

    def test_suspended_guest_is_snapshotted_and_resumes_its_state(self):
        self.action(self.server, 'suspend', 'SUSPENDED')
        try:
            snapshot = self.snapshot(self.server)
            self.assertSequenceEqual(base.IMAGE_STATES, snapshot.task_states)
            # Data that it has not written yet is in its saved memory.
            self.assertEqual(('cold', 'crash'),
                             (snapshot.strategy, snapshot.consistency))
            before = self.assert_snapshot_complete(snapshot)
            self.assert_nothing_left(self.server)
            self.assertEqual('SUSPENDED', self.server_shown()['status'])
            self.assertRegex(self.host.virsh('dominfo', self.server),
                             r'Managed save:\s+yes')
        finally:
            self.action(self.server, 'resume', 'ACTIVE')
        self.assert_keeps_writing(self.server)
        after = self.assert_snapshot_complete(self.snapshot(self.server))
        self.assertGreater(after.records.last, before.records.last)
        # It has not booted again.
        self.assertEqual(before.records.boots, after.records.boots)

    def test_rescued_guest_is_refused_and_stays_unchanged(self):
        last = self.last_record(self.server)
        self.action(self.server, 'rescue', 'RESCUE')
        try:
            images = self.images()
            refusal = self.assertRaises(
                errors.ApiError, servers.action, self.client, self.server,
                'createImage', {'name': 'e2e'})
            self.assertEqual(409, refusal.code)
            self.assertIn(f"Cannot 'createImage' instance {self.server} while "
                          f"it is in vm_state rescued", str(refusal))
            shown = self.server_shown()
            self.assertEqual(
                ('RESCUE', None),
                (shown['status'], shown['OS-EXT-STS:task_state']))
            self.assertEqual(images, self.images())
            self.assert_nothing_left(self.server)
        finally:
            self.action(self.server, 'unrescue', 'ACTIVE')
        self.await_records(self.server, 3)
        report = self.assert_snapshot_complete(self.snapshot(self.server))
        self.assertGreater(report.records.last, last)

    def images(self):
        listed = self.client.get('glance', '/images?visibility=private')
        return {image['id'] for image in listed['images']}

    def test_server_offloaded_at_once_is_unshelved_from_its_image(self):
        image, last = self.shelve(SHELVE_AND_OFFLOAD, 'SHELVED_OFFLOADED')
        self.assertFalse((self.state.instances / self.server).exists())
        self.unshelve(UNSHELVE, image, last)


class ShelvedTest(_OneServer):
    """Shelved servers stay on their host until they are offloaded."""

    CONFIGURATION = ('DEFAULT.shelved_offload_time=-1',)

    def test_server_that_is_not_offloaded_is_unshelved_from_its_disk(self):
        image, last = self.shelve(SHELVE, 'SHELVED')
        self.assert_nothing_left(self.server)
        self.unshelve(UNSHELVE_ON_HOST, image, last)

    def test_server_offloaded_later_is_unshelved_from_its_image(self):
        image, last = self.shelve(SHELVE, 'SHELVED')
        task_states, _, _ = self.run_action(
            self.server, 'shelveOffload', client=api.Client.admin(self.state))
        self.assertSequenceEqual(OFFLOAD, task_states)
        servers.await_status(self.client, self.server, 'SHELVED_OFFLOADED')
        self.assertFalse((self.state.instances / self.server).exists())
        self.unshelve(UNSHELVE, image, last)
