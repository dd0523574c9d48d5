# SPDX-License-Identifier: Apache-2.0

from unittest import mock

from nova import exception as nova_exception
import oslo_messaging

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
                (error.format_message()[:255], action_event.EVENT),
                strict=True):
            self.assertEqual(name, call.args[2])
            self.assertEqual(str(error), call.kwargs['exc_val'])

    def test_name_of_the_event_says_nothing_of_the_host(self):
        self.flags(strategy='backup', group='snapext')
        self.patch(self.driver.strategies['backup'], 'unsupported_reason',
                   mock.Mock(return_value='/secret has 4711 MiB'))
        self.assertRaises(exception.StrategyRefused, self.snapshot)
        names = [call.args[2] for call in
                 self.event.event_finish_with_failure.mock_calls]
        self.assertIn('backup: the host can\'t (ask an operator', names[0])
        for call in self.event.mock_calls:
            self.assertNotIn('secret', call.args[2])
        # The details are for operators.
        self.assertIn('/secret has 4711 MiB', self.event
                      .event_finish_with_failure.call_args.kwargs['exc_val'])

    def test_unknown_name_is_refused_as_an_event_for_the_user(self):
        self.image['properties'] = {'snapext_strategy': 'extrenal,cold'}
        self.assertRaises(exception.StrategyRefused, self.snapshot)
        name = self.event.event_start.mock_calls[-1].args[2]
        self.assertIn('it names extrenal', name)
        self.assertEqual([], self.steps)

    def test_details_of_a_failure_are_complete_for_operators(self):
        self.stream.side_effect = exception.ImageMismatch(
            image='i', reason='/secret')
        self.assertRaises(exception.ImageMismatch, self.snapshot)
        self.assertIn('/secret', self.event
                      .event_finish_with_failure.call_args.kwargs['exc_val'])

    def test_snapshot_without_an_action_succeeds_without_an_event(self):
        # Nova's periodic tasks and its resize between cells take such ones.
        self.event.event_start.side_effect = (
            nova_exception.InstanceActionNotFound(
                request_id='r', instance_uuid='i'))
        self.snapshot()
        self.assertEqual('release', self.steps[-1])

    def test_event_that_can_not_begin_fails_no_snapshot(self):
        self.event.event_start.side_effect = (
            oslo_messaging.MessagingTimeout('conductor'))
        self.snapshot()
        self.assertEqual('release', self.steps[-1])
        self.event.event_finish_with_failure.assert_not_called()

    def test_event_that_can_not_end_fails_no_complete_snapshot(self):
        self.event.event_finish_with_failure.side_effect = (
            oslo_messaging.MessagingTimeout('conductor'))
        self.snapshot()
        self.assertEqual('release', self.steps[-1])

    def test_event_that_can_not_end_hides_no_error(self):
        for error in (oslo_messaging.MessagingTimeout('conductor'),
                      nova_exception.InstanceActionNotFound(
                          request_id='r', instance_uuid='i')):
            self.event.event_finish_with_failure.side_effect = error
            self.stream.side_effect = exception.ImageMismatch(
                image='i', reason='digest')
            self.assertRaises(exception.ImageMismatch, self.snapshot)
            self.image['properties'] = {'snapext_strategy': 'native'}
            self.assertRaises(exception.StrategyRefused, self.snapshot)
            self.image['properties'] = {}
            self.steps.clear()
