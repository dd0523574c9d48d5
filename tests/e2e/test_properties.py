# SPDX-License-Identifier: Apache-2.0
"""A Glance that refuses properties which describe a snapshot."""

import json

from tests.e2e import base
from tests.e2e import protected_glance
from tests import in_full

#: Properties that a snapshot adds to those of Nova's own.
INFORMING = {'snapext_strategy_used', 'snapext_consistency',
             'snapext_frozen_at'}

# Glance's default image_property_quota.
QUOTA = 128


class PropertyQuotaTest(base.CloudTestCase):

    CONFIGURATION = ('snapext.allowed_image_strategies=auto,native',)

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = cls.shared_guest()
        schema = cls.client.get('glance', '/schemas/image')['properties']
        cls.attributes = {name for name, value in schema.items()
                          if value.get('is_base', True)}
        cls.of_nova = cls.properties(cls.snapshot(cls.server)) - INFORMING

    @classmethod
    def properties(cls, snapshot):
        return cls.image(snapshot.image).keys() - cls.attributes

    def snapshot_at(self, count, strategy=None):
        """Take a snapshot whose image has many properties.

        :param count: of all properties that do not only inform
        """
        more = count - len(self.of_nova)
        return self.snapshot(self.server, strategy=strategy, **{
            f'user_{number}': 'x' for number in range(more)})

    def test_image_at_quota_is_taken_without_what_informs(self):
        for strategy in (None, 'native'):
            snapshot = self.snapshot_at(QUOTA, strategy)
            self.assert_snapshot_complete(snapshot)
            shown = self.properties(snapshot)
            self.assertEqual(QUOTA, len(shown))
            self.assertEqual(set(), shown & INFORMING)
            self.assertIn(f'Maximum: {QUOTA} (HTTP 413)', snapshot.log)
            self.assert_nothing_left(self.server)

    def test_one_free_property_names_the_strategy(self):
        snapshot = self.snapshot_at(QUOTA - 1)
        self.assert_snapshot_complete(snapshot)
        self.assertEqual({'snapext_strategy_used'},
                         self.properties(snapshot) & INFORMING)

    def test_image_beyond_quota_fails_before_the_freeze(self):
        for strategy in (None, 'native'):
            snapshot = self.snapshot_at(QUOTA + 1, strategy)
            self.assertFalse(self.image_exists(snapshot.image))
            self.assertIn(f'refused image {snapshot.image}', snapshot.log)
            self.assertIn(f'Maximum: {QUOTA} (HTTP 413)', snapshot.log)
            self.assertIn(f'Maximum: {QUOTA}', self.refusal_text(self.server))
            self.assertNotIn('is frozen', snapshot.log)
            self.assertNotIn('Beginning live snapshot', snapshot.log)
            self.assert_nothing_left(self.server)
            self.assert_keeps_writing(self.server)


@in_full.only
class PropertyProtectionTest(base.CloudTestCase):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        nobody, all_users = '!', '@'
        url = cls.enterClassContext(protected_glance.running(cls.state, {
            'snapext_consistency': {
                'create': nobody, 'read': all_users, 'update': nobody,
                'delete': nobody},
            'snapext_frozen_at': {
                'create': all_users, 'read': all_users, 'update': nobody,
                'delete': all_users}}))
        cls.CONFIGURATION = (*cls.CONFIGURATION,
                             f'glance.endpoint_override={url}')
        cls.configure()

    def snapshot_of(self, **inherited):
        """Take a snapshot of a guest whose image has these properties."""
        source = self.copy_image('snap-guest')
        self.client.open(
            'PATCH', 'glance', f'/images/{source}',
            json.dumps([{'op': 'add', 'path': f'/{name}', 'value': value}
                        for name, value in inherited.items()]).encode(),
            {'Content-Type':
             'application/openstack-images-v2.1-json-patch'}).close()
        server = self.boot(source, add_cleanup=self.addCleanup)
        snapshot = self.snapshot(server)
        self.assert_snapshot_complete(snapshot)
        self.assert_nothing_left(server)
        return snapshot, self.image(snapshot.image)

    def test_protected_properties_are_left_out(self):
        snapshot, image = self.snapshot_of()
        self.assertEqual({'snapext_strategy_used'}, image.keys() & INFORMING)
        for name in ('snapext_consistency', 'snapext_frozen_at'):
            self.assertIn(f"Attribute '{name}' is reserved. (HTTP 403)",
                          snapshot.log)

    def test_values_of_an_earlier_snapshot_are_removed_or_named(self):
        snapshot, image = self.snapshot_of(
            snapext_consistency='filesystem', snapext_frozen_at='2020')
        self.assertNotIn('snapext_frozen_at', image)
        self.assertEqual('filesystem', image['snapext_consistency'])
        self.assertIn('not of this snapshot: snapext_consistency.',
                      snapshot.log)
