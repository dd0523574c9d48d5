# SPDX-License-Identifier: Apache-2.0

import os
import queue
import threading
from unittest import mock

from nova.virt import event as virtevent
from nova.virt.libvirt import driver as nova_driver
from oslo_utils.fixture import uuidsentinel as uuids

from nova_snapext import compat
from nova_snapext import driver
from nova_snapext import exception
from nova_snapext.hypervisor import job_events
from nova_snapext.hypervisor import watchdog
from nova_snapext import journal
from nova_snapext.recovery import gate
from nova_snapext.recovery import growth
from nova_snapext.recovery import recover
from nova_snapext.recovery import schedule
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

    def test_function_is_called_when_the_snapshot_has_ended(self):
        called = threading.Event()
        function = mock.Mock(side_effect=lambda _disk: called.set())
        with self.driver.gate.exclusive(self.instance_.uuid):
            self.driver.gate.call_when_idle(
                self.instance_.uuid, function, 'disk')
            self.assertFalse(called.wait(0.05))
        self.assertTrue(called.wait(60))
        function.assert_called_once_with('disk')


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
        self.patch(self.driver.gate, 'start_retries')
        with mock.patch.object(journal, 'locked'):
            self.driver.init_host('host')

    def use(self):
        with self.driver.gate.exclusive(self.uuid):
            pass

    def test_service_starts_and_the_log_names_the_instances(self):
        self.leave(('guest filesystems', {'agent': True, 'qemu': ''}))
        with self.assertLogs('nova_snapext.driver', 'WARNING') as logs:
            self.start()
        self.assertIn(self.uuid, logs.output[0])
        self.assertEqual([], self.recovered)
        self.finish()
        self.assertEqual([self.uuid], self.recovered)

    def test_instance_is_refused_until_it_is_recovered(self):
        self.leave(('guest filesystems', {'agent': True, 'qemu': ''}))
        self.start()
        self.begun.wait(self.LIMIT)
        self.assertRaises(exception.RecoveryInProgress, self.use)
        self.assertRaises(exception.RecoveryInProgress, self.driver.power_on,
                          None, self.instance_, None)
        self.finish()
        self.use()

    def test_operation_waits_for_a_recovery_that_ends_soon(self):
        self.patch_value(gate, 'BUSY_TIMEOUT', self.LIMIT)
        self.leave(('guest filesystems', {'agent': True, 'qemu': ''}))
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
        self.leave(('guest filesystems', {'agent': True, 'qemu': ''}))
        self.leave_other(('guest filesystems', {'agent': True, 'qemu': ''}))
        self.start()
        self.assertEqual([], self.driver.gate.wait(self.LIMIT))
        self.assertFalse(both.broken)

    def test_no_more_than_the_limit_are_recovered_at_the_same_time(self):
        self.leave(('guest filesystems', {'agent': True, 'qemu': ''}))
        slots = self.driver.gate._slots
        for _ in range(gate.PARALLEL):
            slots.acquire()
        self.start()
        self.assertFalse(slots.acquire(blocking=False))
        self.assertEqual([self.uuid], self.driver.gate.wait(0))
        self.assertFalse(self.begun.is_set())
        slots.release()
        self.assertTrue(self.begun.wait(self.LIMIT))

    def assert_waits_for_none(self, write_limit):
        self.leave(('overlay', {'write_limit': write_limit}))
        for _ in range(gate.PARALLEL):
            self.driver.gate._slots.acquire()
        self.start()
        self.assertTrue(self.begun.wait(self.LIMIT))

    def test_paused_guest_does_not_wait_for_others(self):
        self.assert_waits_for_none({'paused': True, 'limits': []})

    def test_slowed_guest_does_not_wait_for_others(self):
        self.assert_waits_for_none({
            'paused': False, 'limits': [{'write_iops_sec': 1}]})

    def test_instance_that_waits_for_its_turn_can_be_recovered_at_once(self):
        self.leave(('guest filesystems', {'agent': True, 'qemu': ''}))
        with self.driver.gate._slots:
            self.patch(gate, '_spawn')
            self.start()
            self.driver.gate.ensure_recovered(None, self.instance_)
        self.assertEqual([], self.driver.gate.wait(0))
        self.assertEqual([], os.listdir(self.journal))

    def test_instance_is_tried_again_after_its_journal_was_unreadable(self):
        failed = exception.JournalFailed(path='x', reason='EIO')
        recover.recover_instance.side_effect = failed
        with mock.patch.object(journal, 'find_all', side_effect=failed):
            self.driver.gate.recover_in_background(self.uuid)
            self.assertEqual([], self.driver.gate.wait(self.LIMIT))
        recover.recover_instance.side_effect = self.recover
        self.driver.gate.recover_in_background(self.uuid)
        self.assertTrue(self.begun.wait(self.LIMIT))

    def test_function_is_not_delayed_by_recoveries_of_others(self):
        for _ in range(gate.PARALLEL):
            self.driver.gate._slots.acquire()
        called = threading.Event()
        self.driver.gate.call_after_recovery(self.uuid, called.set)
        self.assertTrue(called.wait(self.LIMIT))

    def test_function_is_called_after_the_recovery(self):
        self.leave(('guest filesystems', {'agent': True, 'qemu': ''}))
        self.start()
        called = threading.Event()
        self.driver.gate.call_after_recovery(
            self.uuid, lambda: (self.recovered.append('called'),
                                called.set()))
        self.finish()
        self.assertTrue(called.wait(self.LIMIT))
        self.assertEqual([self.uuid, 'called'], self.recovered)


