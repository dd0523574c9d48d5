# SPDX-License-Identifier: Apache-2.0
"""Snapshots of many instances at the same time."""

from concurrent import futures

from devcloud import api
from devcloud import servers
from devcloud import wait

from tests.e2e import base

STRATEGIES = ('backup', 'external', 'internal', 'cold')

#: Seconds for all snapshots together.
TIMEOUT = 1800
#: Seconds between two queries of Nova. Queries take CPU time from the guests.
INTERVAL = 5


class ManyInstancesTest(base.CloudTestCase):
    """As many snapshots as a small host can have guests.

    The strategies take turns.

    :cvar GUESTS: number of guests
    """

    GUESTS = 20

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        # Nova's default is 10 instances.
        admin = api.Client.admin(cls.state)
        project = cls.client.get('keystone', '/auth/projects')['projects'][0]
        quotas = f"/os-quota-sets/{project['id']}"
        admin.put('nova-api', quotas, {'quota_set': dict.fromkeys(
            ('instances', 'cores', 'ram'), -1)})
        cls.addClassCleanup(admin.delete, 'nova-api', quotas)
        # A guest is slow to boot, and several together are hardly slower.
        with futures.ThreadPoolExecutor(4) as pool:
            cls.servers = list(pool.map(
                lambda _: cls.boot_and_pause(), range(cls.GUESTS)))
        for server in cls.servers:
            servers.action(cls.client, server, 'unpause')
            servers.await_status(cls.client, server, 'ACTIVE')

    @classmethod
    def boot_and_pause(cls):
        """Boot a guest that then takes no CPU time from others that boot."""
        server = cls.boot()
        servers.action(cls.client, server, 'pause')
        servers.await_status(cls.client, server, 'PAUSED')
        return server

    def request_snapshot(self, server, strategy):
        """Request a snapshot, and return the id of its image."""
        image = servers.action(self.client, server, 'createImage', {
            'name': 'e2e', 'metadata': {'snapext_strategy': strategy},
        })['image_id']
        self.addClassCleanup(self.client.delete, 'glance', f'/images/{image}',
                             missing_ok=True)
        return image

    def busy_servers(self):
        """Return the ids of the servers whose task has not ended."""
        shown = self.client.get('nova-api', '/servers/detail')['servers']
        return [server['id'] for server in shown
                if server['OS-EXT-STS:task_state']]

    def test_each_image_is_complete_and_of_its_own_guest(self):
        requested = []
        for number, server in enumerate(self.servers):
            strategy = STRATEGIES[number % len(STRATEGIES)]
            acknowledged = self.last_record(server)
            requested.append((server, strategy, acknowledged,
                              self.request_snapshot(server, strategy)))
        # The first snapshots may end before the last one is requested.
        self.assertGreater(len(self.busy_servers()), self.GUESTS // 2)
        wait.until('the end of all snapshots', lambda: not self.busy_servers(),
                   TIMEOUT, interval=INTERVAL)
        for server, strategy, acknowledged, image in requested:
            shown = self.image(image)
            self.assertEqual((server, strategy), (
                shown['instance_uuid'], shown['snapext_strategy_used']))
            self.assert_image_complete(image, acknowledged=acknowledged)
            self.assert_keeps_writing(server)
            self.assert_nothing_left(server)
