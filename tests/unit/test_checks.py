# SPDX-License-Identifier: Apache-2.0

import gc
import os
import subprocess
import sys
import threading
from unittest import mock

import fixtures
from nova.compute import task_states
from nova import exception as nova_exception
from nova import objects
import oslo_messaging
from oslo_utils import timeutils
from oslo_utils import units

from nova_snapext import cancel
from nova_snapext import checks
from nova_snapext import compat
from nova_snapext import exception
from tests import concurrency
from tests.unit import base


class FakeCheck(checks.Check):
    """Returns, or raises, one result after the other, and then None."""

    def __init__(self, *results):
        self.results = list(results)
        self.closed = self.finished_late = False
        self.threads = set()
        self.exhausted = threading.Event()

    def run(self):
        self.threads.add(threading.current_thread())
        if not self.results:
            self.exhausted.set()
            return None
        result = self.results.pop(0)
        if isinstance(result, oslo_messaging.MessagingTimeout):
            raise result
        return result

    def close(self):
        self.closed = True

    def finish_late(self):
        self.finished_late = True


class PeriodicTestCase(base.TestCase):

    def setUp(self):
        super().setUp()
        self.token = cancel.CancelToken()
        self.cancelled = threading.Event()
        self.enterContext(self.token.on_cancel(self.cancelled.set))
        self.server = self.instance()

    def repeated(self, check):
        return checks.run_periodically(
            {check: 0.001}, self.token, self.server)


class RunPeriodicallyTest(PeriodicTestCase):

    def test_cause_of_a_check_cancels_the_token(self):
        with self.repeated(FakeCheck(None, ZeroDivisionError())):
            self.cancelled.wait()
        self.assertRaises(ZeroDivisionError, self.token.raise_if_cancelled)

    def test_check_that_keeps_failing_is_logged_once_and_repeated(self):
        failure = oslo_messaging.MessagingTimeout('no answer')
        check = FakeCheck(failure, failure, failure)
        with self.repeated(check):
            check.exhausted.wait()
        self.token.raise_if_cancelled()
        self.assertEqual(1, self.stdlog.logger.output.count('no answer'))

    def test_check_that_fails_again_after_a_success_is_logged_again(self):
        failure = oslo_messaging.MessagingTimeout('no answer')
        check = FakeCheck(failure, None, failure)
        with self.repeated(check):
            check.exhausted.wait()
        self.assertEqual(2, self.stdlog.logger.output.count('no answer'))

    def test_check_is_closed_at_the_end(self):
        check = FakeCheck()
        with self.repeated(check):
            pass
        self.assertTrue(check.closed)

    def test_no_thread_stays_after_twenty_snapshots(self):
        before = threading.enumerate()
        # The collector would hide what it frees some time later.
        gc.disable()
        self.addCleanup(gc.enable)
        for result in (None, ZeroDivisionError(),
                       oslo_messaging.MessagingTimeout('no answer'), None) * 5:
            check = FakeCheck(result)
            with self.repeated(check):
                if isinstance(result, ZeroDivisionError):
                    self.cancelled.wait()
                else:
                    check.exhausted.wait()
        self.assertEqual(before, threading.enumerate())

    def test_error_in_the_context_ends_the_thread_too(self):
        before = threading.enumerate()

        def fail():
            with self.repeated(FakeCheck()):
                raise ZeroDivisionError()

        self.assertRaises(ZeroDivisionError, fail)
        self.assertEqual(before, threading.enumerate())

    def test_thread_that_can_not_start_ends_the_others(self):
        before = threading.enumerate()
        checks_ = [FakeCheck(), FakeCheck()]
        start = threading.Thread.start

        def refuse_second(thread):
            if len(threading.enumerate()) > len(before):
                raise RuntimeError('no thread')
            start(thread)

        self.useFixture(fixtures.MockPatchObject(
            threading.Thread, 'start', refuse_second))
        error = self.assertRaises(
            RuntimeError, checks.run_periodically(
                dict.fromkeys(checks_, 0.001), self.token,
                self.server).__enter__)
        self.assertEqual('no thread', str(error))
        self.assertTrue(checks_[0].closed)
        self.assertEqual(before, threading.enumerate())

    def test_check_runs_in_one_thread_of_its_own(self):
        for result in (None, ZeroDivisionError()):
            check = FakeCheck(result)
            with self.repeated(check):
                if result is None:
                    check.exhausted.wait()
                else:
                    self.cancelled.wait()
            self.assertNotIn(threading.current_thread(), check.threads)
            self.assertEqual(1, len(check.threads))
            self.assertFalse(check.finished_late)

    def test_checks_can_be_ended_before_the_context(self):
        first, second = FakeCheck(), FakeCheck()
        before = threading.enumerate()
        with checks.run_periodically(
                {first: 0.001, second: 0.001}, self.token,
                self.server) as end:
            end()
            self.assertTrue(first.closed and second.closed)
        self.assertEqual(before, threading.enumerate())


