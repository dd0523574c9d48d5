# SPDX-License-Identifier: Apache-2.0
"""Snapshots of many instances at once."""

import concurrent.futures

from devcloud import api

from tests.e2e import base

STRATEGIES = ('backup', 'external', 'internal', 'cold')


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
        cls.servers = [cls.boot() for _ in range(cls.GUESTS)]

    def test_each_image_is_right_and_of_its_own_guest(self):
        strategies = [STRATEGIES[number % len(STRATEGIES)]
                      for number in range(self.GUESTS)]
        with concurrent.futures.ThreadPoolExecutor(self.GUESTS) as pool:
            shots = list(pool.map(
                lambda server, strategy: self.snapshot(
                    server, strategy=strategy),
                self.servers, strategies))
        for server, strategy, shot in zip(self.servers, strategies, shots,
                                          strict=True):
            image = self.image(shot.image)
            self.assertEqual((server, strategy), (
                image['instance_uuid'], image['snapshot_strategy']))
            self.assert_snapshot_right(shot)
            self.assert_writes_on(server)
            self.assert_nothing_left(server)
