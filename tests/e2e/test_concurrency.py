# SPDX-License-Identifier: Apache-2.0
"""Snapshots beside each other, and beside what else may be asked of Nova."""

import concurrent.futures

from devcloud import api
from devcloud import errors
from devcloud import servers
from devcloud import wait

from tests.e2e import base
from tests.e2e import proxy

STRATEGIES = ('backup', 'external', 'internal', 'cold')


class OneInstanceTest(base.CloudTestCase):
    """What is asked of an instance while its image is on its way."""

    @classmethod
    def setUpClass(cls):
        cls.proxy = cls.use_glance_proxy()
        super().setUpClass()
        cls.server = cls.boot()

    def meanwhile(self, act, strategy='external'):
        """Take a snapshot, and do something before all of it has arrived."""
        done = concurrent.futures.Future()

        def before_end():
            try:
                done.set_result(act())
            except BaseException as error:
                done.set_exception(error)

        self.proxy.faults = proxy.Faults(before_end=before_end)
        self.addCleanup(setattr, self.proxy, 'faults', proxy.Faults())
        shot = self.snapshot(self.server, add_cleanup=self.addCleanup,
                             strategy=strategy)
        done.result(base.SNAPSHOT_TIMEOUT)
        return shot

    def refused(self, name, arguments=None):
        error = self.assertRaises(
            errors.ApiError, servers.action, self.client, self.server, name,
            arguments)
        self.assertEqual(409, error.code)

    def test_nova_refuses_all_that_would_start_or_move_it(self):
        def act():
            self.refused('createImage', {'name': 'second'})
            self.refused('createBackup', {
                'name': 'b', 'backup_type': 'daily', 'rotation': 1})
            self.refused('reboot', {'type': 'HARD'})
            for name in ('shelve', 'os-stop', 'rescue', 'suspend'):
                self.refused(name)

        self.assert_snapshot_right(self.meanwhile(act))
        self.assert_nothing_left(self.server)
        self.assert_writes_on(self.server)

    def test_a_second_one_past_nova_s_state_is_refused(self):
        second = []

        def act():
            servers.action(api.Client.admin(self.state), self.server,
                           'os-resetState', {'state': 'active'})
            second.append(servers.action(
                self.client, self.server, 'createImage',
                {'name': 'second'})['image_id'])
            wait.until('the second to be refused',
                       lambda: not self.image_exists(second[0]), 60)

        log = self.state.log('nova-compute')
        before = log.stat().st_size
        self.meanwhile(act)
        # Nova's state tells nothing any more.
        wait.until('end of the first', lambda: not list(
            self.state.snapshots.glob('*')), base.SNAPSHOT_TIMEOUT)
        servers.await_status(self.client, self.server, 'ACTIVE')
        with open(log, errors='replace') as lines:
            lines.seek(before)
            self.assertIn(f'A snapshot of instance {self.server} is being '
                          f'taken', lines.read())
        self.assert_nothing_left(self.server)
        self.assert_writes_on(self.server)
        self.assert_snapshot_right(self.snapshot(self.server))


class ManyInstancesTest(base.CloudTestCase):
    """Snapshots of many instances at once, by all strategies in turns."""

    GUESTS = 3

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
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
