# SPDX-License-Identifier: Apache-2.0

import os
import threading
from unittest import mock

from nova.virt import event as virtevent
from nova.virt.libvirt import driver as nova_driver
from oslo_utils.fixture import uuidsentinel as uuids

from nova_snapext import driver
from nova_snapext import exception
from nova_snapext.hypervisor import watchdog
from nova_snapext import journal
from nova_snapext.recovery import gate
from nova_snapext.recovery import recover
from tests.unit.recovery import base


class ExclusiveTest(base.RecoveryTestCase):

    def test_second_snapshot_is_refused_and_the_first_goes_on(self):
        def again():
            with self.driver.gate.exclusive(self.instance_.uuid):
                pass

        with self.driver.gate.exclusive(self.instance_.uuid):
            for _ in range(2):
                self.assertRaises(exception.SnapshotInProgress, again)
        again()

    def test_instance_with_a_snapshot_can_not_be_started(self):
        with self.driver.gate.exclusive(self.instance_.uuid):
            self.assertRaises(
                exception.SnapshotInProgress,
                self.driver.gate.ensure_recovered, None, self.instance_)


class SlowRecoveryTest(base.RecoveryTestCase):
    """A recovery in the background that takes long."""

    LIMIT = 60  # seconds, to fail instead of waiting indefinitely

    def setUp(self):
        super().setUp()
        for owner, name in ((gate, 'BUSY_TIMEOUT'),
                            (driver, 'START_TIMEOUT')):
            self.patch_value(owner, name, 0)
        self.patch(nova_driver.LibvirtDriver, 'init_host')
        self.patch(self.driver, '_start_watchdog')
        self.uuid = self.instance_.uuid
        self.begun, self.released = threading.Event(), threading.Event()
        self.addCleanup(self.finish)
        self.recovered = []
        self.patch(recover, 'recover_instance').side_effect = self.recover

    def patch_value(self, owner, name, value):
        patch = mock.patch.object(owner, name, value)
        patch.start()
        self.addCleanup(patch.stop)

    def recover(self, _driver, uuid):
        self.begun.set()
        self.released.wait(self.LIMIT)
        self.recovered.append(uuid)

    def finish(self):
        self.released.set()
        self.assertEqual([], self.driver.gate.wait(self.LIMIT))

    def start(self):
        with mock.patch.object(journal, 'locked'):
            self.driver.init_host('host')

    def use(self):
        with self.driver.gate.exclusive(self.uuid):
            pass

    def test_service_starts_and_the_log_names_the_instances(self):
        self.leave(('image', {}))
        with self.assertLogs('nova_snapext.driver', 'WARNING') as logs:
            self.start()
        self.assertIn(self.uuid, logs.output[0])
        self.assertEqual([], self.recovered)
        self.finish()
        self.assertEqual([self.uuid], self.recovered)

    def test_instance_is_refused_until_it_is_recovered(self):
        self.leave(('image', {}))
        self.start()
        self.begun.wait(self.LIMIT)
        self.assertRaises(exception.RecoveryInProgress, self.use)
        self.assertRaises(exception.RecoveryInProgress, self.driver.power_on,
                          None, self.instance_, None)
        self.finish()
        self.use()

    def test_operation_waits_for_a_recovery_that_ends_soon(self):
        self.patch_value(gate, 'BUSY_TIMEOUT', self.LIMIT)
        self.leave(('image', {}))
        self.start()
        self.begun.wait(self.LIMIT)
        with mock.patch.object(self.driver.gate._changed, 'wait_for',
                               wraps=self.driver.gate._changed.wait_for,
                               side_effect=self.release_and_wait):
            self.use()
        self.assertEqual([self.uuid], self.recovered)

    def release_and_wait(self, *_args):
        self.released.set()
        return mock.DEFAULT

    def test_instances_are_recovered_at_the_same_time(self):
        both = threading.Barrier(2)
        recover.recover_instance.side_effect = (
            lambda *_args: both.wait(self.LIMIT))
        self.leave(('image', {}))
        self.leave_other(('image', {}))
        self.start()
        self.assertEqual([], self.driver.gate.wait(self.LIMIT))
        self.assertFalse(both.broken)

    def test_no_more_than_the_limit_are_recovered_at_the_same_time(self):
        self.leave(('image', {}))
        slots = self.driver.gate._slots
        for _ in range(gate.PARALLEL):
            slots.acquire()
        self.start()
        self.assertFalse(slots.acquire(blocking=False))
        self.assertEqual([self.uuid], self.driver.gate.wait(0))
        self.assertFalse(self.begun.is_set())
        slots.release()
        self.assertTrue(self.begun.wait(self.LIMIT))

    def test_instance_that_waits_for_its_turn_can_be_recovered_at_once(self):
        self.leave(('image', {}))
        with self.driver.gate._slots:
            self.patch(gate, '_spawn')
            self.start()
            self.driver.gate.ensure_recovered(None, self.instance_)
        self.assertEqual([], self.driver.gate.wait(0))
        self.assertEqual([], os.listdir(self.journal))

    def test_function_is_called_after_the_recovery(self):
        self.leave(('image', {}))
        self.start()
        called = threading.Event()
        self.driver.gate.call_after_recovery(
            self.uuid, lambda: (self.recovered.append('called'),
                                called.set()))
        self.finish()
        self.assertTrue(called.wait(self.LIMIT))
        self.assertEqual([self.uuid, 'called'], self.recovered)


