# SPDX-License-Identifier: Apache-2.0

import contextlib
import os
import threading
from unittest import mock

from nova_snapext import cancel
from nova_snapext import compat
from tests.unit import base


class Cause(Exception):
    pass


class CancelTokenTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.token = cancel.CancelToken()
        self.cause = Cause()
        self.called = []

    def call(self):
        self.called.append(True)

    def test_token_that_is_not_cancelled_raises_nothing(self):
        self.token.raise_if_cancelled()
        self.token.wait(0)

    def test_first_cause_is_kept(self):
        self.assertTrue(self.token.cancel(self.cause))
        self.assertFalse(self.token.cancel(ValueError()))
        self.assertIs(self.cause, self.assertRaises(
            Cause, self.token.raise_if_cancelled))

    def test_second_cancel_does_not_call_back_again(self):
        with self.token.on_cancel(self.call):
            self.token.cancel(self.cause)
            self.token.cancel(self.cause)
        self.assertEqual([True], self.called)

    def test_callback_added_after_cancel_is_called_at_once(self):
        self.token.cancel(self.cause)
        with self.token.on_cancel(self.call):
            self.assertEqual([True], self.called)

    def test_callback_is_not_called_after_its_context(self):
        with self.token.on_cancel(self.call):
            pass
        self.token.cancel(self.cause)
        self.assertEqual([], self.called)

    def test_callback_that_raises_does_not_stop_the_others(self):
        def fail():
            raise OSError()

        with self.token.on_cancel(self.call), self.token.on_cancel(fail), \
                self.token.on_cancel(self.call):
            self.assertRaises(OSError, self.token.cancel, self.cause)
        self.assertEqual([True, True], self.called)

    def test_wait_ends_on_cancel(self):
        # wait() is for native threads.
        native = cancel.native_threading()
        begun = native.Event()

        def end_wait():
            begun.wait()
            self.token.cancel(self.cause)

        thread = native.Thread(target=end_wait)
        thread.start()
        self.addCleanup(thread.join)
        begun.set()
        self.assertRaises(Cause, self.token.wait, 600)

    def test_semaphore_is_entered_and_left(self):
        semaphore = threading.BoundedSemaphore(1)
        with self.token.entered(semaphore):
            self.assertFalse(semaphore.acquire(blocking=False))
        self.assertTrue(semaphore.acquire(blocking=False))

    def test_what_never_waits_is_entered_too(self):
        # As Nova's UnlimitedSemaphore, its default.
        with self.token.entered(contextlib.nullcontext()):
            pass

    def test_wait_for_a_semaphore_ends_on_cancel(self):
        semaphore = mock.Mock()

        def acquire(timeout):
            self.token.cancel(self.cause)
            return False

        semaphore.acquire = acquire
        self.assertRaises(Cause, self.token.entered(semaphore).__enter__)
        semaphore.release.assert_not_called()

    def test_semaphore_that_came_too_late_is_given_back(self):
        semaphore = threading.BoundedSemaphore(1)
        taken = mock.Mock(wraps=semaphore)

        def acquire(timeout):
            self.token.cancel(self.cause)
            return semaphore.acquire(timeout=timeout)

        taken.acquire = acquire
        self.assertRaises(Cause, self.token.entered(taken).__enter__)
        self.assertTrue(semaphore.acquire(blocking=False))

    def test_wait_in_a_green_thread_lets_others_run(self):
        # All green threads are in the first native thread.
        with mock.patch.object(compat, 'concurrency_mode_threading',
                               return_value=False), \
                mock.patch.object(threading, 'get_native_id',
                                  return_value=os.getpid()), \
                mock.patch.object(self.token._cancelled, 'wait',
                                  side_effect=AssertionError), \
                mock.patch('time.sleep', side_effect=lambda _: (
                    self.token.cancel(self.cause))) as sleep:
            self.assertRaises(Cause, self.token.wait, 600)
        sleep.assert_called_once_with(cancel.GREEN_INTERVAL)

    def test_error_after_cancel_is_replaced_by_the_cause(self):
        def fail():
            with self.token.prefer_cause():
                self.token.cancel(self.cause)
                raise OSError('the connection is gone')

        error = self.assertRaises(Cause, fail)
        self.assertIsInstance(error.__cause__, OSError)

    def test_error_without_cancel_is_raised_as_it_is(self):
        def fail():
            with self.token.prefer_cause():
                raise OSError()

        self.assertRaises(OSError, fail)

    def test_success_after_cancel_is_no_error(self):
        with self.token.prefer_cause():
            self.token.cancel(self.cause)
