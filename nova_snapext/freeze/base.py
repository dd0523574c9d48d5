# SPDX-License-Identifier: Apache-2.0
"""What every strategy is, and what it hands over."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import enum

from nova.virt.libvirt import host as libvirt_host

from nova_snapext import plan as planning


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

    @abc.abstractmethod
    def freeze(
        self, plan: planning.Plan,
    ) -> contextlib.AbstractContextManager[FrozenDisk]:
        """Freeze the root disk; leaving the context releases it.

        Whatever way it is left by, the guest is as it was before, and nothing
        of the snapshot remains on the host.

        :raises FreezeFailed: the disk can't be frozen; nothing is left behind
        :raises ReleaseFailed: on leaving; it says what is left and how to
            remove it
        """
