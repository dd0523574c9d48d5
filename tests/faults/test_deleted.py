# SPDX-License-Identifier: Apache-2.0
"""Instances that are deleted while their image is uploaded."""

from devcloud import servers
from devcloud import wait

from tests.e2e import base
from tests.e2e import held


class DeletedInstanceTest(held.BootingGuestTestCase):

    def assert_deleted(self, server, strategy):
        running = self.begin(server, strategy)
        servers.delete(self.client, server)
        self.assert_cancelled(running, server)
        wait.until('the end of all processes and files of the snapshot',
                   lambda: not [
                       *self.state.snapshots.glob('*'),
                       *base.qemu_nbds(str(self.state.nova))], held.SOON)
        self.assertFalse((self.state.instances / server).exists())

    def test_deletion_of_running_instance_leaves_nothing(self):
        for strategy in ('backup', 'external'):
            self.assert_deleted(self.create_server(), strategy)

    def test_deletion_of_shut_off_instance_leaves_nothing(self):
        server = self.create_server()
        self.action(server, 'os-stop', 'SHUTOFF')
        self.assert_deleted(server, 'cold')
