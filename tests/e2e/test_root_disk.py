# SPDX-License-Identifier: Apache-2.0
"""A server whose ephemeral disk comes before its root disk."""

from tests.e2e import second_disk


class SecondDiskTest(second_disk.SecondDiskTestCase):

    def test_snapshot_of_nova_is_refused_and_its_image_deleted(self):
        self.configure('snapext.strategy=native')
        snapshot = self.snapshot(self.server)
        self.assertIn('its root disk is vdb', self.refusal_text(self.server))
        self.assertFalse(self.image_exists(snapshot.image))
        self.assert_keeps_writing(self.server)

    def test_shelved_server_keeps_its_root_disk(self):
        server = self.server
        last = self.last_record(server)
        self.action(server, 'shelve', 'SHELVED_OFFLOADED')
        self.action(server, 'unshelve', 'ACTIVE')
        self.await_records(server, 1)
        self.assertGreater(self.last_record(server), last)
