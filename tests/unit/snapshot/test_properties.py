# SPDX-License-Identifier: Apache-2.0

import datetime

from nova_snapext.snapshot import properties
from nova_snapext import strategies
from tests.unit import base


class PropertiesTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.before = properties.before_freeze('backup', 'uuid')
        self.frozen = properties.of_frozen(strategies.FrozenDisk(
            'nbd:', strategies.Consistency.CRASH, 0.03,
            datetime.datetime(2026, 11, 1, 12, 0, 0, 250000)))
        self.native = properties.of_native('native')

    def test_frozen_snapshot_describes_itself(self):
        self.assertEqual(
            {'snapext_strategy': None,
             'snapext_trim': None,
             'snapext_strategy_used': 'backup',
             'snapext_consistency': 'crash',
             'snapext_frozen_at': '2026-11-01T12:00:00.250Z',
             'instance_uuid': 'uuid'}, self.before | self.frozen)

    def test_only_values_change_after_the_freeze(self):
        # Glance counts names, and protects them.
        self.assertLessEqual(self.frozen.keys(), {
            name for name, value in self.before.items() if value})

    def test_nothing_is_claimed_before_the_freeze(self):
        # It may stay, if Glance accepts no other value.
        self.assertEqual({'unknown'}, {
            self.before[name] for name in self.frozen})

    def test_native_snapshot_names_only_its_strategy(self):
        self.assertEqual(
            {'snapext_strategy_used': 'native'},
            {name: value for name, value in self.native.items() if value})

    def test_requests_are_removed_from_image(self):
        for described in (self.before, self.native):
            self.assertIsNone(described['snapext_strategy'])
            self.assertIsNone(described['snapext_trim'])

    def test_no_property_of_earlier_snapshot_stays(self):
        # An image passes its properties on to guests and their snapshots.
        for described in (self.before, self.native):
            self.assertLessEqual(
                {'snapext_strategy', 'snapext_trim', 'snapext_strategy_used',
                 'snapext_consistency', 'snapext_frozen_at'},
                described.keys())

    def test_removed_properties_come_first(self):
        # They make room for others, in a quota.
        values = list(self.native.values())
        self.assertEqual('native', values.pop())
        self.assertEqual({None}, set(values))
