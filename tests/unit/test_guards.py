# SPDX-License-Identifier: Apache-2.0

import ast
from concurrent import futures
import contextlib
import inspect
import textwrap
from unittest import mock

import libvirt
from nova.compute import manager
from nova.compute import task_states
from nova.compute import vm_states
from nova import exception as nova_exception
from nova.virt.libvirt import driver as nova_driver
from nova.virt.libvirt import event

from nova_snapext import driver
from nova_snapext import exception
from nova_snapext import guards
from nova_snapext.hypervisor import domain
from nova_snapext.hypervisor import write_limit
from nova_snapext.recovery import gate
from nova_snapext.recovery import state
from nova_snapext.resources import guest_filesystems
from nova_snapext.resources import overlay
from tests.unit.recovery import base

#: Methods that start a guest and are not guarded, with the reason.
UNGUARDED = {
    '_hard_reboot',                   # called by power_on, reboot, ...
    '_soft_reboot',                   # called by reboot
    '_get_existing_domain_xml',       # called by resume and live migrations
    '_resume_guest_after_snapshot',   # called by snapshot, which recovers
    'finish_migration',               # the source host released the disk
}


# Tests replace the method.
NOVA_POWER_OFF = inspect.getfullargspec(nova_driver.LibvirtDriver.power_off)

#: What each method raises that does not raise the refusal itself: Nova keeps
#: the state of the instance after it.
KEEPS_STATE = {
    'check_can_live_migrate_source': nova_exception.MigrationPreCheckError,
    'migrate_disk_and_power_off': nova_exception.InstanceFaultRollback,
    'rebuild': nova_exception.InstanceFaultRollback,
    'resume': nova_exception.InstanceFaultRollback,
}


class GuardTestCase(base.RecoveryTestCase):

    def setUp(self):
        super().setUp()
        self.put_back = self.patch(state, 'put_back')

    @contextlib.contextmanager
    def unrecoverable(self):
        _path, record = self.overlay()
        self.leave(record)
        with mock.patch.object(overlay.Overlay, 'merge',
                               side_effect=ValueError('two histories')):
            yield


