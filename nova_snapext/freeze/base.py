# SPDX-License-Identifier: Apache-2.0
"""What every strategy is, and what it hands over."""

from __future__ import annotations

import abc
from collections.abc import Iterator
import contextlib
import dataclasses
import enum
import subprocess

import libvirt
from nova.virt.libvirt import host as libvirt_host
from oslo_concurrency import processutils

from nova_snapext import exception
from nova_snapext import plan as planning


# What libvirt, a program that is run, the host's file system and what they
# are told can answer with.
FREEZE_ERRORS = (libvirt.libvirtError,
                 processutils.ProcessExecutionError,
                 subprocess.TimeoutExpired,
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
    """

    uri: str
    consistency: Consistency
    freeze_seconds: float


class Strategy(abc.ABC):
    """A way to freeze a root disk."""

    name: str

    def __init__(self, host: libvirt_host.Host):
        self._host = host

    @abc.abstractmethod
    def reason_against(self, plan: planning.Plan) -> str | None:
        """Say why this strategy can't serve a plan; None when it can."""

    @contextlib.contextmanager
    def freeze(self, plan: planning.Plan) -> Iterator[FrozenDisk]:
        """Freeze the root disk; leaving the context releases it.

        Whatever way it is left by, the guest is as it was before, and nothing
        of the snapshot remains on the host.

        :raises FreezeFailed: the disk can't be frozen; nothing is left behind
        :raises libvirtError: the guest's domain is gone
        :raises ReleaseFailed: on leaving; it says what is left and how to
            remove it
        """
        with contextlib.ExitStack() as stack:
            try:
                frozen = self._freeze(plan, stack)
            except FREEZE_ERRORS as error:
                if _domain_is_gone(error):
                    raise
                raise exception.FreezeFailed(
                    disk=plan.disk.target, instance=plan.instance.uuid,
                    strategy=self.name, reason=str(error)) from error
            yield frozen

    @abc.abstractmethod
    def _freeze(self, plan: planning.Plan,
                stack: contextlib.ExitStack) -> FrozenDisk:
        """Freeze the root disk, and put its release on the stack.

        Each part of the release goes on the stack as soon as there is
        something to release. Any of FREEZE_ERRORS may be raised.
        """


def _domain_is_gone(error: Exception) -> bool:
    return (isinstance(error, libvirt.libvirtError) and
            error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN)