class ResumedTest(base.RecoveryTestCase):
    """libvirt reports that a guest runs again."""

    def setUp(self):
        super().setUp()
        self.patch(nova_driver.LibvirtDriver, 'emit_event')
        self.patch(gate, '_spawn').side_effect = (
            lambda function, *args: function(*args))
        self.driver._may_recover = True
        self.leave(('image', {}))

    def emit(self, transition=virtevent.EVENT_LIFECYCLE_RESUMED, uuid=None):
        self.driver.emit_event(virtevent.LifecycleEvent(
            uuid or self.instance_.uuid, transition))

    def test_interrupted_snapshot_is_recovered(self):
        self.emit()
        self.assertEqual([], os.listdir(self.journal))

    def test_other_events_recover_nothing(self):
        self.emit(virtevent.EVENT_LIFECYCLE_PAUSED)
        self.driver.emit_event(virtevent.InstanceEvent(self.instance_.uuid))
        self.assertEqual(['image'], self.left())

    def test_guest_without_a_journal_costs_no_thread(self):
        self.emit(uuid=uuids.other)
        gate._spawn.assert_not_called()

    def test_guest_that_its_own_snapshot_resumes_is_left_alone(self):
        with self.driver.gate.exclusive(self.instance_.uuid):
            self.emit()
        gate._spawn.assert_not_called()
        self.assertEqual(['image'], self.left())

    def test_nothing_is_recovered_before_the_journal_is_locked(self):
        self.driver._may_recover = False
        self.emit()
        self.assertEqual(['image'], self.left())


class ReconnectTest(base.RecoveryTestCase):
    """Nova's Host reports to the driver that libvirtd is back."""

    def setUp(self):
        super().setUp()
        self.enabled = self.patch(self.driver, '_set_host_enabled')
        self.patch(gate, '_spawn').side_effect = (
            lambda function, *args: function(*args))
        self.leave(('image', {}))

    def reconnect(self):
        self.driver._handle_conn_event(True, None)
        self.enabled.assert_called_once_with(True, None)

    def start(self):
        self.patch(nova_driver.LibvirtDriver, 'init_host')
        serves = watchdog.Watchdog.serves
        self.watch = self.patch(watchdog, 'Watchdog')
        self.watch.serves.side_effect = serves
        with mock.patch.object(journal, 'locked'), \
                mock.patch.object(recover, 'recover_instance'):
            self.driver.init_host('host')

    def test_interrupted_snapshot_is_recovered(self):
        self.start()
        self.reconnect()
        self.assertEqual([], os.listdir(self.journal))

    def test_running_snapshot_is_recovered_after_its_end(self):
        self.start()
        with self.driver.gate.exclusive(self.instance_.uuid):
            self.reconnect()
            self.assertEqual(['image'], self.left())
        self.assertEqual([], os.listdir(self.journal))

    def test_failed_recovery_is_reported_and_others_go_on(self):
        self.start()
        self.leave_other(('image', {}))
        get_instance = self.patch(recover, 'get_instance')
        get_instance.side_effect = [ZeroDivisionError(), self.instance_]
        with self.assertLogs('nova_snapext.recovery.gate', 'ERROR') as logs:
            self.reconnect()
        self.assertIn('This is tried again', logs.output[0])
        self.assertEqual(1, len(os.listdir(self.journal)))

    def test_nothing_is_recovered_before_the_service_has_started(self):
        self.reconnect()
        self.assertEqual(['image'], self.left())

    def test_lost_connection_is_reported_to_nova_alone(self):
        self.start()
        self.driver._handle_conn_event(False, 'lost')
        self.enabled.assert_called_once_with(False, 'lost')
        self.assertEqual(['image'], self.left())

    def test_watchdog_gets_the_configured_timeout(self):
        self.flags(libvirtd_hang_timeout=7, group='snapext')
        self.start()
        self.watch.assert_called_once_with(self.driver._host._uri, 7)
        self.watch.return_value.start.assert_called_once_with()

    def test_libvirtd_of_another_host_is_not_watched(self):
        self.driver._host._uri = 'qemu+ssh://host/system'
        self.start()
        self.watch.assert_not_called()

    def test_timeout_of_zero_turns_the_watchdog_off(self):
        self.flags(libvirtd_hang_timeout=0, group='snapext')
        self.start()
        self.watch.assert_not_called()
