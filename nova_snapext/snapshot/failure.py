# SPDX-License-Identifier: Apache-2.0
"""The failure of a snapshot: its log line, and its cause in Nova's terms."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import sys
import typing as ty

import libvirt
from nova import exception as nova_exception
from nova import objects
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import host as libvirt_host
from oslo_log import log as logging
from oslo_utils import excutils

from nova_snapext import checks
from nova_snapext import exception
from nova_snapext.hypervisor import domain
from nova_snapext import plan as planning

LOG = logging.getLogger(__name__)

# Seconds until libvirt notices that a QEMU has ended.
END_LATENCY = 2


@contextlib.contextmanager
def free_frames() -> Iterator[None]:
    """Free the memory that the error of a snapshot keeps, see exception."""
    # The caller may be handling an error of its own.
    outer = sys.exc_info()[1]
    try:
        yield
    except BaseException as error:
        exception.free_frames(error, outer)
        raise


@contextlib.contextmanager
def log_failure(instance: objects.Instance, image_id: str) -> Iterator[None]:
    """Log why a snapshot fails. Nova's manager does not log it."""
    try:
        yield
    except exception.StrategyRefused as refused:
        # The user made the request, and needs no traceback.
        LOG.error('%s', refused, instance=instance)
        raise
    except exception.GONE as reason:
        LOG.info('Snapshot cancelled: %s', reason, instance=instance)
        raise
    except exception.SnapshotAborted as reason:
        LOG.error('Snapshot aborted: %s', reason, instance=instance)
        raise
    except Exception:
        with excutils.save_and_reraise_exception():
            LOG.exception('Snapshot into image %s failed', image_id,
                          instance=instance)


@contextlib.contextmanager
def translate_gone_guest(driver: libvirt_driver.LibvirtDriver,
                         instance: objects.Instance) -> Iterator[None]:
    """Raise InstanceNotFound for a failure that a deleted guest has caused.

    Nova's manager reads it as a deletion in progress, not as an error.
    """
    try:
        yield
    except libvirt.libvirtError as error:
        if not domain.is_gone(error):
            raise
        raise nova_exception.InstanceNotFound(
            instance_id=instance.uuid) from error
    except exception.DiskReadError as error:
        if driver.instance_exists(instance):
            raise
        raise nova_exception.InstanceNotFound(
            instance_id=instance.uuid) from error


@contextlib.contextmanager
def explain_lost_disk(host: libvirt_host.Host,
                      plan: planning.Plan) -> Iterator[None]:
    """Raise the cause of a read error, if the guest has ended or is deleted.

    :raises GuestStopped: the guest was shut off
    """
    try:
        yield
    except exception.DiskReadError as error:
        cause = _end_of_guest(host, plan)
        if cause is None:
            raise
        raise cause from error


@contextlib.contextmanager
def explain_deleted_instance(plan: planning.Plan) -> Iterator[None]:
    """Raise the cause of a read error, if the instance is deleted.

    For a disk that can be read whether the guest runs or not.
    """
    try:
        yield
    except exception.DiskReadError as error:
        try:
            cause = checks.InstanceDeletedCheck(
                plan.context, plan.instance).run()
        except Exception as unknown:
            LOG.warning('Could not check whether the instance is deleted: %s',
                        unknown, instance=plan.instance)
            cause = None
        if cause is None:
            raise
        raise cause from error


def _end_of_guest(host: libvirt_host.Host,
                  plan: planning.Plan) -> Exception | None:
    try:
        guest = domain.get(host, plan.instance)
        runs = plan.running and _runs(guest)
        cause: Exception | None = checks.InstanceDeletedCheck(
            plan.context, plan.instance).run()
    except nova_exception.InstanceNotFound as error:
        return ty.cast(Exception, error)
    except Exception as error:
        LOG.warning('Could not check whether the guest still runs: %s', error,
                    instance=plan.instance)
        return None
    if cause is None and plan.running and not runs:
        return exception.GuestStopped(instance=plan.instance.uuid)
    return cause


def _runs(guest: domain.Domain) -> bool:
    """Return whether a guest still runs after QEMU stopped serving its disk.

    libvirt may notice the end of QEMU later than our NBD connection did.
    """
    with guest.watch_event(
            libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE) as wait_for_event:
        if guest.is_active():
            wait_for_event(END_LATENCY)
    return bool(guest.is_active())
