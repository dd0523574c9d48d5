# SPDX-License-Identifier: Apache-2.0
"""Requests to Nova during a snapshot of the same instance."""

import concurrent.futures

from devcloud import api
from devcloud import errors
from devcloud import servers
from devcloud import wait

from tests.e2e import base
from tests.e2e import proxy


class OneInstanceTest(base.CloudTestCase):
    """Requests for an instance during the upload of its image."""

    @classmethod
    def setUpClass(cls):
        cls.proxy = cls.use_glance_proxy()
        super().setUpClass()
        cls.server = cls.shared_guest()

    def snapshot_during(self, act, strategy='external'):
        """Take a snapshot, and call a function before its upload ends.

        :param act: the function
        """
        done = concurrent.futures.Future()

        def before_end():
            try:
                done.set_result(act())
            except BaseException as error:
                done.set_exception(error)

        self.proxy.faults = proxy.Faults(before_end=before_end)
        snapshot = self.snapshot(self.server, add_cleanup=self.addCleanup,
                                 strategy=strategy)
        done.result(base.SNAPSHOT_TIMEOUT)
        self.proxy.faults = proxy.Faults()
        return snapshot

    def assert_conflict(self, name, arguments=None):
        """Check that Nova's API refuses an action in this task state."""
        error = self.assertRaises(
            errors.ApiError, servers.action, self.client, self.server, name,
            arguments)
        self.assertEqual(409, error.code)

    def test_actions_that_start_or_move_instance_are_refused_by_nova(self):
        def act():
            self.assert_conflict('createImage', {'name': 'second'})
            self.assert_conflict('createBackup', {
                'name': 'b', 'backup_type': 'daily', 'rotation': 1})
            self.assert_conflict('reboot', {'type': 'HARD'})
            for name in ('shelve', 'os-stop', 'rescue', 'suspend'):
                self.assert_conflict(name)

        self.assert_snapshot_complete(self.snapshot_during(act))
        self.assert_nothing_left(self.server)
        self.assert_keeps_writing(self.server)

    def test_second_snapshot_after_state_reset_is_refused(self):
        second = []

        def act():
            # Nova's API allows another snapshot after this.
            servers.action(api.Client.admin(self.state), self.server,
                           'os-resetState', {'state': 'active'})
            second.append(servers.action(
                self.client, self.server, 'createImage',
                {'name': 'second'})['image_id'])
            wait.until('the second snapshot to be refused',
                       lambda: not self.image_exists(second[0]), 60)

        log = self.state.log('nova-compute')
        offset = log.stat().st_size
        # At the end of the first snapshot Nova's manager finds another task
        # state than its own, and deletes the image.
        self.snapshot_during(act)
        wait.until('the end of the first snapshot', lambda: not list(
            self.state.snapshots.glob('*')), base.SNAPSHOT_TIMEOUT)
        servers.await_status(self.client, self.server, 'ACTIVE')
        with open(log, errors='replace') as lines:
            lines.seek(offset)
            self.assertIn(f'A snapshot of instance {self.server} is in '
                          f'progress', lines.read())
        self.assert_nothing_left(self.server)
        self.assert_keeps_writing(self.server)
        self.assert_snapshot_complete(self.snapshot(self.server))
