# SPDX-License-Identifier: Apache-2.0
"""Instances that are deleted while their image is on its way."""

from devcloud import servers
from devcloud import wait

from tests.e2e import base
from tests.e2e import held


class DeletedInstanceTest(held.BootingGuestTestCase):

    def assert_deleted(self, server, strategy):
        running = self.begin(server, strategy)
        servers.delete(self.client, server)
        self.assert_given_up(running, server)
        wait.until('end of all that the snapshot had', lambda: not [
            *self.state.snapshots.glob('*'),
            *base.qemu_nbds(str(self.state.nova))], held.SOON)
        self.assertFalse((self.state.instances / server).exists())

    def test_of_a_running_instance_that_is_deleted_nothing_is_left(self):
        for strategy in ('backup', 'external'):
            self.assert_deleted(self.make(), strategy)

    def test_of_one_that_is_shut_off_nothing_is_left_either(self):
        server = self.make()
        self.action(server, 'os-stop', 'SHUTOFF')
        self.assert_deleted(server, 'cold')
