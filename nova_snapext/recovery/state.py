# SPDX-License-Identifier: Apache-2.0
"""The state of an instance after an operation that was refused."""

from __future__ import annotations

import threading

from nova.compute import vm_states
from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from oslo_log import log as logging
import tenacity

LOG = logging.getLogger(__name__)

# Seconds for which Nova's manager may take to set the state, and then to end
# the task. Both are one call to the conductor each.
TIMEOUT = 60

# Seconds between two queries.
POLL_INTERVAL = 1


def put_back(uuid: str, vm_state: str) -> None:
    """Put back the state that Nova's manager is about to set to ERROR.

    The manager does so when a rescue or unrescue is refused, whatever the
    error. The guest has not been touched. Return at once: another thread
    waits for the manager.

    :param uuid: uuid of the instance
    :param vm_state: the state before the operation
    """
    if vm_state != vm_states.ERROR:
        threading.Thread(target=_put_back, args=(uuid, vm_state),
                         name='snapext-state', daemon=True).start()


def _put_back(uuid: str, vm_state: str) -> None:
    try:
        tenacity.Retrying(
            retry=tenacity.retry_if_result(lambda done: not done),
            wait=tenacity.wait_fixed(POLL_INTERVAL),
            stop=tenacity.stop_after_delay(TIMEOUT))(
                _put_back_if_error, uuid, vm_state)
    except nova_exception.InstanceNotFound:
        LOG.debug('Instance %s is deleted: its state does not matter', uuid)
    except tenacity.RetryError:
        LOG.debug('The state of instance %s was not set to ERROR', uuid)
    except Exception:
        # Nobody waits for this thread.
        LOG.warning('The state of instance %(instance)s may be ERROR, though '
                    'nothing happened to it. "openstack server set --state '
                    'active" changes it', {'instance': uuid}, exc_info=True)


def _put_back_if_error(uuid: str, vm_state: str) -> bool:
    """Put the state back if the manager has set it.

    :returns: whether that is done
    """
    instance = objects.Instance.get_by_uuid(
        nova_context.get_admin_context(), uuid, expected_attrs=[])
    if (instance.vm_state != vm_states.ERROR or
            instance.task_state is not None):
        return False
    instance.vm_state = vm_state
    try:
        # Not if a user's next operation has begun.
        instance.save(expected_vm_state=[vm_states.ERROR],
                      expected_task_state=[None])
    except nova_exception.InstanceUpdateConflict:
        LOG.debug('Instance %s has another operation already', uuid)
        return True
    LOG.info('The state is %s again: the refused operation has changed '
             'nothing', vm_state, instance=instance)
    return True
