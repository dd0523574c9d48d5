# SPDX-License-Identifier: Apache-2.0

import datetime

from nova_snapext.snapshot import properties
from nova_snapext import strategies
from tests.unit import base


class PropertiesTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.frozen = properties.of_frozen(
            'backup', 'uuid', strategies.FrozenDisk(
                'nbd:', strategies.Consistency.CRASH, 0.03,
                datetime.datetime(2026, 11, 1, 12, 0, 0, 250000)))
        self.native = properties.of_native('native')

    def test_frozen_snapshot_describes_itself(self):
        self.assertEqual(
            {'snapext_strategy_used': 'backup',
             'snapext_consistency': 'crash',
             'snapext_frozen_at': '2026-11-01T12:00:00.250Z',
             'instance_uuid': 'uuid'}, self.frozen.values)

    def test_native_snapshot_names_only_its_strategy(self):
        self.assertEqual({'snapext_strategy_used': 'native'},
                         self.native.values)

    def test_request_is_removed_from_image(self):
        for changed in (self.frozen, self.native):
            self.assertIn('snapext_strategy', changed.removed)

    def test_no_property_of_earlier_snapshot_stays(self):
        # An image passes its properties on to guests and their snapshots.
        for changed in (self.frozen, self.native):
            self.assertLessEqual(
                {'snapext_strategy', 'snapext_strategy_used',
                 'snapext_consistency', 'snapext_frozen_at'},
                {*changed.values, *changed.removed})
