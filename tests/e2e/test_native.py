# SPDX-License-Identifier: Apache-2.0
"""Comparison with Nova's own snapshot, and the strategy native."""

import itertools

from tests.e2e import base

# Attributes that differ between two images of the same guest.
DIFFERENT = {'id', 'created_at', 'updated_at', 'file', 'self', 'size',
             'checksum', 'os_hash_value', 'virtual_size', 'stores',
             'locations', 'direct_url'}


class SameGuestTest(base.CloudTestCase):
    """One guest, snapshotted by our driver and then by Nova's."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        server = cls.boot()
        cls.ours = cls.snapshot(server)
        cls.CONFIGURATION = ('DEFAULT.compute_driver=libvirt.LibvirtDriver',)
        cls.configure()
        cls.native = cls.snapshot(server)

    def test_each_snapshot_is_taken_by_its_driver(self):
        self.assertEqual('backup', self.ours.strategy)
        self.assertIsNone(self.native.strategy)

    def test_task_states_are_those_of_nova_without_repetition(self):
        native = self.native.task_states
        # Nova goes from uploading back to pending.
        without_repetition = [
            task for task, following in itertools.zip_longest(
                native, native[1:])
            if (task, following) != ('image_uploading',
                                     'image_pending_upload')]
        self.assertSequenceEqual(base.IMAGE_STATES, self.ours.task_states)
        self.assertSequenceEqual(
            base.IMAGE_STATES,
            [task for task, _ in itertools.groupby(without_repetition)])

    def test_image_has_metadata_of_nova_and_properties_of_snapshot(self):
        ours, native = map(self.image, (self.ours.image, self.native.image))
        self.assertEqual(
            {'snapext_strategy_used', 'snapext_consistency',
             'snapext_frozen_at'},
            ours.keys() - native.keys())
        self.assertEqual(
            {name: native[name] for name in native.keys() - DIFFERENT},
            {name: ours[name] for name in native.keys() - DIFFERENT})


class NativeStrategyTest(base.CloudTestCase):

    CONFIGURATION = ('snapext.strategy=native',)

    def test_configured_native_strategy_takes_snapshot_of_nova(self):
        server = self.boot(add_cleanup=self.addCleanup)
        snapshot = self.snapshot(server)
        self.assertIn('by the strategy native', snapshot.log)
        self.assertIn('Beginning live snapshot process', snapshot.log)
        self.assert_snapshot_complete(snapshot)
        self.assert_nothing_left(server)
