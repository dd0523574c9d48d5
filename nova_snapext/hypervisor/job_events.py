# SPDX-License-Identifier: Apache-2.0
"""Events of libvirt when a job of a guest, or of one of its disks, ends.

Nova registers for other events alone. These arrive in the same way: the event
reaches the driver's emit_event() in the thread that Nova dispatches events
in.
"""

from __future__ import annotations

from collections.abc import Callable
import typing as ty

import libvirt
from nova.virt import event as virtevent
from nova.virt.libvirt import host as libvirt_host
from oslo_log import log as logging

from nova_snapext import compat
from nova_snapext.hypervisor import connection

Queue: ty.TypeAlias = Callable[['JobEndedEvent'], None]

LOG = logging.getLogger(__name__)

# Statuses in libvirt's event of a block job, as in libvirt-domain.h
# (virConnectDomainEventBlockJobStatus). A job that is ready goes on.
ENDED = (libvirt.VIR_DOMAIN_BLOCK_JOB_COMPLETED,
         libvirt.VIR_DOMAIN_BLOCK_JOB_FAILED,
         libvirt.VIR_DOMAIN_BLOCK_JOB_CANCELED)


# Types of disks' jobs that no release or recovery of ours begins, or ends.
FOREIGN = (libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COPY,
           libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_PULL)


class JobEndedEvent(virtevent.InstanceEvent):
    """A job of a guest, or of one of its disks, has ended in some way.

    It may have been ours.
    """


class ForeignJobEndedEvent(JobEndedEvent):
    """A job has ended that was certainly not ours."""


class JobEvents:
    """The registration for these events, once on each connection.

    :param host: Nova's connection to libvirt, which it replaces when libvirtd
        restarts
    """

    def __init__(self, host: libvirt_host.Host):
        self._host = host
        self._registered_on: ty.Any = None

    def register(self) -> None:
        """Register on the present connection; log it if that is impossible."""
        try:
            present = self._host.get_connection()
            if present is self._registered_on:
                return
            queue = compat.event_queue(self._host)
            present.domainEventRegisterAny(
                None, libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2,
                _on_block_job, queue)
            present.domainEventRegisterAny(
                None, libvirt.VIR_DOMAIN_EVENT_ID_JOB_COMPLETED,
                _on_job_completed, queue)
        except connection.UNREACHABLE as error:
            LOG.warning('libvirt does not report the end of jobs: %s. What is '
                        'left of snapshots is found by the periodic look '
                        'only', error)
            return
        self._registered_on = present
        LOG.debug('Registered for the end of jobs')


# libvirt calls these in a native thread of Nova's, which under eventlet must
# neither log nor use a lock of this process.

def _on_block_job(_connection: ty.Any, domain: ty.Any, _disk: str,
                  job_type: int, status: int, queue: Queue) -> None:
    if status in ENDED:
        queue((ForeignJobEndedEvent if job_type in FOREIGN
               else JobEndedEvent)(domain.UUIDString()))


def _on_job_completed(_connection: ty.Any, domain: ty.Any,
                      _statistics: dict[str, ty.Any], queue: Queue) -> None:
    queue(JobEndedEvent(domain.UUIDString()))
