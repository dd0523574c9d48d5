# SPDX-License-Identifier: Apache-2.0

from unittest import mock

import libvirt
from nova.compute import power_state
from nova.virt import fake
from nova.virt.libvirt import driver as nova_driver

from nova_snapext import compat
from nova_snapext import driver
from nova_snapext import exception
from nova_snapext.hypervisor import write_limit
from nova_snapext.recovery import recover
from nova_snapext.snapshot import job
from tests.unit import base
from tests.unit.snapshot import base as snapshot_base


class StartTest(base.TestCase):

    def start(self):
        driver.SnapextDriver(fake.FakeVirtAPI(), read_only=True)

    def test_incompatible_nova_prevents_the_start(self):
        with mock.patch.object(compat, 'check') as check:
            check.side_effect = exception.CompatibilityError(reason='changed')
            self.assertRaises(exception.CompatibilityError, self.start)

    def test_unknown_strategy_prevents_the_start(self):
        self.flags(auto_strategies=['bakcup'], group='snapext')
        self.assertRaises(exception.StrategyConfigError, self.start)


class StopTest(snapshot_base.SnapshotTestCase):

    def test_service_that_stops_waits_for_paused_guests(self):
        pauses = self.patch(write_limit, 'PAUSES')
        pauses.stop.return_value = ['a-uuid']
        nova = self.patch(nova_driver.LibvirtDriver, 'cleanup_host')
        nova.side_effect = lambda host: pauses.stop.assert_called_once()
        with self.assertLogs(driver.LOG.logger, 'WARNING') as logs:
            self.driver.cleanup_host('host')
        nova.assert_called_once_with('host')
        self.assertIn('a-uuid', logs.output[0])


class LostConnectionTest(snapshot_base.SnapshotTestCase):
    """libvirt calls back in the thread that finds its connection lost."""

    def test_thread_that_finds_a_lost_connection_gets_a_new_one(self):
        host = self.driver._host
        host._wrapped_conn = lost = mock.Mock()
        new = self.patch(host, '_get_new_connection')

        def break_off():
            host._close_callback(lost, 1, None)
            raise base.libvirt_error(
                libvirt.VIR_ERR_INTERNAL_ERROR, 'Connection reset by peer',
                libvirt.VIR_FROM_RPC)

        lost.getLibVersion.side_effect = break_off
        self.assertIs(new.return_value, host._get_connection())


class SnapshotTest(snapshot_base.SnapshotTestCase):

    def setUp(self):
        super().setUp()
        self.recovered = self.patch(recover, 'ensure_recovered')
        self.job = self.patch(job, 'SnapshotJob')

    def test_instance_is_recovered_before_its_snapshot(self):
        self.recovered.side_effect = (
            lambda *_args: self.job.assert_not_called())
        instance = self.snapshot()
        self.recovered.assert_called_once_with(self.driver, None, instance)
        self.job.assert_called_once_with(
            self.driver, None, instance, base.IMAGE_ID,
            self.update_task_state)
        self.job.return_value.run.assert_called_once_with()

    def test_instance_that_is_not_recovered_is_not_snapshotted(self):
        self.recovered.side_effect = exception.NotRecovered(
            instance='i', reason='overlay', blocks_start=False)
        error = self.assertRaises(exception.NotRecovered, self.snapshot)
        self.job.assert_not_called()
        self.assertIn(str(error), self.stdlog.logger.output)

    def test_second_snapshot_of_the_instance_is_refused(self):
        instance = self.instance()
        self.job.return_value.run.side_effect = (
            lambda: self.assertRaises(exception.SnapshotInProgress,
                                      self.snapshot_of, instance))
        self.snapshot_of(instance)
        self.job.assert_called_once()


class NativeHookTest(snapshot_base.SnapshotTestCase):
    """Methods that Nova's own snapshot calls."""

    def setUp(self):
        super().setUp()
        self.guest = self.instance()
        self.native_job = mock.MagicMock()

    def live_snapshot(self):
        self.driver._live_snapshot(
            None, self.guest, None, '/i/disk', '/s/tmp/x', 'qcow2', 'raw', {})

    def suspend(self, live=False, state=power_state.RUNNING):
        self.driver._suspend_guest_for_snapshot(None, live, state, self.guest)

    def test_live_snapshot_is_recorded_before_nova_takes_it(self):
        nova = self.patch(nova_driver.LibvirtDriver, '_live_snapshot')
        self.native_job.on_live_snapshot.side_effect = (
            lambda _path: nova.assert_not_called())
        self.driver.native_jobs[self.guest.uuid] = self.native_job
        self.live_snapshot()
        self.native_job.on_live_snapshot.assert_called_once_with('/s/tmp/x')
        nova.assert_called_once_with(
            None, self.guest, None, '/i/disk', '/s/tmp/x', 'qcow2', 'raw', {})

    def test_live_snapshot_of_another_instance_is_nova_s_alone(self):
        nova = self.patch(nova_driver.LibvirtDriver, '_live_snapshot')
        self.driver.native_jobs['another'] = self.native_job
        self.live_snapshot()
        nova.assert_called_once()
        self.native_job.on_live_snapshot.assert_not_called()

    def test_refused_suspension_does_not_suspend(self):
        suspend = self.patch(self.driver, 'suspend')
        self.native_job.suspended.side_effect = (
            exception.DirectSnapshotRefused(instance='i'))
        self.driver.native_jobs[self.guest.uuid] = self.native_job
        self.assertRaises(exception.DirectSnapshotRefused, self.suspend)
        suspend.assert_not_called()

    def test_snapshot_without_a_suspension_is_not_refused(self):
        self.driver.native_jobs[self.guest.uuid] = self.native_job
        self.suspend(live=True)
        self.suspend(state=power_state.SHUTDOWN)
        self.native_job.suspended.assert_not_called()

    def test_freeze_of_another_instance_is_nova_s_alone(self):
        self.driver.native_jobs['another'] = self.native_job
        for name in ('quiesce', 'unquiesce'):
            nova = self.patch(nova_driver.LibvirtDriver, name)
            getattr(self.driver, name)(None, self.guest, mock.sentinel.meta)
            nova.assert_called_once_with(
                None, self.guest, mock.sentinel.meta)
        self.assertEqual([], self.native_job.mock_calls)


class EventTest(snapshot_base.SnapshotTestCase):

    def test_event_reaches_nova_and_the_pending_unplugs(self):
        nova = self.patch(nova_driver.LibvirtDriver, 'emit_event')
        pending = self.patch(self.driver, 'pending_unplugs')
        event = mock.Mock()
        self.driver.emit_event(event)
        nova.assert_called_once_with(event)
        pending.on_event.assert_called_once_with(event)
