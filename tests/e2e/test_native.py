# SPDX-License-Identifier: Apache-2.0
"""Beside Nova's own snapshot."""

import itertools

from tests.e2e import base

# What two images of the same guest can't have in common.
OF_ITS_OWN = {'id', 'created_at', 'updated_at', 'file', 'self', 'size',
              'checksum', 'os_hash_value', 'virtual_size', 'stores',
              'locations', 'direct_url'}


class SameGuestTest(base.CloudTestCase):
    """One guest, snapshotted by ours and then by Nova's own."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        server = cls.boot()
        cls.ours = cls.snapshot(server)
        cls.CONFIGURATION = ('DEFAULT.compute_driver=libvirt.LibvirtDriver',)
        cls.configure()
        cls.native = cls.snapshot(server)

    def test_each_was_taken_by_the_driver_that_it_stands_for(self):
        self.assertEqual('backup', self.ours.strategy)
        self.assertIsNone(self.native.strategy)

    def test_task_states_are_those_of_nova_without_its_detour(self):
        native = self.native.task_states
        # The detour: uploading, and back to pending.
        without_detour = [
            task for task, following in itertools.zip_longest(
                native, native[1:])
            if (task, following) != ('image_uploading',
                                     'image_pending_upload')]
        self.assertSequenceEqual(base.IMAGE_STATES, self.ours.task_states)
        self.assertSequenceEqual(
            base.IMAGE_STATES,
            [task for task, _ in itertools.groupby(without_detour)])

    def test_metadata_of_the_image_is_nova_s_own_and_tells_how_it_was_made(
            self):
        ours, native = map(self.image, (self.ours.image, self.native.image))
        self.assertEqual(
            {'snapshot_strategy', 'snapshot_consistency', 'snapshot_instant'},
            ours.keys() - native.keys())
        self.assertEqual(
            {name: native[name] for name in native.keys() - OF_ITS_OWN},
            {name: ours[name] for name in native.keys() - OF_ITS_OWN})


class ChosenTest(base.CloudTestCase):

    CONFIGURATION = ('snapext.strategy=native',)

    def test_nova_s_own_snapshot_is_taken_where_the_host_says_so(self):
        server = self.boot(add_cleanup=self.addCleanup)
        shot = self.snapshot(server)
        self.assertIn('by the strategy native', shot.log)
        self.assertIn('Beginning live snapshot process', shot.log)
        self.assert_snapshot_right(shot)
        self.assert_nothing_left(server)
