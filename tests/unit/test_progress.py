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
            self.assertIsNone(self.progress())
        self.assertEqual([10, 25], self.saved)

    def test_afterwards_the_server_shows_none(self):
        with self.progress.cleared():
            self.progress.on_sent(50, 100)
            self.progress()
        self.assertEqual(0, self.saved[-1])

    def test_a_deleted_instance_is_a_reason_to_give_up(self):
        self.server.save.side_effect = nova_exception.InstanceNotFound(
            instance_id='i')
        self.progress.on_sent(10, 100)
        self.assertIsInstance(self.progress(),
                              nova_exception.InstanceNotFound)

    def test_a_database_out_of_reach_at_the_end_is_none(self):
        self.server.save.side_effect = oslo_messaging.MessagingTimeout()
        with self.progress.cleared():
            pass

    def test_an_instance_that_was_deleted_has_no_next_operation(self):
        self.server.save.side_effect = nova_exception.InstanceNotFound(
            instance_id='i')
        with self.progress.cleared():
            pass
        self.assertNotIn('Could not tell', self.stdlog.logger.output)
