# SPDX-License-Identifier: Apache-2.0
"""Guests that stay paused because of a snapshot, and how they are resumed."""

from __future__ import annotations

from collections.abc import Collection

import libvirt
from nova import objects
from oslo_log import log as logging

from nova_snapext.hypervisor import domain

LOG = logging.getLogger(__name__)

# libvirt pauses a guest for a snapshot, and QEMU one that can't write. A
# libvirtd that dies during the pause does not resume the guest when it is
# back (seen with 9.0).
HALTED_REASONS = (libvirt.VIR_DOMAIN_PAUSED_SAVE,
                  libvirt.VIR_DOMAIN_PAUSED_SNAPSHOT,
                  libvirt.VIR_DOMAIN_PAUSED_IOERROR)


class IoErrorPause:
    """Resumes a guest that QEMU paused during a snapshot.

    :ivar was_running: the guest ran when the snapshot began
    """

    def __init__(self, instance: objects.Instance, was_running: bool = False):
        self._instance = instance
        self.was_running = was_running

    def capture_state(self, guest: domain.Domain) -> None:
        """Remember whether the guest runs, as the snapshot begins."""
        state, _reason = guest.state()
        self.was_running = state == libvirt.VIR_DOMAIN_RUNNING

    def resume(self, guest: domain.Domain, directory: str) -> None:
        """Resume the guest if QEMU has paused it since the snapshot began.

        No write of the guest is lost: QEMU repeats those that failed.

        :param directory: the directory whose file system was full
        """
        if not self.was_running:
            return
        resume_if_halted(
            guest, self._instance, (libvirt.VIR_DOMAIN_PAUSED_IOERROR,),
            f'QEMU paused it on an I/O error during its snapshot, as it does '
            f'when {directory} is full')


def resume_if_halted(guest: domain.Domain, instance: objects.Instance,
                     reasons: Collection[int], why: str) -> None:
    """Resume a guest that the user has not paused.

    :param guest: an active guest that ran before the snapshot
    :param reasons: the reasons of a pause that is ended,
        VIR_DOMAIN_PAUSED_* constants
    :param why: what halted the guest, for the log
    :raises libvirtError: the guest can't be resumed
    """
    state, reason = guest.state()
    if state == libvirt.VIR_DOMAIN_PAUSED and reason in reasons:
        LOG.warning('The guest is resumed: %s', why, instance=instance)
        guest.resume()