class RetryTest(base.RecoveryTestCase):
    """What is left is tried again by itself."""

    LIMIT = 60  # seconds, to fail instead of waiting indefinitely

    def setUp(self):
        super().setUp()
        self.gate = self.driver.gate
        self.patch(nova_driver.LibvirtDriver, 'emit_event')
        self.flags(recovery_interval=3600, group='snapext')
        self.time = 1000.0
        self.gate._schedule = schedule.Schedule(lambda: self.time)
        self.recovered = queue.Queue()
        self.patch(recover, 'recover_instance').side_effect = self.recover
        self.addCleanup(self.gate.wait, self.LIMIT)
        self.addCleanup(self.gate.stop_retries)
        self.uuid = self.instance_.uuid

    def recover(self, _driver, uuid):
        self.recovered.put(uuid)
        return False

    def emit(self, event=None):
        self.driver.emit_event(
            event or job_events.JobEndedEvent(self.uuid))

    def lifecycle(self, transition):
        return virtevent.LifecycleEvent(self.uuid, transition)

    def assert_tried(self):
        self.assertEqual(self.uuid, self.recovered.get(timeout=self.LIMIT))
        self.assertEqual([], self.gate.wait(self.LIMIT))

    def assert_idle(self):
        """Check that the events so far have no consequence."""
        # The thread handles another instance's event after those.
        self.leave_other(('guest filesystems', {'agent': True, 'qemu': ''}))
        self.driver.emit_event(job_events.JobEndedEvent(uuids.other))
        self.assertEqual(uuids.other, self.recovered.get(timeout=self.LIMIT))
        self.assertTrue(self.recovered.empty())

    def leave_something(self):
        self.leave(('guest filesystems', {'agent': True, 'qemu': ''}))

    def test_end_of_a_job_of_the_guest_recovers_it(self):
        self.leave_something()
        self.gate.start_retries()
        self.emit()
        self.assert_tried()

    def test_end_of_a_job_is_no_event_of_nova(self):
        self.emit()
        nova_driver.LibvirtDriver.emit_event.assert_not_called()

    def test_changes_of_the_guest_recover_it(self):
        self.leave_something()
        self.gate.start_retries()
        for transition in (virtevent.EVENT_LIFECYCLE_RESUMED,
                           virtevent.EVENT_LIFECYCLE_PAUSED,
                           virtevent.EVENT_LIFECYCLE_SUSPENDED,
                           virtevent.EVENT_LIFECYCLE_STARTED,
                           virtevent.EVENT_LIFECYCLE_STOPPED):
            self.emit(self.lifecycle(transition))
            self.assert_tried()
            self.time += schedule.OWN_EVENTS

    def test_migration_and_other_events_recover_nothing(self):
        self.leave_something()
        self.gate.start_retries()
        for transition in driver.MIGRATION_EVENTS:
            self.emit(self.lifecycle(transition))
        self.emit(virtevent.InstanceEvent(self.uuid))
        self.assert_idle()

    def test_guest_without_a_journal_is_not_recovered(self):
        self.gate.start_retries()
        self.emit()
        self.assert_idle()

    def test_events_before_the_journal_is_locked_do_nothing(self):
        self.leave_something()
        self.emit()
        self.gate.start_retries()
        self.assert_idle()

    def test_guest_with_a_snapshot_is_left_alone(self):
        self.leave_something()
        self.gate.start_retries()
        with self.gate.exclusive(self.uuid):
            self.emit()
            self.assert_idle()

    def test_change_soon_after_a_try_is_tried_a_little_later(self):
        self.leave_something()
        self.gate.start_retries()
        self.emit()
        self.assert_tried()
        self.emit(self.lifecycle(virtevent.EVENT_LIFECYCLE_RESUMED))
        self.assert_idle()
        self.time += schedule.OWN_EVENTS
        # The other instance's event ends the wait.
        self.emit(job_events.JobEndedEvent(uuids.none))
        self.assert_tried()

    def test_job_that_a_failed_try_has_aborted_starts_no_other(self):
        self.leave_something()
        self.gate.start_retries()
        self.emit()
        self.assert_tried()
        self.time += schedule.OWN_EVENTS - 1
        self.emit()
        self.assert_idle()
        self.time += 1
        self.emit()
        self.assert_tried()

    def test_event_is_handled_without_reading_the_journal(self):
        # libvirt's event thread serves all guests.
        self.gate._retries = True
        with mock.patch.object(journal, 'find_all') as find:
            self.emit()
        find.assert_not_called()
        self.assertEqual([self.uuid],
                         [uuid for uuid, _handler in self.gate._events])

    def test_end_of_a_foreign_job_starts_a_try_at_any_time(self):
        self.leave_something()
        self.gate.start_retries()
        for _ in range(2):
            self.emit(job_events.ForeignJobEndedEvent(self.uuid))
            self.assert_tried()

    def test_foreign_job_that_ends_in_a_snapshot_starts_a_try_after_it(self):
        self.leave_something()
        self.gate.start_retries()
        with self.gate.exclusive(self.uuid):
            self.emit(job_events.ForeignJobEndedEvent(self.uuid))
            # It is the reason that counts.
            self.emit()
            self.assert_idle()
        self.assert_tried()

    def test_foreign_job_of_a_guest_without_a_journal_recovers_nothing(self):
        self.gate.start_retries()
        self.emit(job_events.ForeignJobEndedEvent(self.uuid))
        self.assert_idle()

    def test_what_has_no_event_is_found_by_the_periodic_look(self):
        self.leave_something()
        self.flags(recovery_interval=1, group='snapext')
        self.gate.start_retries()
        self.assert_tried()

    def test_failed_look_does_not_end_the_retries(self):
        self.leave_something()
        self.flags(recovery_interval=1, group='snapext')
        real = journal.entries
        with mock.patch.object(journal, 'entries') as entries:
            entries.side_effect = [OSError('EIO'), real(), real(), real()]
            self.gate.start_retries()
            self.assert_tried()
        self.assertIn('EIO', self.stdlog.logger.output)

    def test_stopped_retries_end_their_thread(self):
        with mock.patch.object(gate, '_spawn') as spawn:
            self.gate.start_retries()
        [(retry,)] = [call.args for call in spawn.call_args_list]
        thread = threading.Thread(target=retry)
        thread.start()
        self.gate.stop_retries()
        thread.join(self.LIMIT)
        self.assertFalse(thread.is_alive())

    def shortages(self):
        """Let an overlay that is left have too little space."""
        path, record = self.overlay()
        self.leave(record)
        run = self.patch(growth.GrowthCheck, 'run')
        run.return_value = [(self.uuid, exception.InsufficientSpace(
            instance=self.uuid, path=path, free=1, shrinks=2, min_free=3))]
        return run, {self.uuid: path}

    def test_overlay_that_fills_its_file_system_is_tried_at_once(self):
        run, overlays = self.shortages()
        # After a try of an hour, the next one would be half a day later.
        self.gate._schedule.ended(self.uuid, 3600)
        self.time += schedule.OWN_EVENTS
        self.assertFalse(self.gate._schedule.is_due(self.uuid))
        with mock.patch.object(growth, 'INTERVAL', 0.1), \
                self.assertLogs(gate.LOG.logger, 'WARNING') as logs:
            self.gate.start_retries()
            self.assert_tried()
            self.gate.stop_retries()
        run.assert_called_with(overlays)
        self.assertIn('may fill its file system', logs.output[0])

    def test_overlay_is_not_tried_while_its_merge_or_snapshot_runs(self):
        _run, overlays = self.shortages()
        with self.gate.exclusive(self.uuid):
            self.gate._retry_growing(overlays)
        # It has just ended.
        self.gate._retry_growing(overlays)
        self.assertEqual([], self.gate.wait(self.LIMIT))
        self.assertTrue(self.recovered.empty())
        self.time += schedule.OWN_EVENTS
        self.gate._retry_growing(overlays)
        self.assert_tried()

    def test_free_space_is_checked_by_one_thread_that_outlives_errors(self):
        run, overlays = self.shortages()
        with self.gate._space:
            self.gate._retry_growing(overlays)
        run.assert_not_called()
        for _run in range(2):
            run.side_effect = ValueError('of the check')
            self.gate._retry_growing(overlays)
        self.assertEqual(2, run.call_count)
        self.assertIn('of the check', self.stdlog.logger.output)

    def test_free_space_is_not_checked_if_no_overlay_is_left(self):
        self.leave_something()
        with mock.patch.object(gate, '_spawn') as spawn:
            self.gate._check_growth()
        spawn.assert_not_called()

    def test_images_are_tried_at_each_tenth_look(self):
        delete = self.patch(self.gate, 'delete_images_in_background')
        for number in range(1, gate.IMAGE_LOOKS):
            self.gate._retry_all(number)
        delete.assert_not_called()
        self.gate._retry_all(gate.IMAGE_LOOKS)
        delete.assert_called_once_with()


