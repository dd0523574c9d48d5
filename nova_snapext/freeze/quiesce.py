# SPDX-License-Identifier: Apache-2.0
"""Freezing the guest's filesystems for the instant of the snapshot."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import typing as ty

import libvirt
from lxml import etree
from nova import exception as nova_exception
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import guest as libvirt_guest
from oslo_log import log as logging

from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.freeze import base
from nova_snapext import journal
from nova_snapext import plan as planning

CONF = conf.CONF
LOG = logging.getLogger(__name__)

AGENT_CHANNEL = 'org.qemu.guest_agent.0'

# With these libvirt refuses before it speaks to the agent: the guest is
# paused or off, or has no agent channel.
NOTHING_SENT = (libvirt.VIR_ERR_OPERATION_INVALID,
                libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED)
# With these the agent has not answered; it may do late what it was told.
NO_ANSWER = (libvirt.VIR_ERR_AGENT_UNRESPONSIVE,
             libvirt.VIR_ERR_AGENT_UNSYNCED)


class Filesystems(journal.Resource):
    """The filesystems of a guest, which may be frozen."""

    kind = 'filesystems'

    def __init__(self, plan: planning.Plan):
        self._plan = plan
        self._frozen = False

    def record(self) -> dict[str, ty.Any]:
        return {'agent': _has_agent(self._plan)}

    @classmethod
    def restore(cls, driver: libvirt_driver.LibvirtDriver,
                plan: planning.Plan, record: dict[str, ty.Any]) -> Filesystems:
        filesystems = cls(plan)
        # None frozen are thawed without harm.
        filesystems._frozen = (record['agent'] and plan.guest is not None and
                               plan.guest.is_active())
        if filesystems._frozen and not _agent_connected(plan):
            LOG.warning('The guest\'s filesystems may be frozen since an '
                        'interrupted snapshot, and its agent is not connected '
                        'to thaw them. If the guest hangs, reboot it',
                        instance=plan.instance)
            filesystems._frozen = False
        return filesystems

    def release(self) -> None:
        self.thaw()

    @contextlib.contextmanager
    def quiesced(self) -> Iterator[base.Consistency]:
        """Hold them frozen, where the guest's image asks for that.

        They are thawed on every way out. What cannot be frozen is no error
        unless the image has os_require_quiesce, as with Nova's own snapshots.

        :raises InstanceQuiesceFailed: quiesce is required, and not possible
        :raises ThawFailed: they may still be frozen
        """
        reason = self._freeze()
        if reason is None:
            try:
                yield base.Consistency.FILESYSTEM
            finally:
                self.thaw()
            return
        if self._plan.instance.image_meta.properties.get(
                'os_require_quiesce', False):
            raise nova_exception.InstanceQuiesceFailed(reason=reason)
        LOG.info('The guest\'s filesystems are not frozen for the snapshot: '
                 '%s', reason, instance=self._plan.instance)
        yield base.Consistency.CRASH

    def thaw(self) -> None:
        """Thaw them, if they are frozen; after a failure, once more.

        :raises ThawFailed: they are still frozen
        """
        if not self._frozen:
            return
        guest = self._plan.guest
        try:
            with bounded_agent(guest):
                guest.thaw_filesystems()
        except libvirt.libvirtError as error:
            if guest.is_active():
                raise exception.ThawFailed(
                    instance=self._plan.instance.uuid,
                    guest=self._plan.instance.name,
                    reason=str(error)) from error
            # Powered off meanwhile: nothing is frozen any more.
        self._frozen = False

    def _freeze(self) -> str | None:
        """Freeze them; or say why it can't be done."""
        plan = self._plan
        if not _has_agent(plan):
            return 'its image does not have the property hw_qemu_guest_agent'
        if not _agent_connected(plan):
            return 'its guest agent is not connected'
        try:
            with bounded_agent(plan.guest):
                plan.guest.freeze_filesystems()
        except libvirt.libvirtError as error:
            self._undo_freeze(error)
            return str(error)
        self._frozen = True
        return None

    def _undo_freeze(self, freeze_error: libvirt.libvirtError) -> None:
        """Thaw after a freeze that failed: part of it may have been done."""
        if freeze_error.get_error_code() in NOTHING_SENT:
            return
        self._frozen = True
        try:
            self.thaw()
        except exception.ThawFailed as error:
            if freeze_error.get_error_code() in NO_ANSWER:
                raise
            # An agent that answers with an error has frozen nothing, or
            # thawed it again: QEMU's qga/commands-posix.c,
            # qmp_guest_fsfreeze_freeze_list.
            self._frozen = False
            LOG.warning('The guest agent refused to freeze (%(freeze)s), and '
                        'to thaw again (%(thaw)s)',
                        {'freeze': freeze_error, 'thaw': error},
                        instance=self._plan.instance)


def _has_agent(plan: planning.Plan) -> bool:
    return bool(plan.instance.image_meta.properties.get(
        'hw_qemu_guest_agent', False))


def _agent_connected(plan: planning.Plan) -> bool:
    channels = etree.fromstring(plan.guest.get_xml_desc()).xpath(
        './devices/channel/target[@name=$name]', name=AGENT_CHANNEL)
    return any(channel.get('state') == 'connected' for channel in channels)


@contextlib.contextmanager
def bounded_agent(guest: libvirt_guest.Guest) -> Iterator[None]:
    """Bound the waiting for the agent, which libvirt by itself does not."""
    domain = guest._domain
    domain.agentSetResponseTimeout(CONF.snapext.agent_timeout, 0)
    try:
        yield
    finally:
        domain.agentSetResponseTimeout(
            libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK, 0)
