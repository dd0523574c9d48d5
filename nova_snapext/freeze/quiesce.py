# SPDX-License-Identifier: Apache-2.0
"""Freezing the guest's filesystems for the instant of the snapshot."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib

import libvirt
from lxml import etree
from nova import exception as nova_exception
from oslo_log import log as logging

from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.freeze import base
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


@contextlib.contextmanager
def quiesced(plan: planning.Plan) -> Iterator[base.Consistency]:
    """Hold the guest's filesystems frozen, where its image asks for that.

    They are thawed on every way out. What cannot be frozen is no error unless
    the image has os_require_quiesce, as with Nova's own snapshots.

    :raises InstanceQuiesceFailed: quiesce is required, and not possible
    :raises ThawFailed: the filesystems may still be frozen
    """
    with contextlib.ExitStack() as stack:
        reason = _freeze(plan, stack)
        if reason is None:
            yield base.Consistency.FILESYSTEM
            return
        if plan.instance.image_meta.properties.get(
                'os_require_quiesce', False):
            raise nova_exception.InstanceQuiesceFailed(reason=reason)
        LOG.info('The guest\'s filesystems are not frozen for the snapshot: '
                 '%s', reason, instance=plan.instance)
        yield base.Consistency.CRASH


def _freeze(plan: planning.Plan, stack: contextlib.ExitStack) -> str | None:
    """Freeze, and put the thaw on the stack; or say why it can't be done."""
    if not plan.instance.image_meta.properties.get(
            'hw_qemu_guest_agent', False):
        return 'its image does not have the property hw_qemu_guest_agent'
    if not _agent_connected(plan):
        return 'its guest agent is not connected'
    stack.enter_context(_bounded_agent(plan))
    try:
        plan.guest.freeze_filesystems()
    except libvirt.libvirtError as error:
        _undo_freeze(plan, error)
        return str(error)
    stack.callback(_thaw, plan)
    return None


def _agent_connected(plan: planning.Plan) -> bool:
    channels = etree.fromstring(plan.guest.get_xml_desc()).xpath(
        './devices/channel/target[@name=$name]', name=AGENT_CHANNEL)
    return any(channel.get('state') == 'connected' for channel in channels)


@contextlib.contextmanager
def _bounded_agent(plan: planning.Plan) -> Iterator[None]:
    """Bound the waiting for the agent, which libvirt by itself does not."""
    domain = plan.guest._domain
    domain.agentSetResponseTimeout(CONF.snapext.agent_timeout, 0)
    try:
        yield
    finally:
        domain.agentSetResponseTimeout(
            libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK, 0)


def _undo_freeze(plan: planning.Plan, freeze_error: libvirt.libvirtError,
                 ) -> None:
    """Thaw after a freeze that failed: part of it may have been done."""
    if freeze_error.get_error_code() in NOTHING_SENT:
        return
    try:
        plan.guest.thaw_filesystems()
    except libvirt.libvirtError as error:
        if freeze_error.get_error_code() in NO_ANSWER:
            raise exception.ThawFailed(
                instance=plan.instance.uuid, guest=plan.instance.name,
                reason=f'the freeze: {freeze_error}; the thaw: {error}'
            ) from error
        # An agent that answers with an error has frozen nothing, or thawed it
        # again: QEMU's qga/commands-posix.c, qmp_guest_fsfreeze_freeze_list.
        LOG.warning('The guest agent refused to freeze (%(freeze)s), and to '
                    'thaw again (%(thaw)s)',
                    {'freeze': freeze_error, 'thaw': error},
                    instance=plan.instance)


def _thaw(plan: planning.Plan) -> None:
    try:
        plan.guest.thaw_filesystems()
    except libvirt.libvirtError as error:
        if not plan.guest.is_active():
            return  # powered off meanwhile: nothing is frozen any more
        raise exception.ThawFailed(
            instance=plan.instance.uuid, guest=plan.instance.name,
            reason=str(error)) from error