class GuardTest(GuardTestCase):

    def call(self, name):
        return getattr(self.driver, name)(None, self.instance_)

    def refusal(self, name, error=exception.OperationRefused):
        """Return the refusal, however the method tells it to Nova."""
        raised = self.assertRaises(KEEPS_STATE.get(name, error), self.call,
                                   name)
        return getattr(raised, 'inner_exception', raised)

    def test_instance_that_can_not_be_recovered_is_refused_by_each(self):
        with self.unrecoverable():
            for name in guards.GUARDED:
                with self.assertLogs(guards.LOG.logger, 'ERROR') as logs:
                    error = self.refusal(name)
                self.assertIn('two histories', logs.output[0])
                self.assertIn(name, logs.output[0])
                # Users see it.
                self.assertIn('Nothing was done to instance', str(error))
                self.assertNotIn(self.CONF.instances_path, str(error))

    def test_operators_find_the_cause_in_the_stored_error(self):
        with self.unrecoverable():
            error = self.refusal('rebuild')
        self.assertIn('two histories', str(error.__cause__))

    def test_instance_with_a_running_snapshot_is_refused_by_each(self):
        with self.driver.gate.exclusive(self.instance_.uuid):
            for name in guards.GUARDED:
                error = self.refusal(name, exception.SnapshotInProgress)
                self.assertIn('snapshot', str(error))

    def test_refused_unrescue_leaves_the_instance_rescued(self):
        with self.unrecoverable():
            self.refusal('unrescue')
        self.put_back.assert_called_once_with(
            self.instance_.uuid, vm_states.RESCUED)

    def test_recovered_instance_reaches_nova_s_method(self):
        recovered = self.patch(self.driver.gate, 'ensure_recovered')
        for name in guards.GUARDED:
            _self, _context, _instance, *others = inspect.signature(
                getattr(self.driver, name).__func__).parameters
            arguments = ['context', self.instance_, *others[:-1]]
            last = {others[-1]: 'by name'} if others else {}
            nova = self.patch(nova_driver.LibvirtDriver, name)
            self.assertIs(nova.return_value, getattr(
                self.driver, name)(*arguments, **last))
            nova.assert_called_once_with(*arguments, **last)
            recovered.assert_called_with('context', self.instance_)

    def test_guest_is_not_suspended_while_its_overlay_is_merged(self):
        nova = self.patch(nova_driver.LibvirtDriver, 'suspend')
        with self.driver.gate.no_recovery(self.instance_.uuid), \
                mock.patch.object(gate, 'BUSY_TIMEOUT', 0):
            error = self.assertRaises(
                nova_exception.InstanceFaultRollback, self.call, 'suspend')
        self.assertIsInstance(error.inner_exception,
                              exception.RecoveryInProgress)
        nova.assert_not_called()

    def test_guest_is_not_suspended_while_a_left_job_of_its_disk_runs(self):
        _path, record = self.overlay()
        self.leave(record)
        nova = self.patch(nova_driver.LibvirtDriver, 'suspend')
        guest = self.patch(domain, 'find').return_value
        device = guest.get_block_device.return_value
        device.get_job_info.return_value = mock.Mock(
            job=libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT)
        error = self.assertRaises(
            nova_exception.InstanceFaultRollback, self.call, 'suspend')
        self.assertIsInstance(error.inner_exception,
                              exception.OperationRefused)
        nova.assert_not_called()
        device.get_job_info.return_value = None
        self.call('suspend')
        nova.assert_called_once_with(None, self.instance_)

    def test_device_that_nova_detaches_next_is_not_attached_again(self):
        for name, arguments in (('suspend', ()),
                                ('check_can_live_migrate_source', (None,))):
            self.patch(nova_driver.LibvirtDriver, name)
            attach_again = mock.Mock()
            self.driver.pending_unplugs.expect(
                self.instance_.uuid, 'hostdev0', attach_again)
            getattr(self.driver, name)(None, self.instance_, *arguments)
            self.driver.pending_unplugs.on_event(event.DeviceRemovedEvent(
                self.instance_.uuid, 'hostdev0'))
            attach_again.assert_not_called()

    def leave_frozen(self):
        """Leave filesystems that may be frozen.

        :returns: the fake of the thaw, which fails
        """
        entry = self.leave(('guest filesystems', {'agent': True, 'qemu': ''}))
        thaw = self.patch(guest_filesystems.GuestFilesystems, 'release')
        thaw.side_effect = exception.ThawFailed(
            instance='i', guest='g', reason='no answer')
        return entry, thaw

    def test_guest_that_may_be_frozen_is_not_migrated_while_it_runs(self):
        nova = self.patch(nova_driver.LibvirtDriver,
                          'check_can_live_migrate_source')
        entry, thaw = self.leave_frozen()
        for set_apart in (False, True):
            if set_apart:
                entry.set_apart()
            thaw.reset_mock()
            with self.assertLogs(guards.LOG.logger, 'ERROR') as logs:
                self.assertRaises(
                    nova_exception.MigrationPreCheckError,
                    self.driver.check_can_live_migrate_source,
                    None, self.instance_, mock.Mock())
            # It may take long while the agent does not answer.
            thaw.assert_called_once_with()
            for text in ('virsh domfsthaw', 'no answer'):
                self.assertIn(text, logs.output[-1])
        nova.assert_not_called()
        thaw.side_effect = None
        self.driver.check_can_live_migrate_source(
            None, self.instance_, mock.Mock())
        nova.assert_called_once()

    def test_guest_that_may_be_frozen_can_be_rebooted(self):
        self.leave_frozen()
        nova = self.patch(nova_driver.LibvirtDriver, 'reboot')
        self.driver.reboot(None, self.instance_, None, 'HARD')
        nova.assert_called_once()

    def test_user_pauses_no_guest_that_a_merge_will_resume(self):
        def pause(_instance):
            self.assertEqual([], pauses.stop(0))
            pauses.are_forbidden = False

        uuid = self.instance_.uuid
        pauses = write_limit.Pauses()
        pauses.begin(uuid)
        nova = self.patch(nova_driver.LibvirtDriver, 'pause')
        nova.side_effect = pause
        with mock.patch.object(write_limit, 'PAUSES', pauses), \
                futures.ThreadPoolExecutor(1) as executor:
            paused = executor.submit(self.driver.pause, self.instance_)
            pauses.end(uuid)
            paused.result()
        nova.assert_called_once_with(self.instance_)

    def test_merge_waits_until_a_user_has_paused_the_guest(self):
        pauses = write_limit.Pauses()
        order = []

        def begin():
            pauses.begin(self.instance_.uuid)
            order.append('merge')

        with mock.patch.object(write_limit, 'PAUSES', pauses), \
                futures.ThreadPoolExecutor(1) as executor:
            self.patch(nova_driver.LibvirtDriver, 'pause').side_effect = (
                lambda _instance: executor.submit(begin) and
                order.append('user'))
            self.driver.pause(self.instance_)
        self.assertEqual(['user', 'merge'], order)

    def test_recovery_does_not_begin_while_a_guest_is_suspended(self):
        def suspend(_context, instance):
            self.assertRaises(
                exception.RecoveryInProgress,
                self.driver.gate.ensure_recovered, None, instance)

        nova = self.patch(nova_driver.LibvirtDriver, 'suspend')
        nova.side_effect = suspend
        with mock.patch.object(gate, 'BUSY_TIMEOUT', 0):
            self.call('suspend')
        nova.assert_called_once_with(None, self.instance_)

    def test_snapshot_of_nova_may_suspend_its_guest(self):
        nova = self.patch(nova_driver.LibvirtDriver, 'suspend')
        with self.driver.gate.exclusive(self.instance_.uuid):
            self.call('suspend')
        nova.assert_called_once_with(None, self.instance_)

    def test_guarded_methods_have_nova_s_signatures(self):
        self.assertEqual(11, len(guards.GUARDED))
        for name in guards.GUARDED:
            ours, nova_s = (getattr(cls, name) for cls in (
                driver.SnapextDriver, nova_driver.LibvirtDriver))
            self.assertIsNot(ours, nova_s)
            self.assertEqual(inspect.signature(nova_s),
                             inspect.signature(ours))
            # Nova's test of its drivers' signatures asks this way.
            self.assertEqual(inspect.getfullargspec(nova_s)[:-1],
                             inspect.getfullargspec(ours)[:-1])
            self.assertEqual(
                ['self', 'context', 'instance'],
                list(inspect.signature(ours).parameters)[:3])

    def test_no_method_of_nova_starts_a_guest_without_a_guard(self):
        """Check all methods that write a definition or start a domain.

        A method without a guard is called by guarded methods alone.
        """
        callers = _callers()
        starts = {'_get_guest_xml', '_create_guest', 'launch',
                  '_create_guest_with_network'}
        unguarded, seen = set(starts), set()
        while unguarded - seen:
            name = (unguarded - seen).pop()
            seen.add(name)
            unguarded |= {caller for caller in callers.get(name, ())
                          if caller not in (*guards.GUARDED, 'snapshot')}
        self.assertEqual(UNGUARDED, seen - starts)


