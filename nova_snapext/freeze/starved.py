# SPDX-License-Identifier: Apache-2.0
"""Guests that QEMU pauses because a snapshot's file finds no more room."""

from __future__ import annotations

import libvirt
from nova import objects
from nova.virt.libvirt import guest as libvirt_guest
from oslo_log import log as logging

LOG = logging.getLogger(__name__)


class Starvation:
    """Brings a guest back that was starved while a snapshot ran."""

    def __init__(self, instance: objects.Instance, ran: bool = False):
        self._instance = instance
        self.ran = ran

    def note(self, guest: libvirt_guest.Guest) -> None:
        """Note that the snapshot begins, and whether the guest runs then."""
        state, _reason = guest._domain.state()
        self.ran = state == libvirt.VIR_DOMAIN_RUNNING

    def end(self, guest: libvirt_guest.Guest, directory: str) -> None:
        """Resume the guest, if QEMU has paused it since.

        What it was about to write is not lost: it is tried again.

        :param directory: that ran full
        """
        if not self.ran:
            return
        state, reason = guest._domain.state()
        if (state, reason) == (libvirt.VIR_DOMAIN_PAUSED,
                               libvirt.VIR_DOMAIN_PAUSED_IOERROR):
            LOG.warning('QEMU has paused the guest on an I/O error during '
                        'its snapshot, as it does when %s is full: the guest '
                        'is resumed', directory, instance=self._instance)
            guest.resume()
