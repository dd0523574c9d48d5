# SPDX-License-Identifier: Apache-2.0

import threading

from nova_snapext import abort
from tests.unit import base


class Cause(Exception):
    pass


class SwitchTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.switch = abort.Switch()
        self.cause = Cause()
        self.called = []

    def call(self):
        self.called.append(True)

    def test_before_it_trips_nothing_is_raised(self):
        self.switch.check()
        self.switch.pause(0)

    def test_the_first_cause_is_the_one(self):
        self.assertTrue(self.switch.trip(self.cause))
        self.assertFalse(self.switch.trip(ValueError()))
        self.assertIs(self.cause, self.assertRaises(Cause, self.switch.check))

    def test_it_calls_back_once(self):
        with self.switch.on_trip(self.call):
            self.switch.trip(self.cause)
            self.switch.trip(self.cause)
        self.assertEqual([True], self.called)

    def test_it_calls_back_whoever_comes_too_late(self):
        self.switch.trip(self.cause)
        with self.switch.on_trip(self.call):
            self.assertEqual([True], self.called)

    def test_it_calls_nobody_back_who_has_left(self):
        with self.switch.on_trip(self.call):
            pass
        self.switch.trip(self.cause)
        self.assertEqual([], self.called)

    def test_all_are_called_back_whatever_one_of_them_raises(self):
        def fail():
            raise OSError()

        with self.switch.on_trip(self.call), self.switch.on_trip(fail), \
                self.switch.on_trip(self.call):
            self.assertRaises(OSError, self.switch.trip, self.cause)
        self.assertEqual([True, True], self.called)

    def test_a_pause_ends_when_it_trips(self):
        begun = threading.Event()

        def trip():
            begun.wait()
            self.switch.trip(self.cause)

        thread = threading.Thread(target=trip)
        thread.start()
        self.addCleanup(thread.join)
        begun.set()
        self.assertRaises(Cause, self.switch.pause, 600)

    def test_what_fails_afterwards_fails_by_the_cause(self):
        def fail():
            with self.switch.in_charge():
                self.switch.trip(self.cause)
                raise OSError('the connection is gone')

        error = self.assertRaises(Cause, fail)
        self.assertIsInstance(error.__cause__, OSError)

    def test_what_fails_before_fails_by_itself(self):
        def fail():
            with self.switch.in_charge():
                raise OSError()

        self.assertRaises(OSError, fail)

    def test_what_succeeds_all_the_same_succeeds(self):
        with self.switch.in_charge():
            self.switch.trip(self.cause)
