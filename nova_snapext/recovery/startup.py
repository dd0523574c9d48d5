# SPDX-License-Identifier: Apache-2.0
"""Instances that are not recovered yet when nova-compute starts.

When Nova's manager starts, it initializes each instance of the host, one after
the other: it ends tasks that were interrupted, and may reboot, start or revert
the instance, or resume it after a boot of the host. A merge can take hours.
It must keep neither the service from starting, nor the instance from being
initialized later.
"""

from __future__ import annotations

from collections.abc import Callable
import os

from nova.compute import task_states
from nova.compute import vm_states
from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import utils as libvirt_utils
from oslo_log import log as logging

from nova_snapext import compat
from nova_snapext import journal
from nova_snapext.resources import overlay

LOG = logging.getLogger(__name__)

# Nova goes on with these tasks, and none of them needs a recovery.
UNHELD_TASKS = (task_states.DELETING, task_states.SOFT_DELETING,
                task_states.POWERING_OFF)

# As ComputeManager.init_host() loads them.
EXPECTED_ATTRS = ['info_cache', 'metadata', 'system_metadata',
                  'numa_topology', 'flavor']


def hold_back(driver: libvirt_driver.LibvirtDriver,
              context: nova_context.RequestContext,
              instances: objects.InstanceList) -> objects.InstanceList:
    """Initialize instances that are not recovered in the background.

    :param instances: all instances of this host
    :returns: the other ones, which Nova can initialize now
    """
    is_held = holding(driver)
    return objects.InstanceList(context, objects=[
        instance for instance in instances if not is_held(context, instance)])


def holding(
    driver: libvirt_driver.LibvirtDriver,
) -> Callable[[nova_context.RequestContext, objects.Instance], bool]:
    """Return the function that holds back an instance, if it has to be.

    It returns whether it does. The instance is initialized in the background
    then.
    """
    journaled = {entry.instance_uuid for entry in journal.entries()}

    def is_held(context: nova_context.RequestContext,
                instance: objects.Instance) -> bool:
        return (instance.uuid in journaled or _has_overlay(instance)) and (
            _hold(driver, context, instance))

    return is_held


def _has_overlay(instance: objects.Instance) -> bool:
    return os.path.exists(os.path.join(
        libvirt_utils.get_instance_path(instance), overlay.NAME))


def _hold(driver: libvirt_driver.LibvirtDriver,
          context: nova_context.RequestContext,
          instance: objects.Instance) -> bool:
    """Initialize an instance after its recovery.

    :returns: False if Nova can initialize it at once
    """
    if instance.task_state in UNHELD_TASKS or not _set_task(instance):
        return False
    LOG.warning('The instance has an interrupted snapshot that is not cleaned '
                'up yet. Nova initializes the instance when it is',
                instance=instance)
    driver.gate.call_after_recovery(
        instance.uuid, _initialize, driver, context, instance.uuid,
        instance.task_state)
    return True


def _set_task(instance: objects.Instance) -> bool:
    """Give an idle instance the task of a snapshot.

    Without a task, Nova's periodic sync would stop an instance that has not
    been resumed after a boot of the host. The API refuses what this task
    excludes. Nova removes the task when it initializes the instance.

    :returns: whether the instance has a task, or needs none
    """
    if (instance.task_state is not None or
            instance.vm_state != vm_states.ACTIVE):
        return True
    instance.task_state = task_states.IMAGE_SNAPSHOT
    try:
        instance.save(expected_task_state=[None])
    except (nova_exception.InstanceNotFound,
            nova_exception.UnexpectedTaskStateError) as error:
        LOG.info('The instance has just got another task: %s', error,
                 instance=instance)
        return False
    return True


def _initialize(driver: libvirt_driver.LibvirtDriver,
                context: nova_context.RequestContext, uuid: str,
                task_state: str | None) -> None:
    """Initialize an instance as Nova does when it starts.

    :param task_state: task of the instance when nova-compute started
    """
    try:
        instance = objects.Instance.get_by_uuid(
            context, uuid, expected_attrs=EXPECTED_ATTRS)
        if instance.task_state != task_state:
            # It is of a request to the nova-compute that runs now.
            LOG.info('Nova does not initialize the instance: it has got the '
                     'task %s', instance.task_state, instance=instance)
            return
        LOG.info('Nova initializes the instance now, after its recovery',
                 instance=instance)
        compat.init_instance(driver.virtapi, context, instance)
    except nova_exception.InstanceNotFound:
        LOG.debug('Instance %s was deleted during its recovery', uuid)
    except Exception:
        # Nobody waits for this thread.
        LOG.exception('Nova could not initialize instance %s after its '
                      'recovery. If its task does not end, '
                      'restart nova-compute', uuid)