class ImageTest(base.RecoveryTestCase):
    """Images that could not be deleted."""

    def setUp(self):
        super().setUp()
        self.patch(gate, '_spawn').side_effect = (
            lambda function, *args: function(*args))
        self.images = [mock.Mock(instance_uuid=uuid)
                       for uuid in (self.instance_.uuid, uuids.other)]
        self.patch(journal, 'images').return_value = self.images
        self.recover_image = self.patch(recover, 'recover_image')

    def test_all_are_tried_at_the_start(self):
        self.driver.gate.recover_all_in_background()
        self.assertEqual(
            [mock.call(entry, None) for entry in self.images],
            self.recover_image.mock_calls)

    def test_next_snapshot_tries_those_of_its_instance_as_its_user(self):
        self.driver.gate.delete_images_in_background(
            self.service, self.instance_.uuid)
        self.recover_image.assert_called_once_with(
            self.images[0], self.service)

    def test_recovery_tries_those_that_it_may_have_kept(self):
        self.driver.gate.recover_in_background(self.instance_.uuid)
        self.recover_image.assert_called_once_with(self.images[0], None)

    def test_no_image_costs_no_thread(self):
        journal.images.return_value = []
        self.driver.gate.delete_images_in_background()
        gate._spawn.assert_not_called()

    def test_slow_glance_has_one_thread_at_a_time(self):
        self.recover_image.side_effect = (
            lambda *_args: self.driver.gate.delete_images_in_background())
        self.driver.gate.delete_images_in_background(
            None, self.instance_.uuid)
        self.recover_image.assert_called_once()


