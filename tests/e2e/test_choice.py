# SPDX-License-Identifier: Apache-2.0
"""Who chooses the strategy, and what becomes of a choice that can't be."""

from devcloud import api
from devcloud import servers

from tests.e2e import base


class ChoiceTest(base.CloudTestCase):

    CONFIGURATION = ('snapext.requestable=auto,backup,cold',)

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        # A flavor that asks for what no request may.
        admin = api.Client.admin(cls.state)
        cls.flavor = admin.post('nova-api', '/flavors', {'flavor': {
            'name': 'snap.choice', 'ram': 192, 'vcpus': 1, 'disk': 1,
        }})['flavor']['id']
        path = f'/flavors/{cls.flavor}'
        cls.addClassCleanup(admin.delete, 'nova-api', path)
        admin.post('nova-api', f'{path}/os-extra_specs', {
            'extra_specs': {'snapext:strategy': 'external'}})
        cls.server = cls.boot(flavor=cls.flavor)

    def take(self, strategy=None):
        shot = self.snapshot(self.server, strategy=strategy)
        self.assert_snapshot_right(shot)
        return shot, self.image(shot.image)

    def refused(self, strategy=None):
        definition = self.host.virsh('dumpxml', self.server)
        shot = self.snapshot(self.server, strategy=strategy)
        self.assertFalse(self.image_exists(shot.image))
        self.assertEqual(0, shot.host_space)
        self.assertEqual(definition, self.host.virsh('dumpxml', self.server))
        self.assertEqual('ACTIVE', servers.show(
            self.client, self.server)['status'])
        self.assert_nothing_left(self.server)
        self.assert_writes_on(self.server)
        return self.failure(self.server)

    def test_the_flavor_s_choice_is_taken(self):
        _shot, image = self.take()
        self.assertEqual('external', image['snapshot_strategy'])

    def test_the_request_s_choice_comes_first_and_leaves_the_image(self):
        shot, image = self.take('backup')
        self.assertEqual('backup', shot.strategy)
        self.assertEqual('backup', image['snapshot_strategy'])
        self.assertEqual('filesystem', image['snapshot_consistency'])
        self.assertRegex(image['snapshot_instant'],
                         r'^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$')
        self.assertEqual(self.server, image['instance_uuid'])
        self.assertNotIn('snapext_strategy', image)

    def test_what_requests_may_not_ask_for_is_refused_and_the_user_told(self):
        text = self.refused('native')
        self.assertIn('asked for by the image property snapext_strategy', text)
        self.assertIn('[snapext]requestable allows auto, backup, cold', text)

    def test_what_there_is_not_is_refused_and_the_user_told(self):
        self.assertIn('Strategy bakcup', self.refused('bakcup'))

    def test_flavors_may_be_forbidden_to_ask(self):
        self.configure('snapext.flavors_may_ask=False')
        self.assertIn('[snapext]flavors_may_ask', self.refused())

    def test_what_is_impossible_is_refused_and_the_user_told(self):
        self.action(self.server, 'os-stop', 'SHUTOFF')
        try:
            shot = self.snapshot(self.server)
            self.assertFalse(self.image_exists(shot.image))
            self.assertIn('external: the guest is shut off',
                          self.failure(self.server))
            self.assert_nothing_left(self.server)
        finally:
            self.action(self.server, 'os-start', 'ACTIVE')
        self.await_records(self.server, 3)
