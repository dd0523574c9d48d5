# SPDX-License-Identifier: Apache-2.0
"""Every strategy takes a root disk that is not the first disk."""

from tests.e2e import second_disk


class SecondDiskTest(second_disk.SecondDiskTestCase):

    def assert_root_disk_is_taken(self, strategy, snapshot):
        self.assertEqual(strategy, snapshot.strategy)
        self.assert_snapshot_complete(snapshot)
        with self.downloaded(snapshot.image) as file:
            content = file.read_bytes()
        self.assertEqual([True, False], [
            data in content for data in (self.RECORD, self.MARK)])
        self.assert_nothing_left(self.server)

    def test_each_strategy_takes_the_root_disk_of_a_running_guest(self):
        for strategy in ('backup', 'external', 'cold'):
            with self.subTest(strategy=strategy):
                self.assert_root_disk_is_taken(
                    strategy, self.snapshot(self.server, strategy=strategy))
                self.assert_keeps_writing(self.server)

    def test_root_disk_of_a_stopped_guest_is_taken(self):
        self.action(self.server, 'os-stop', 'SHUTOFF')
        try:
            self.assert_root_disk_is_taken('cold', self.snapshot(self.server))
        finally:
            self.action(self.server, 'os-start', 'ACTIVE')
        self.await_records(self.server, 1)

    def test_disks_that_were_exchanged_are_refused(self):
        # The records disagree: root_device_name is now the ephemeral disk.
        server = self.server
        self.action(server, 'os-stop', 'SHUTOFF')
        try:
            definition = self.host.virsh('dumpxml', server, '--inactive')
            self.redefine(definition.replace('vdb', 'vdx').replace(
                'vda', 'vdb').replace('vdx', 'vda'))
            snapshot = self.snapshot(server)
            self.assertIn('RootDiskUnknown', snapshot.log)
            self.assertFalse(self.image_exists(snapshot.image))
            self.redefine(definition)
        finally:
            self.action(server, 'os-start', 'ACTIVE')
        self.await_records(server, 1)

    def redefine(self, definition):
        file = self.directory / 'definition.xml'
        file.write_text(definition)
        self.host.virsh('define', str(file))
