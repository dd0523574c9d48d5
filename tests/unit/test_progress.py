# SPDX-License-Identifier: Apache-2.0

from unittest import mock

from nova import exception as nova_exception
import oslo_messaging

from nova_snapext import progress
from tests.unit import base


class ProgressTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.saved = []
        self.server = self.instance()
        self.server.save = mock.Mock(
            side_effect=lambda: self.saved.append(self.server.progress))
        self.progress = progress.Progress(self.server)

    def test_the_server_shows_each_new_percentage_once(self):
        for sent in (10, 10, 25):
            self.progress.on_sent(sent, 100)
            self.progress._tell()
        self.assertEqual([10, 25], self.saved)

    def test_afterwards_the_server_shows_none(self):
        with self.progress as told:
            told.on_sent(50, 100)
        self.assertEqual(0, self.saved[-1])

    def test_a_deleted_instance_stops_the_upload(self):
        self.server.save.side_effect = nova_exception.InstanceNotFound(
            instance_id='i')
        self.progress.on_sent(10, 100)
        self.progress._tell()
        self.assertRaises(nova_exception.InstanceNotFound,
                          self.progress.on_sent, 20, 100)

    def test_a_database_out_of_reach_does_not(self):
        self.server.save.side_effect = oslo_messaging.MessagingTimeout()
        self.progress.on_sent(10, 100)
        self.progress._tell()
        self.progress.on_sent(20, 100)