class HangingCheck(checks.Check):
    """Hangs in a call that nothing interrupts, and then returns a result."""

    def __init__(self, result):
        self.result = result
        self.hangs, self.answer = threading.Event(), threading.Event()
        self.finished_late = threading.Event()

    def run(self):
        self.thread = threading.current_thread()
        self.hangs.set()
        self.answer.wait()
        if isinstance(self.result, oslo_messaging.MessagingTimeout):
            raise self.result
        return self.result

    def finish_late(self):
        self.finished_late.set()


class HangingCheckTest(PeriodicTestCase):

    def hang(self, result):
        """Leave the context while its check hangs; then let it return."""
        self.useFixture(fixtures.MockPatchObject(checks, 'END_TIMEOUT', 0))
        check = HangingCheck(result)
        with self.repeated(check):
            check.hangs.wait()
        self.assertTrue(check.thread.is_alive())
        # Otherwise it would keep nova-compute from ending.
        self.assertTrue(check.thread.daemon)
        self.assertFalse(check.finished_late.is_set())
        check.answer.set()
        check.thread.join()
        self.assertTrue(check.finished_late.is_set())

    def test_checks_that_hang_are_waited_for_together(self):
        hanging = [HangingCheck(None) for _number in range(2)]
        waits = []

        def join(seconds):
            """Let the time pass for which the thread is waited for."""
            waits.append(seconds)
            now = timeutils.now() + seconds
            self.useFixture(fixtures.MockPatchObject(
                timeutils, 'now', lambda: now))

        with checks.run_periodically(
                dict.fromkeys(hanging, 0.001), self.token, self.server):
            for check in hanging:
                check.hangs.wait()
                self.useFixture(fixtures.MockPatchObject(
                    check.thread, 'join', join))
            now = timeutils.now()
            self.useFixture(fixtures.MockPatchObject(
                timeutils, 'now', lambda: now))
        self.assertEqual([checks.END_TIMEOUT, 0], waits)
        for check in hanging:
            check.answer.set()

    def test_check_that_hangs_is_not_waited_for(self):
        self.hang(None)
        self.assertIn('HangingCheck', self.stdlog.logger.output)

    def test_late_result_has_no_effect(self):
        self.hang(ZeroDivisionError())
        self.token.raise_if_cancelled()
        self.assertNotIn('Ending the snapshot', self.stdlog.logger.output)

    def test_late_failure_is_not_logged(self):
        self.hang(oslo_messaging.MessagingTimeout('no answer'))
        self.assertNotIn('no answer', self.stdlog.logger.output)


# As nova-compute runs with [DEFAULT]concurrency_backend=eventlet.
UNDER_EVENTLET = """
import threading
import eventlet
from nova.tests.unit import fake_instance
from nova_snapext import cancel
from nova_snapext import checks

native = eventlet.patcher.original('threading')
token = cancel.CancelToken()

class Check(checks.Check):
    hangs = False

    def __init__(self):
        self.ran, self.answer = threading.Event(), threading.Event()

    def run(self):
        self.thread = threading.current_thread()
        self.native = native.get_ident()
        self.ran.set()
        if self.hangs:
            self.answer.wait()

def run(check):
    with checks.run_periodically(
            {check: 0.001}, token, fake_instance.fake_instance_obj(None)):
        check.ran.wait()
    assert check.native == native.get_ident(), 'not in a green thread'
    return check.thread

assert not run(Check()).is_alive()
checks.END_TIMEOUT = 0.01
hanging = Check()
hanging.hangs = True
thread = run(hanging)
assert thread.is_alive()
hanging.answer.set()
thread.join()
"""


class EventletTest(base.TestCase):

    def test_check_runs_in_a_green_thread_which_ends_with_the_snapshot(self):
        result = subprocess.run(
            [sys.executable, '-W', 'ignore', '-c',
             concurrency.beginning('eventlet') + UNDER_EVENTLET],
            capture_output=True, text=True)
        self.assertEqual(0, result.returncode, result.stderr)


class ServiceStoppingCheckTest(base.TestCase):

    def run_check(self, virtapi):
        return checks.ServiceStoppingCheck(self.instance(), virtapi).run()

    def test_service_that_is_stopping_ends_the_snapshot(self):
        stopping = threading.Event()
        self.useFixture(fixtures.MockPatchObject(
            compat, 'shutdown_event', return_value=stopping))
        self.assertIsNone(self.run_check(mock.sentinel.virtapi))
        stopping.set()
        self.assertIsInstance(self.run_check(mock.sentinel.virtapi),
                              exception.ServiceStopping)

    def test_virtapi_without_a_manager_never_ends_the_snapshot(self):
        self.assertIsNone(self.run_check(object()))


class InstanceDeletedCheckTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.found = self.useFixture(fixtures.MockPatchObject(
            objects.Instance, 'get_by_uuid')).mock
        self.check = checks.InstanceDeletedCheck(None, self.instance())

    def test_instance_that_is_uploading_does_not_end_the_snapshot(self):
        self.found.return_value.task_state = task_states.IMAGE_UPLOADING
        self.assertIsNone(self.check.run())

    def test_instance_being_deleted_ends_it_with_an_error_of_nova(self):
        for state in (task_states.DELETING, task_states.SOFT_DELETING):
            self.found.return_value.task_state = state
            self.assertIsInstance(
                self.check.run(),
                nova_exception.UnexpectedDeletingTaskStateError)

    def test_deleted_instance_ends_it_with_an_error_of_nova(self):
        self.found.side_effect = nova_exception.InstanceNotFound(
            instance_id='i')
        self.assertIsInstance(self.check.run(),
                              nova_exception.InstanceNotFound)


class FreeSpaceCheckTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.clock = 0.0
        self.useFixture(fixtures.MockPatchObject(
            checks.timeutils, 'now', lambda: self.clock))
        self.statvfs = self.useFixture(fixtures.MockPatchObject(
            os, 'statvfs')).mock
        self.flags(min_free_disk_mb=100, group='snapext')
        self.check = self.new_check()

    def new_check(self, *paths):
        return checks.FreeSpaceCheck(self.instance(), paths or ('/',))

    def set_free(self, mebibytes):
        self.clock += 1
        self.statvfs.return_value = mock.Mock(
            f_bavail=mebibytes, f_frsize=units.Mi)

    def run_with(self, mebibytes):
        self.set_free(mebibytes)
        return self.check.run()

    def test_space_of_the_minimum_is_enough(self):
        self.assertIsNone(self.run_with(100))
        self.assertIsNone(self.run_with(100))

    def test_space_below_the_minimum_ends_the_snapshot(self):
        shortage = self.run_with(99)
        self.assertIsInstance(shortage, exception.InsufficientSpace)
        self.assertIn('99 MiB free', str(shortage))

    def test_reserve_of_nova_is_not_counted_as_free(self):
        self.flags(reserved_host_disk_mb=50)
        self.assertIsNone(self.run_with(150))
        self.assertIsNotNone(self.run_with(149))

    def test_space_that_would_be_gone_in_two_seconds_ends_the_snapshot(self):
        self.assertIsNone(self.run_with(1000))
        self.assertIsNone(self.run_with(700))
        # In two seconds 500 MiB less; 450 MiB are free, 100 of them reserved.
        self.assertIn('250 MiB less', str(self.run_with(450)))

    def test_rate_counts_for_two_intervals(self):
        self.check = checks.FreeSpaceCheck(self.instance(), ('/',), 10)
        self.assertIsNone(self.run_with(1000))
        self.assertIsNone(self.run_with(970))
        # In 20 seconds 600 MiB less.
        self.assertIsNotNone(self.run_with(690))

    def test_space_allocated_in_one_step_is_not_taken_for_a_rate(self):
        self.run_with(1000)
        for _run in range(3):
            self.assertIsNone(self.run_with(500))

    def test_space_that_grows_again_is_enough(self):
        self.run_with(1000)
        self.assertIsNone(self.run_with(700))
        self.assertIsNone(self.run_with(720))

    def test_each_file_system_is_checked_by_itself(self):
        self.check = self.new_check('/', '/proc')
        self.statvfs.side_effect = lambda path: mock.Mock(
            f_bavail=1000 if path == '/' else 10, f_frsize=units.Mi)
        self.assertIn('/proc', str(self.check.run()))

    def test_parent_of_a_missing_directory_is_checked(self):
        self.check = self.new_check('/no/such/directory')
        self.run_with(1000)
        self.statvfs.assert_called_with('/')

    def test_minimum_of_zero_checks_nothing(self):
        self.flags(min_free_disk_mb=0, group='snapext')
        self.check = self.new_check()
        self.assertIsNone(self.run_with(0))
        self.statvfs.assert_not_called()

    def test_shortage_before_the_snapshot_refuses_it(self):
        self.set_free(1000)
        self.check.raise_if_short()
        self.set_free(99)
        self.assertRaises(exception.InsufficientSpace,
                          self.check.raise_if_short)