class PowerOffTest(GuardTestCase):
    """Rescue, shelve and others begin with a power off."""

    def setUp(self):
        super().setUp()
        self.instance_.vm_state = vm_states.ACTIVE
        self.nova = self.patch(nova_driver.LibvirtDriver, 'power_off')

    def power_off(self, task_state):
        self.instance_.task_state = task_state
        self.driver.power_off(self.instance_, 60, 10)

    def test_operation_that_needs_the_disk_is_refused_first(self):
        with self.unrecoverable():
            for task_state in (task_states.RESCUING, task_states.SHELVING,
                               task_states.REBUILDING,
                               task_states.RESIZE_MIGRATING):
                self.assertRaises(exception.OperationRefused, self.power_off,
                                  task_state)
        self.nova.assert_not_called()

    def test_stop_and_deletion_are_never_refused(self):
        with self.unrecoverable():
            for task_state in (None, task_states.POWERING_OFF,
                               task_states.SOFT_DELETING,
                               task_states.DELETING,
                               task_states.SHELVING_OFFLOADING):
                self.nova.reset_mock()
                self.power_off(task_state)
                self.nova.assert_called_once_with(self.instance_, 60, 10)

    def test_stop_during_a_snapshot_is_not_refused(self):
        with self.driver.gate.exclusive(self.instance_.uuid):
            self.power_off(task_states.POWERING_OFF)
        self.nova.assert_called_once()

    def test_recovered_instance_is_powered_off(self):
        recovered = self.patch(self.driver.gate, 'ensure_recovered')
        recovered.side_effect = lambda *_: self.nova.assert_not_called()
        self.power_off(task_states.RESCUING)
        self.nova.assert_called_once_with(self.instance_, 60, 10)
        recovered.assert_called_once_with(None, self.instance_)

    def test_refused_rescue_leaves_the_state_as_it_was(self):
        # Nova's manager sets it to ERROR, whatever the error.
        with self.unrecoverable():
            for task_state in (task_states.SHELVING, task_states.RESCUING):
                self.put_back.assert_not_called()
                self.assertRaises(exception.OperationRefused, self.power_off,
                                  task_state)
        self.put_back.assert_called_once_with(
            self.instance_.uuid, vm_states.ACTIVE)

    def test_power_off_has_nova_s_signature(self):
        self.assertEqual(
            NOVA_POWER_OFF[:4],
            inspect.getfullargspec(driver.SnapextDriver.power_off)[:4])


