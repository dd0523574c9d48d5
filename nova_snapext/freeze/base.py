# SPDX-License-Identifier: Apache-2.0
"""What every strategy is, and what it hands over."""

from __future__ import annotations

import abc
from collections.abc import Iterator
import contextlib
import dataclasses
import datetime
import enum
import subprocess

import libvirt
from nova import exception as nova_exception
from nova import utils
from nova.virt.libvirt import driver as libvirt_driver
from oslo_concurrency import processutils
from oslo_utils import timeutils

from nova_snapext import exception
from nova_snapext import journal
from nova_snapext import plan as planning

# What a program that is run in time raises when it is not: of green programs,
# under eventlet, it is another class.
TIMEOUTS: tuple[type[Exception], ...] = (subprocess.TimeoutExpired,)
if eventlet := utils.get_eventlet():
    TIMEOUTS += (eventlet.patcher.original('subprocess').TimeoutExpired,)

# What libvirt, Nova's way to devices, a program that is run, the host's file
# system and what they are told can answer with.
FREEZE_ERRORS = (libvirt.libvirtError,
                 nova_exception.DeviceDetachFailed,
                 nova_exception.DeviceNotFound,
                 processutils.ProcessExecutionError,
                 *TIMEOUTS,
                 OSError,
                 ValueError)


class Consistency(enum.StrEnum):
    """What a guest that boots from the frozen disk will find."""

    CRASH = 'crash'             # as after a power failure
    FILESYSTEM = 'filesystem'   # filesystems clean, frozen by the guest agent
    OFFLINE = 'offline'         # as the guest left it when it was shut off


@dataclasses.dataclass(frozen=True)
class FrozenDisk:
    """A read-only NBD export of one instant of the root disk.

    :ivar uri: where it is read, an NBD URI
    :ivar freeze_seconds: how long the freeze took, in seconds
    :ivar instant: when it was frozen, UTC without a time zone, as in Nova
    """

    uri: str
    consistency: Consistency
    freeze_seconds: float
    instant: datetime.datetime = dataclasses.field(
        default_factory=timeutils.utcnow)


class Strategy(abc.ABC):
    """A way to take a snapshot.

    :cvar name: by which it is asked for; that of its entry point
    """

    name: str

    def __init__(self, driver: libvirt_driver.LibvirtDriver):
        self._driver = driver
        self._host = driver._host

    @abc.abstractmethod
    def reason_against(self, plan: planning.Plan) -> str | None:
        """Say why this strategy can't serve a plan; None when it can."""

    def reason_against_unasked(self, plan: planning.Plan) -> str | None:
        """Say why ``auto`` should rather try another one; None when not.

        What can be served, but at a price that is for somebody to accept.
        """
        return None


class FreezingStrategy(Strategy):
    """A way to freeze a root disk.

    :cvar STORAGES: libvirt's types of the disk's source that it serves
    :cvar FORMATS: libvirt's formats of the disk that it serves
    """

    STORAGES: frozenset[str] = frozenset({'file', 'block'})
    FORMATS: frozenset[str] = frozenset({'qcow2', 'raw'})

    def reason_against(self, plan: planning.Plan) -> str | None:
        disk = plan.disk
        if disk.obstacle:
            return disk.obstacle
        if disk.storage not in self.STORAGES:
            return f'its root disk is on {disk.storage} storage'
        if disk.format not in self.FORMATS:
            return f'its root disk has the format {disk.format}'
        return self._reason_against(plan)

    @abc.abstractmethod
    def _reason_against(self, plan: planning.Plan) -> str | None:
        """See :meth:`reason_against`; storage and format are served."""

    def filling(self, plan: planning.Plan) -> tuple[str, ...]:
        """Name what is on the file systems that fill while it is frozen.

        And which the guest would be paused for, if they were full.

        :returns: paths of files or directories
        """
        return ()

    @contextlib.contextmanager
    def freeze(self, plan: planning.Plan,
               entry: journal.Entry | None = None) -> Iterator[FrozenDisk]:
        """Freeze the root disk; leaving the context releases it.

        Whatever way it is left by, the guest is as it was before, and nothing
        of the snapshot remains on the host. If it is not left at all, as when
        nova-compute is killed, the journal has what remains.

        :param entry: the snapshot's in the journal; None: one is made
        :raises FreezeFailed: the disk can't be frozen; nothing is left behind
        :raises libvirtError: the guest's domain is gone
        :raises ReleaseFailed: on leaving; it says what is left and how to
            remove it
        """
        with contextlib.ExitStack() as outer:
            if entry is None:
                entry = outer.enter_context(journal.opened(plan, self.name))
            stack = outer.enter_context(journal.ReleaseStack(entry))
            try:
                frozen = self._freeze(plan, stack)
            except FREEZE_ERRORS as error:
                if domain_is_gone(error):
                    raise
                raise exception.FreezeFailed(
                    disk=plan.disk.target, instance=plan.instance.uuid,
                    strategy=self.name, reason=str(error)) from error
            yield frozen

    @abc.abstractmethod
    def _freeze(self, plan: planning.Plan,
                stack: journal.ReleaseStack) -> FrozenDisk:
        """Freeze the root disk, and put its release on the stack.

        What a crash would leave behind goes on the stack before it is made,
        by its hold(). Any of FREEZE_ERRORS may be raised.
        """


def domain_is_gone(error: BaseException) -> bool:
    """Tell an error of libvirt's by which the guest does not exist."""
    return (isinstance(error, libvirt.libvirtError) and
            error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN)


def consistency_of_shut_off(plan: planning.Plan) -> Consistency:
    """Tell what the disk of a guest that does not run holds."""
    # What a suspended guest had not written yet is in its saved memory.
    if plan.guest._domain.hasManagedSaveImage(0):
        return Consistency.CRASH
    return Consistency.OFFLINE
