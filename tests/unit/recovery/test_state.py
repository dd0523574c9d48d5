# SPDX-License-Identifier: Apache-2.0

import threading
from unittest import mock

from nova.compute import task_states
from nova.compute import vm_states
from nova import exception as nova_exception
from nova import objects
from oslo_utils.fixture import uuidsentinel as uuids

from nova_snapext.recovery import state
from tests.unit.recovery import base


class PutBackTest(base.RecoveryTestCase):
    """Nova's manager sets an instance to ERROR, after a refusal."""

    def setUp(self):
        super().setUp()
        self.save = self.patch(objects.Instance, 'save')
        for name, value in (('POLL_INTERVAL', 0), ('TIMEOUT', 60)):
            patch = mock.patch.object(state, name, value)
            patch.start()
            self.addCleanup(patch.stop)

    def manager_sets(self, *states):
        """Set what each query returns: vm state and task state."""
        found = []
        for vm_state, task_state in states:
            instance = self.instance()
            instance.vm_state, instance.task_state = vm_state, task_state
            found.append(instance)
        self.get.side_effect = found
        return found[-1]

    def test_state_is_put_back_when_the_task_has_ended(self):
        last = self.manager_sets(
            (vm_states.ACTIVE, task_states.RESCUING),
            (vm_states.ERROR, task_states.RESCUING), (vm_states.ERROR, None))
        state._put_back(uuids.one, vm_states.ACTIVE)
        self.assertEqual(vm_states.ACTIVE, last.vm_state)
        self.save.assert_called_once_with(
            expected_vm_state=[vm_states.ERROR], expected_task_state=[None])

    def test_next_operation_of_a_user_is_not_disturbed(self):
        self.manager_sets((vm_states.ERROR, None))
        for error in (nova_exception.UnexpectedTaskStateError,
                      nova_exception.InstanceUpdateConflict):
            self.save.side_effect = error(
                instance_uuid='i', expected={}, actual={})
            self.manager_sets((vm_states.ERROR, None))
            state._put_back(uuids.one, vm_states.ACTIVE)

    def test_state_that_is_not_set_is_left(self):
        with mock.patch.object(state, 'TIMEOUT', 0):
            self.manager_sets((vm_states.ACTIVE, None))
            state._put_back(uuids.one, vm_states.ACTIVE)
        self.save.assert_not_called()

    def test_deleted_instance_does_not_matter(self):
        self.get.side_effect = nova_exception.InstanceNotFound(
            instance_id='i')
        state._put_back(uuids.one, vm_states.ACTIVE)
        self.save.assert_not_called()

    def test_failure_is_logged_with_a_remedy(self):
        self.get.side_effect = ZeroDivisionError
        with self.assertLogs(state.LOG.logger, 'WARNING') as logs:
            state._put_back(uuids.one, vm_states.ACTIVE)
        self.assertIn('openstack server set --state', logs.output[0])

    def test_instance_in_error_stays_there(self):
        with mock.patch.object(threading, 'Thread') as thread:
            state.put_back(uuids.one, vm_states.ERROR)
        thread.assert_not_called()
