# SPDX-License-Identifier: Apache-2.0
"""What may be asked of Nova while a snapshot is taken."""

import concurrent.futures

from devcloud import api
from devcloud import errors
from devcloud import servers
from devcloud import wait

from tests.e2e import base
from tests.e2e import proxy


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
        shot = self.snapshot(self.server, add_cleanup=self.addCleanup,
                             strategy=strategy)
        done.result(base.SNAPSHOT_TIMEOUT)
        self.proxy.faults = proxy.Faults()
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
        # Nova's manager finds its state taken from it at the end of the first,
        # and deletes its image.
        self.meanwhile(act)
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
