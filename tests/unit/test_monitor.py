# SPDX-License-Identifier: Apache-2.0

import os
import threading
from unittest import mock

import fixtures
from nova.compute import task_states
from nova import exception as nova_exception
from nova import objects
import oslo_messaging
from oslo_utils import units

from nova_snapext import abort
from nova_snapext import exception
from nova_snapext import monitor
from tests.unit import base


class FakeLook(monitor.Look):
    """Gives, or raises, one thing after the other, and then nothing."""

    def __init__(self, *results):
        self.results = list(results)
        self.closed = False
        self.exhausted = threading.Event()

    def __call__(self):
        if not self.results:
            self.exhausted.set()
            return None
        result = self.results.pop(0)
        if isinstance(result, oslo_messaging.MessagingTimeout):
            raise result
        return result

    def close(self):
        self.closed = True


class WatchedTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.switch = abort.Switch()
        self.tripped = threading.Event()
        self.enterContext(self.switch.on_trip(self.tripped.set))
        self.server = self.instance()

    def watched(self, look):
        return monitor.watched(look, 0.001, self.switch, self.server)

    def test_a_reason_to_give_up_trips_the_switch(self):
        with self.watched(FakeLook(None, ZeroDivisionError())):
            self.tripped.wait()
        self.assertRaises(ZeroDivisionError, self.switch.check)

    def test_looks_that_fail_are_told_of_once_and_go_on(self):
        fails = oslo_messaging.MessagingTimeout('no answer')
        look = FakeLook(fails, fails, fails)
        with self.watched(look):
            look.exhausted.wait()
        self.switch.check()
        self.assertEqual(1, self.stdlog.logger.output.count('no answer'))

    def test_looks_that_fail_again_are_told_of_again(self):
        fails = oslo_messaging.MessagingTimeout('no answer')
        look = FakeLook(fails, None, fails)
        with self.watched(look):
            look.exhausted.wait()
        self.assertEqual(2, self.stdlog.logger.output.count('no answer'))

    def test_looks_that_take_long_are_not_told_of(self):
        look = FakeLook(None, None)
        with mock.patch('oslo_service.backend._common.loopingcall.'
                        'LoopingCallBase._elapsed', return_value=9.0), \
                self.watched(look):
            look.exhausted.wait()
        self.assertNotIn('outlasted', self.stdlog.logger.output)

    def test_a_look_is_closed_at_the_end(self):
        look = FakeLook()
        with self.watched(look):
            pass
        self.assertTrue(look.closed)


class ServiceLookTest(base.TestCase):

    def look(self, virtapi):
        return monitor.ServiceLook(self.instance(), virtapi)()

    def test_a_service_that_is_being_stopped_is_a_reason(self):
        virtapi = mock.Mock()
        stopping = virtapi._compute._shutdown_in_progress = threading.Event()
        self.assertIsNone(self.look(virtapi))
        stopping.set()
        self.assertIsInstance(self.look(virtapi), exception.ServiceStopping)

    def test_what_does_not_tell_is_none(self):
        self.assertIsNone(self.look(object()))


class InstanceLookTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.found = self.useFixture(fixtures.MockPatchObject(
            objects.Instance, 'get_by_uuid')).mock
        self.look = monitor.InstanceLook(None, self.instance())

    def test_an_instance_whose_snapshot_runs_is_no_reason(self):
        self.found.return_value.task_state = task_states.IMAGE_UPLOADING
        self.assertIsNone(self.look())

    def test_one_that_is_being_deleted_is_what_nova_s_manager_knows(self):
        for state in (task_states.DELETING, task_states.SOFT_DELETING):
            self.found.return_value.task_state = state
            self.assertIsInstance(
                self.look(), nova_exception.UnexpectedDeletingTaskStateError)

    def test_one_that_is_deleted_is_what_nova_s_manager_knows(self):
        self.found.side_effect = nova_exception.InstanceNotFound(
            instance_id='i')
        self.assertIsInstance(self.look(), nova_exception.InstanceNotFound)


class SpaceLookTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.clock = 0.0
        self.useFixture(fixtures.MockPatchObject(
            monitor.timeutils, 'now', lambda: self.clock))
        self.statvfs = self.useFixture(fixtures.MockPatchObject(
            os, 'statvfs')).mock
        self.flags(space_headroom=100, group='snapext')
        self.look = self.new_look()

    def new_look(self, *paths):
        return monitor.SpaceLook(self.instance(), paths or ('/',))

    def left(self, mebibytes):
        self.clock += 1
        self.statvfs.return_value = mock.Mock(
            f_bavail=mebibytes, f_frsize=units.Mi)
        return self.look()

    def test_more_than_the_headroom_is_enough(self):
        self.assertIsNone(self.left(100))
        self.assertIsNone(self.left(100))

    def test_less_than_the_headroom_is_not(self):
        shortage = self.left(99)
        self.assertIsInstance(shortage, exception.NoSpaceLeft)
        self.assertIn('99 MiB are left', str(shortage))

    def test_the_reserve_of_nova_s_is_not_counted(self):
        self.flags(reserved_host_disk_mb=50)
        self.assertIsNone(self.left(150))
        self.assertIsNotNone(self.left(149))

    def test_it_looks_ahead_by_the_pace_at_which_it_shrinks(self):
        self.assertIsNone(self.left(1000))
        self.assertIsNone(self.left(700))
        # In two seconds 500 MiB less, of which 400 are there.
        self.assertIn('250 MiB less', str(self.left(450)))

    def test_what_is_allocated_all_at_once_is_no_pace(self):
        self.left(1000)
        for _look in range(3):
            self.assertIsNone(self.left(500))

    def test_what_grows_again_is_enough(self):
        self.left(1000)
        self.assertIsNone(self.left(700))
        self.assertIsNone(self.left(720))

    def test_each_file_system_counts_by_itself(self):
        self.look = self.new_look('/', '/proc')
        self.statvfs.side_effect = lambda path: mock.Mock(
            f_bavail=1000 if path == '/' else 10, f_frsize=units.Mi)
        self.assertIn('/proc', str(self.look()))

    def test_a_directory_that_is_not_there_yet_is_looked_at_further_up(self):
        self.look = self.new_look('/no/such/directory')
        self.left(1000)
        self.statvfs.assert_called_with('/')

    def test_without_headroom_nothing_is_looked_at(self):
        self.flags(space_headroom=0, group='snapext')
        self.look = self.new_look()
        self.assertIsNone(self.left(0))
        self.statvfs.assert_not_called()

    def test_a_shortage_before_the_snapshot_refuses_it(self):
        self.left(1000)
        self.look.check()
        self.left(99)
        self.assertRaises(exception.NoSpaceLeft, self.look.check)
