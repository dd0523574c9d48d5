# SPDX-License-Identifier: Apache-2.0

import logging
import math

from oslo_utils.fixture import uuidsentinel as uuids

from nova_snapext.recovery import schedule
from tests.unit import base


class ScheduleTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.flags(recovery_interval=60, group='snapext')
        self.now = 100
        self.schedule = schedule.Schedule(lambda: self.now)

    def test_instance_that_was_never_tried_is_due(self):
        self.assertTrue(self.schedule.is_due(uuids.one))
        self.assertTrue(self.schedule.is_settled(uuids.one))

    def test_next_look_tries_again_what_did_not_take_long(self):
        self.schedule.ended(uuids.one, duration=1)
        self.assertFalse(self.schedule.is_due(uuids.one))
        self.assertTrue(self.schedule.is_due(uuids.other))
        self.now += 59
        self.assertTrue(self.schedule.is_due(uuids.one))

    def test_long_try_is_repeated_after_ten_times_as_long(self):
        self.schedule.ended(uuids.one, duration=300)
        self.now += 2999
        self.assertFalse(self.schedule.is_due(uuids.one))
        self.now += 1
        self.assertTrue(self.schedule.is_due(uuids.one))

    def test_event_starts_a_try_although_the_look_would_wait(self):
        self.schedule.ended(uuids.one, duration=300)
        self.now += schedule.OWN_EVENTS
        self.assertTrue(self.schedule.is_settled(uuids.one))
        self.assertFalse(self.schedule.is_due(uuids.one))

    def test_event_soon_after_a_short_try_is_deferred(self):
        self.schedule.ended(uuids.one)
        self.now += 1
        self.assertFalse(self.schedule.is_settled(uuids.one))
        self.schedule.defer(uuids.one)
        self.assertEqual(schedule.OWN_EVENTS - 1,
                         self.schedule.seconds_to_deferred())
        self.assertEqual([], self.schedule.take_deferred())
        self.now += schedule.OWN_EVENTS - 1
        self.assertEqual([uuids.one], self.schedule.take_deferred())
        self.assertEqual([], self.schedule.take_deferred())
        self.assertEqual(math.inf, self.schedule.seconds_to_deferred())

    def test_event_soon_after_a_long_try_waits_as_the_look_does(self):
        self.schedule.ended(uuids.one, duration=300)
        self.schedule.defer(uuids.one)
        self.assertEqual(3000, self.schedule.seconds_to_deferred())

    def test_recovered_instance_is_forgotten(self):
        self.schedule.ended(uuids.one)
        self.schedule.ended(uuids.other)
        self.schedule.defer(uuids.one)
        self.schedule.forget_all_but({uuids.other})
        self.assertEqual(math.inf, self.schedule.seconds_to_deferred())
        self.assertTrue(self.schedule.is_due(uuids.one))
        self.assertFalse(self.schedule.is_due(uuids.other))


class FailureLogTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.log = schedule.FailureLog()

    def test_reason_is_an_error_once_and_again_after_a_recovery(self):
        for level in (logging.ERROR, logging.DEBUG, logging.DEBUG):
            self.assertEqual(level, self.log.level(uuids.one, 'a job'))
        self.assertEqual(logging.ERROR, self.log.level(uuids.other, 'a job'))
        self.log.forget(uuids.one)
        self.assertEqual(logging.ERROR, self.log.level(uuids.one, 'a job'))
        self.assertEqual(logging.DEBUG, self.log.level(uuids.other, 'a job'))

    def test_other_reason_is_an_error(self):
        self.log.level(uuids.one, 'a job')
        self.assertEqual(logging.ERROR, self.log.level(uuids.one, 'no space'))

    def test_same_reason_with_other_numbers_is_none(self):
        self.log.level(uuids.one, '17 of 300 bytes')
        self.assertEqual(logging.DEBUG,
                         self.log.level(uuids.one, '18 of 4000 bytes'))
