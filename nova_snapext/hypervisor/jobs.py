# SPDX-License-Identifier: Apache-2.0
"""The jobs that a guest and its disks have in libvirt."""

from __future__ import annotations

import typing as ty

import libvirt
from nova import objects
from oslo_log import log as logging
from oslo_utils import timeutils
import tenacity

from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.hypervisor import domain

CONF = conf.CONF
LOG = logging.getLogger(__name__)

# Seconds between two queries of a job. libvirt has no event for its end.
POLL_INTERVAL = 0.5


def check_no_job(guest: domain.Domain, instance: objects.Instance) -> None:
    """Check that a guest has no job.

    libvirt allows one job at a time. It would let ours wait for 30 seconds,
    and then refuse it.

    :raises GuestBusy: the guest has a job
    """
    stats = _stats(guest)
    if _is_job(stats):
        raise exception.GuestBusy(
            guest=instance.name, instance=instance.uuid,
            job=_name('VIR_DOMAIN_JOB_OPERATION_', stats.get('operation')))


def check_no_disk_job(disk: str, guest: domain.Domain,
                      instance: objects.Instance) -> None:
    """Check that a disk has no job. QEMU allows one at a time.

    :param disk: the guest's name of the disk, such as ``vda``
    :raises DiskBusy: the disk has a job
    """
    job = guest.get_block_device(disk).get_job_info()
    if job is not None:
        raise exception.DiskBusy(
            guest=instance.name, instance=instance.uuid, disk=disk,
            job=_name('VIR_DOMAIN_BLOCK_JOB_TYPE_', job.job))


def wait_for_no_job(guest: domain.Domain, instance: objects.Instance) -> None:
    """Wait until a guest has no job, as long as its job makes progress.

    libvirtd continues a job even after the process that began it has died.

    :raises GuestBusy: the job has made no progress for
        [snapext]operation_timeout
    """
    timer = StallTimer(CONF.snapext.operation_timeout)

    def is_waiting() -> bool:
        stats = _stats(guest)
        if not _is_job(stats):
            return False
        processed = stats.get('data_processed')
        LOG.debug('Waiting for a job of the guest: %s bytes are processed',
                  processed, instance=instance)
        timer.progress(processed)
        return not timer.expired

    tenacity.Retrying(retry=tenacity.retry_if_result(bool),
                      wait=tenacity.wait_fixed(POLL_INTERVAL))(is_waiting)
    check_no_job(guest, instance)


def _stats(guest: domain.Domain) -> dict[str, ty.Any]:
    """Return the statistics of a guest's job; empty if the guest is off.

    A guest ends in the middle of any job, and at the end of a managed save.
    """
    try:
        return guest.job_stats()
    except libvirt.libvirtError as error:
        if (error.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID and
                not guest.is_active()):
            return {}
        raise


def _is_job(stats: dict[str, int]) -> bool:
    none = libvirt.VIR_DOMAIN_JOB_NONE
    return bool(stats.get('type', none) != none)


def _name(prefix: str, value: int | None) -> str:
    """Return libvirt's name of a constant, such as ``backup``."""
    return next((name.removeprefix(prefix).lower()
                 for name, constant in vars(libvirt).items()
                 if name.startswith(prefix) and constant == value),
                'unknown')


class StallTimer:
    """Expires when progress has stayed the same for too long.

    :param limit: in seconds
    """

    def __init__(self, limit: float):
        self._last: object = None
        self._watch = timeutils.StopWatch(limit).start()

    def progress(self, value: object) -> None:
        """Restart the timer if progress has changed."""
        if value != self._last:
            self._last = value
            self._watch.restart()

    @property
    def expired(self) -> bool:
        return self._watch.expired()