class ReconnectTest(base.RecoveryTestCase):
    """Nova's Host reports to the driver that libvirtd is back."""

    def setUp(self):
        super().setUp()
        self.enabled = self.patch(self.driver, '_set_host_enabled')
        self.register = self.patch(self.driver._job_events, 'register')
        self.patch(self.driver.gate, 'start_retries')
        self.patch(gate, '_spawn').side_effect = (
            lambda function, *args: function(*args))
        self.leave(('guest filesystems', {'agent': True, 'qemu': ''}))

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
            self.assertEqual(['guest filesystems'], self.left())
        self.assertEqual([], os.listdir(self.journal))

    def test_failed_recovery_is_reported_and_others_go_on(self):
        self.start()
        self.leave_other(('guest filesystems', {'agent': True, 'qemu': ''}))
        get_instance = self.patch(recover, 'get_instance')
        get_instance.side_effect = [ZeroDivisionError(), self.instance_]
        with self.assertLogs('nova_snapext.recovery.gate', 'ERROR') as logs:
            self.reconnect()
        self.assertIn('This is tried again', logs.output[0])
        self.assertEqual(1, len(os.listdir(self.journal)))

    def test_each_connection_reports_the_end_of_jobs(self):
        self.reconnect()
        self.register.assert_called_once_with()

    def test_nothing_is_recovered_before_the_service_has_started(self):
        self.reconnect()
        self.assertEqual(['guest filesystems'], self.left())

    def test_lost_connection_is_reported_to_nova_alone(self):
        self.start()
        self.register.reset_mock()
        self.driver._handle_conn_event(False, 'lost')
        self.register.assert_not_called()
        self.enabled.assert_called_once_with(False, 'lost')
        self.assertEqual(['guest filesystems'], self.left())

    def test_watchdog_gets_the_configured_timeout(self):
        self.flags(libvirtd_hang_timeout=7, group='snapext')
        self.patch(compat, 'concurrency_mode_threading').return_value = True
        self.start()
        self.watch.assert_called_once_with(self.driver._host._uri, 7)
        self.watch.return_value.start.assert_called_once_with()

    def test_there_is_no_watchdog_under_eventlet(self):
        self.patch(compat, 'concurrency_mode_threading').return_value = False
        self.start()
        self.watch.assert_not_called()

    def test_libvirtd_of_another_host_is_not_watched(self):
        self.driver._host._uri = 'qemu+ssh://host/system'
        self.start()
        self.watch.assert_not_called()

    def test_timeout_of_zero_turns_the_watchdog_off(self):
        self.flags(libvirtd_hang_timeout=0, group='snapext')
        self.start()
        self.watch.assert_not_called()
