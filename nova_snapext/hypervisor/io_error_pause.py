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

    :ivar may_resume: QEMU had not paused the guest on an I/O error when the
        snapshot began. QEMU does so to a guest that runs only: one that is
        paused so afterwards ran until then.
    """

    def __init__(self, instance: objects.Instance):
        self._instance = instance
        self.may_resume = False

    def capture_state(self, guest: domain.Domain) -> None:
        """Remember the state of the guest, as the snapshot begins."""
        self.may_resume = guest.state() != (
            libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR)

    def resume(self, guest: domain.Domain, directory: str) -> None:
        """Resume the guest if QEMU has paused it since the snapshot began.

        No write of the guest is lost: QEMU repeats those that failed.

        :param directory: the directory whose file system was full
        """
        if not self.may_resume:
            return
        resume_if_halted(
            guest, self._instance, (libvirt.VIR_DOMAIN_PAUSED_IOERROR,),
            f'QEMU paused it on an I/O error during its snapshot, as it does '
            f'when {directory} is full')


def resume_if_halted(guest: domain.Domain, instance: objects.Instance,
                     reasons: Collection[int], why: str) -> None:
    """Resume a guest that the user has not paused.

    :param guest: a guest that ran before the snapshot
    :param reasons: the reasons of a pause that is ended,
        VIR_DOMAIN_PAUSED_* constants
    :param why: what halted the guest, for the log
    :raises libvirtError: the guest can't be resumed
    """
    state, reason = guest.state()
    if state == libvirt.VIR_DOMAIN_PAUSED and reason in reasons:
        LOG.warning('The guest is resumed: %s', why, instance=instance)
        guest.resume()
