# SPDX-License-Identifier: Apache-2.0
"""The jobs that a guest has in libvirt, and waiting for their events."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import threading
import typing as ty

import libvirt
from nova import objects
from nova import utils
from nova.virt.libvirt import guest as libvirt_guest
from oslo_utils import timeutils
import tenacity

from nova_snapext import conf
from nova_snapext import exception

CONF = conf.CONF

# Between looks at a job that has no event for its end, in seconds.
LOOK = 0.5


def check_none_runs(guest: libvirt_guest.Guest,
                    instance: objects.Instance) -> None:
    """Refuse a guest that a job of ours could only wait for, for 30 seconds.

    :raises GuestBusy: it has a job, which libvirt allows one of
    """
    stats = guest._domain.jobStats()
    if stats.get('type', libvirt.VIR_DOMAIN_JOB_NONE) != (
            libvirt.VIR_DOMAIN_JOB_NONE):
        raise exception.GuestBusy(
            guest=instance.name, instance=instance.uuid,
            job=_name('VIR_DOMAIN_JOB_OPERATION_', stats.get('operation')))


def check_none_runs_on(disk: str, guest: libvirt_guest.Guest,
                       instance: objects.Instance) -> None:
    """Refuse a disk that has a job.

    :param disk: the guest's name of it, such as ``vda``
    :raises DiskBusy: it has a job, which QEMU allows one of
    """
    job = guest.get_block_device(disk).get_job_info()
    if job is not None:
        raise exception.DiskBusy(
            guest=instance.name, instance=instance.uuid, disk=disk,
            job=_name('VIR_DOMAIN_BLOCK_JOB_TYPE_', job.job))


def await_none(guest: libvirt_guest.Guest,
               instance: objects.Instance) -> None:
    """Wait until a guest has no job, for as long as there is progress.

    libvirtd goes on with what it was told by a process that has died.

    :raises GuestBusy: its job stands still
    """
    silence = Silence(CONF.snapext.job_timeout)

    def busy() -> bool:
        stats = guest._domain.jobStats()
        if stats.get('type', libvirt.VIR_DOMAIN_JOB_NONE) == (
                libvirt.VIR_DOMAIN_JOB_NONE):
            return False
        silence.heard(stats.get('data_processed'))
        return not silence.too_long

    tenacity.Retrying(retry=tenacity.retry_if_result(bool),
                      wait=tenacity.wait_fixed(LOOK))(busy)
    check_none_runs(guest, instance)


def _name(prefix: str, value: int | None) -> str:
    """Give libvirt's name of a constant, such as ``backup``."""
    return next((name.removeprefix(prefix).lower()
                 for name, constant in vars(libvirt).items()
                 if name.startswith(prefix) and constant == value),
                'unknown')


@contextlib.contextmanager
def event_awaited(guest: libvirt_guest.Guest,
                  event: int) -> Iterator[Callable[[float], bool]]:
    """Listen for an event of the guest.

    What is looked at inside can't change unnoticed. An event is only ever a
    reason to look again.

    :param event: one of libvirt's VIR_DOMAIN_EVENT_ID_*
    :yields: a function that waits for it, for so many seconds at the most
    """
    # libvirt calls back in a native thread, which must not meet eventlet.
    eventlet = utils.get_eventlet()
    native_threading = (eventlet.patcher.original('threading') if eventlet
                        else threading)
    happened = native_threading.Event()

    def on_event(*_args: ty.Any) -> None:
        happened.set()

    connection = guest._domain.connect()
    callback = connection.domainEventRegisterAny(
        guest._domain, event, on_event, None)
    try:
        yield utils.tpool_wrap(happened.wait)
    finally:
        connection.domainEventDeregisterAny(callback)


class Silence:
    """For how long nothing new was heard."""

    def __init__(self, limit: float):
        self._limit = limit
        self._last: object = None
        self._watch = timeutils.StopWatch(limit).start()

    def heard(self, news: object) -> None:
        if news != self._last:
            self._last = news
            self._watch.restart()

    @property
    def too_long(self) -> bool:
        return self._watch.expired()
