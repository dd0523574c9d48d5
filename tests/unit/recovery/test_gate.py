# SPDX-License-Identifier: Apache-2.0

import os
from unittest import mock

from nova import thread_pool_factory
from nova.virt.libvirt import driver as nova_driver

from nova_snapext import exception
from nova_snapext.hypervisor import watchdog
from nova_snapext import journal
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


class ReconnectTest(base.RecoveryTestCase):
    """Nova's Host reports to the driver that libvirtd is back."""

    def setUp(self):
        super().setUp()
        self.enabled = self.patch(self.driver, '_set_host_enabled')
        self.patch(thread_pool_factory, 'spawn').side_effect = (
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
        self.patch(recover, 'recover_all')
        with mock.patch.object(journal, 'locked'):
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
        get_instance = self.patch(recover, '_get_instance')
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
