# SPDX-License-Identifier: Apache-2.0

from unittest import mock

from nova.compute import manager
from nova.compute import task_states
from nova.compute import vm_states
from nova import exception as nova_exception
from nova import objects
from nova.virt.libvirt import driver as nova_driver
from oslo_utils.fixture import uuidsentinel as uuids

from nova_snapext import compat
from nova_snapext.recovery import gate
from nova_snapext.recovery import startup
from tests.unit.recovery import base


class HoldBackTest(base.RecoveryTestCase):
    """Nova's manager asks the driver which instances to initialize."""

    ASKS_DRIVER = compat.nova_release() >= 34

    def setUp(self):
        super().setUp()
        if self.ASKS_DRIVER:
            nova = self.patch(nova_driver.LibvirtDriver,
                              'process_instances_at_startup')
            nova.side_effect = lambda _context, instances: instances
        self.compute = mock.create_autospec(manager.ComputeManager,
                                            instance=True)
        self.compute.reportclient = None
        self.initialize = self.compute._init_instance
        self.driver.virtapi = manager.ComputeVirtAPI(self.compute)
        self.spawn = self.patch(gate, '_spawn')
        self.save = self.patch(objects.Instance, 'save')
        self.instance_.vm_state = vm_states.ACTIVE

    def start(self):
        """Return the uuids of the instances that Nova initializes now."""
        other = self.instance()
        other.uuid = uuids.other
        if not self.ASKS_DRIVER:
            return self.start_older(self.instance_, other)
        return [instance.uuid for instance
                in self.driver.process_instances_at_startup(
                    None, objects.InstanceList(
                        objects=[self.instance_, other]))]

    def start_older(self, *instances):
        """Do as the init_host() of an older ComputeManager does."""
        self.compute._init_instance = self.initialize
        self.initialize.reset_mock()
        compat.hold_instances(self.driver.virtapi,
                              startup.holding(self.driver))
        for instance in instances:
            self.compute._init_instance(None, instance)
        started = [call.args[1].uuid
                   for call in self.initialize.call_args_list]
        self.initialize.reset_mock()
        return started

    def recovery_ends(self):
        """Run what the gate calls after the recovery."""
        [(function, *args)] = [call.args for call
                               in self.spawn.call_args_list]
        function(*args)

    def test_manager_initializes_the_instances_that_the_driver_returns(self):
        name = ('process_instances_at_startup' if self.ASKS_DRIVER
                else '_init_instance')
        self.assertIn(
            name, manager.ComputeManager.init_host.__code__.co_names)

    def test_instances_without_left_overs_are_initialized_now(self):
        self.assertEqual([self.instance_.uuid, uuids.other], self.start())
        self.spawn.assert_not_called()

    def test_instance_in_the_journal_is_initialized_after_its_recovery(self):
        self.leave(('guest filesystems', {}))
        self.assertEqual([uuids.other], self.start())
        self.initialize.assert_not_called()
        self.recovery_ends()
        self.initialize.assert_called_once_with(
            None, self.instance_)

    def test_instance_with_an_overlay_is_initialized_later(self):
        self.overlay()
        self.assertEqual([uuids.other], self.start())

    def test_idle_instance_has_a_task_that_keeps_nova_from_stopping_it(self):
        self.leave(('guest filesystems', {}))
        self.start()
        self.assertEqual(task_states.IMAGE_SNAPSHOT,
                         self.instance_.task_state)
        self.save.assert_called_once_with(expected_task_state=[None])

    def test_instance_that_is_stopped_or_has_a_task_keeps_its_state(self):
        self.leave(('guest filesystems', {}))
        for vm_state, task_state in (
                (vm_states.STOPPED, None),
                (vm_states.ACTIVE, task_states.IMAGE_UPLOADING)):
            self.instance_.vm_state = vm_state
            self.instance_.task_state = task_state
            self.assertEqual([uuids.other], self.start())
            self.assertEqual(task_state, self.instance_.task_state)
        self.save.assert_not_called()

    def test_deletion_and_stop_go_on_at_once(self):
        self.leave(('guest filesystems', {}))
        for task_state in (task_states.DELETING, task_states.SOFT_DELETING,
                           task_states.POWERING_OFF):
            self.instance_.task_state = task_state
            self.assertIn(self.instance_.uuid, self.start())

    def test_instance_that_gets_a_task_at_this_moment_goes_on(self):
        self.leave(('guest filesystems', {}))
        self.save.side_effect = nova_exception.UnexpectedTaskStateError(
            instance_uuid='i', expected={}, actual={})
        self.assertIn(self.instance_.uuid, self.start())

    def test_instance_with_a_new_task_is_not_initialized_later(self):
        self.leave(('guest filesystems', {}))
        self.start()
        self.get.return_value = self.instance()
        self.get.return_value.task_state = task_states.DELETING
        self.recovery_ends()
        self.initialize.assert_not_called()

    def test_deleted_instance_is_not_initialized(self):
        self.leave(('guest filesystems', {}))
        self.start()
        self.get.side_effect = nova_exception.InstanceNotFound(
            instance_id='i')
        self.recovery_ends()
        self.initialize.assert_not_called()

    def test_failed_initialization_is_logged_with_a_remedy(self):
        self.leave(('guest filesystems', {}))
        self.start()
        self.initialize.side_effect = ZeroDivisionError()
        with self.assertLogs('nova_snapext.recovery.startup',
                             'ERROR') as logs:
            self.recovery_ends()
        self.assertIn('restart nova-compute', logs.output[0])


class OlderHoldBackTest(HoldBackTest):
    """Nova 33 and older initialize all instances, one after the other."""

    ASKS_DRIVER = False

    def setUp(self):
        super().setUp()
        if compat.nova_release() >= 34:
            self.patch(compat, 'nova_release').return_value = 33
