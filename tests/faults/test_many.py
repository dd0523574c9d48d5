# SPDX-License-Identifier: Apache-2.0
"""Snapshots of many instances at once."""

from concurrent import futures

from devcloud import api
from devcloud import servers
from devcloud import wait

from tests.e2e import base

STRATEGIES = ('backup', 'external', 'internal', 'cold')

#: Seconds that all of them may take; and between two looks at them, which
#: cost the host what its guests need.
TIMEOUT, INTERVAL = 1800, 5


class ManyInstancesTest(base.CloudTestCase):
    """As many at once as a small host has room for guests.

    By all strategies in turns.
    """

    GUESTS = 20

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        # Nova's own default is 10.
        admin = api.Client.admin(cls.state)
        project = cls.client.get('keystone', '/auth/projects')['projects'][0]
        quotas = f"/os-quota-sets/{project['id']}"
        admin.put('nova-api', quotas, {'quota_set': dict.fromkeys(
            ('instances', 'cores', 'ram'), -1)})
        cls.addClassCleanup(admin.delete, 'nova-api', quotas)
        # Each is slow to boot, and several at once are hardly slower.
        with futures.ThreadPoolExecutor(4) as pool:
            cls.servers = list(pool.map(
                lambda _: cls.boot(), range(cls.GUESTS)))

    def ask(self, server, strategy):
        """Ask for an image, and give its id."""
        image = servers.action(self.client, server, 'createImage', {
            'name': 'e2e', 'metadata': {'snapext_strategy': strategy},
        })['image_id']
        self.addClassCleanup(self.client.delete, 'glance', f'/images/{image}',
                             missing_ok=True)
        return image

    def at_work(self):
        shown = self.client.get('nova-api', '/servers/detail')['servers']
        return [server['id'] for server in shown
                if server['OS-EXT-STS:task_state']]

    def test_each_image_is_right_and_of_its_own_guest(self):
        asked = []
        for number, server in enumerate(self.servers):
            strategy = STRATEGIES[number % len(STRATEGIES)]
            acknowledged = self.last_record(server)
            asked.append((server, strategy, acknowledged,
                          self.ask(server, strategy)))
        # To ask for so many takes longer than the first of them do.
        self.assertGreater(len(self.at_work()), self.GUESTS // 2)
        wait.until('the end of all snapshots', lambda: not self.at_work(),
                   TIMEOUT, interval=INTERVAL)
        for server, strategy, acknowledged, image in asked:
            shown = self.image(image)
            self.assertEqual((server, strategy), (
                shown['instance_uuid'], shown['snapshot_strategy']))
            self.assert_image_whole(image, acknowledged=acknowledged)
            self.assert_writes_on(server)
            self.assert_nothing_left(server)