class ManagerTest(base.RecoveryTestCase):
    """What Nova's manager does after a refusal, by its own code."""

    def setUp(self):
        super().setUp()
        self.update = self.patch(manager.ComputeManager, '_instance_update')
        self.manager = mock.Mock(spec=manager.ComputeManager)
        self.manager._instance_update = self.update

    def test_rolled_back_refusal_keeps_the_state(self):
        refused = exception.OperationRefused(instance='i', blocks_start=True)

        def refuse():
            with manager.ComputeManager._error_out_instance_on_exception(
                    self.manager, None, self.instance_,
                    instance_state=vm_states.SUSPENDED):
                raise guards._roll_back(refused, self.instance_)

        self.assertIs(refused, self.assertRaises(
            exception.OperationRefused, refuse))
        self.update.assert_called_once_with(
            None, self.instance_, vm_state=vm_states.SUSPENDED,
            task_state=None)

    def test_rescue_powers_off_before_any_other_method_of_the_driver(self):
        for name in ('rescue_instance', '_shelve_instance'):
            source = inspect.getsource(inspect.unwrap(
                getattr(manager.ComputeManager, name)))
            self.assertLess(source.index('self._power_off_instance('),
                            source.index('self.driver.'))

    def test_rebuild_calls_the_driver_before_it_powers_off(self):
        source = inspect.getsource(
            manager.ComputeManager._do_rebuild_instance)
        self.assertLess(source.index('self.driver.rebuild('),
                        source.index('self._rebuild_default_impl('))


def _callers():
    """Return the callers of each method that LibvirtDriver's methods call."""
    callers = {}
    tree = ast.parse(textwrap.dedent(inspect.getsource(
        nova_driver.LibvirtDriver)))
    for method in tree.body[0].body:
        if not isinstance(method, ast.FunctionDef):
            continue
        for node in ast.walk(method):
            if isinstance(node, ast.Call) and isinstance(
                    node.func, ast.Attribute):
                callers.setdefault(node.func.attr, set()).add(method.name)
    return callers
