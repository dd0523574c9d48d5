# SPDX-License-Identifier: Apache-2.0

from unittest import mock

from nova import exception as nova_exception

from nova_snapext import exception
from nova_snapext.snapshot import action_event
from tests.unit.snapshot import base as snapshot_base


class ActionEventTest(snapshot_base.SnapshotTestCase):

    def test_event_begins_and_ends_with_the_snapshot(self):
        self.snapshot()
        instance = mock.ANY
        self.event.event_start.assert_called_once_with(
            None, instance, action_event.EVENT, want_result=False,
            host=self.CONF.host)
        finish = self.event.event_finish_with_failure
        self.assertIsNone(finish.mock_calls[0].kwargs['exc_val'])

    def test_refusal_is_the_name_of_a_second_event(self):
        self.image['properties'] = {'snapext_strategy': 'native'}
        error = self.assertRaises(exception.StrategyRefused, self.snapshot)
        for call, name in zip(
                self.event.event_finish_with_failure.mock_calls,
                (str(error)[:255], action_event.EVENT), strict=True):
            self.assertEqual(name, call.args[2])
            self.assertEqual(error, call.kwargs['exc_val'])

    def test_snapshot_without_an_action_succeeds_without_an_event(self):
        # Nova's periodic tasks and its resize between cells take such ones.
        self.event.event_start.side_effect = (
            nova_exception.InstanceActionNotFound(
                request_id='r', instance_uuid='i'))
        self.snapshot()
        self.assertEqual('release', self.steps[-1])
