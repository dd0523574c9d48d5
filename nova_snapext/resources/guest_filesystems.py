# SPDX-License-Identifier: Apache-2.0
"""The filesystems of a guest, frozen for the point in time of a snapshot."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import typing as ty

import libvirt
from lxml import etree
from nova import objects
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import host as libvirt_host
from oslo_log import log as logging

from nova_snapext import conf
from nova_snapext import durable
from nova_snapext import exception
from nova_snapext.hypervisor import connection
from nova_snapext.hypervisor import domain
from nova_snapext.hypervisor import errors
from nova_snapext import journal
from nova_snapext.journal import schema
from nova_snapext import plan as planning
from nova_snapext import reason as reasons

CONF = conf.CONF
LOG = logging.getLogger(__name__)

AGENT_CHANNEL = 'org.qemu.guest_agent.0'

# What libvirt says if the agent has answered with an error: src/qemu/
# qemu_agent.c, qemuAgentCheckError.
ANSWERED = 'unable to execute QEMU agent command'

# What the agent says if its hook failed: execute_fsfreeze_hook of QEMU's
# qga/commands-posix.c.
HOOK = 'fsfreeze hook'

# With these errors libvirt refuses before it calls the agent: the guest is
# paused or off, or has no agent channel.
NOTHING_SENT = (libvirt.VIR_ERR_OPERATION_INVALID,
                libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED)
# With these errors the agent has not answered. It may still carry out the
# command later.
NO_ANSWER = (libvirt.VIR_ERR_AGENT_UNRESPONSIVE,
             libvirt.VIR_ERR_AGENT_UNSYNCED,
             errors.AGENT_COMMAND_TIMEOUT)


class GuestFilesystems(journal.Resource):
    """The filesystems of a guest, which may be frozen.

    Recorded: whether the image says that the guest has an agent, and in which
    QEMU the guest runs. Restored: as possibly frozen, if the agent is
    connected or the guest still runs in the same QEMU. Released: thawed.
    """

    kind = 'guest filesystems'
    # The guest may have no agent until it is started again. A thaw at any
    # time between two snapshots is right.
    blocks_snapshot = False
    record_schema = schema.object_of(agent=schema.FLAG, qemu=schema.TEXT)

    def __init__(self, host: libvirt_host.Host, target: planning.Target):
        self._host = host
        self._instance = target.instance
        self._frozen = False
        self._qemu: str | None = None

    def record(self) -> dict[str, ty.Any]:
        if self._qemu is None:
            self._qemu = _qemu_of(domain.find(self._host, self._instance))
        return {'agent': _has_agent(self._instance), 'qemu': self._qemu}

    @classmethod
    def restore(cls, driver: libvirt_driver.LibvirtDriver,
                target: planning.Target,
                record: dict[str, ty.Any]) -> GuestFilesystems:
        filesystems = cls(driver._host, target)
        filesystems._qemu = record['qemu']
        guest = domain.find(driver._host, target.instance)
        if not record['agent'] or guest is None or not guest.is_active():
            return filesystems
        # It does no harm to thaw filesystems that are not frozen. An agent
        # that is started again knows that it has frozen them. A guest in
        # another QEMU was started again, or comes from saved memory.
        filesystems._frozen = (_qemu_of(guest) == record['qemu'] or
                               _agent_connected(guest))
        if not filesystems._frozen:
            LOG.warning('An interrupted snapshot may have left the guest\'s '
                        'filesystems frozen, and its agent is not connected '
                        'to thaw them. If the guest hangs, reboot it',
                        instance=target.instance)
        return filesystems

    def release(self) -> None:
        self.thaw()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[planning.Consistency]:
        """Freeze the filesystems, if the image asks for it, and thaw on exit.

        A freeze that fails is an error only if the image has
        os_require_quiesce, as with Nova's own snapshots.

        :yields: the consistency of a disk that is frozen inside the context
        :raises InstanceNotFound: the guest is gone
        :raises QuiesceFailed: quiesce is required, and not possible
        :raises ThawFailed: they may still be frozen
        """
        reason = self.freeze()
        if reason is None:
            try:
                yield planning.Consistency.FILESYSTEM
            finally:
                self.thaw()
            return
        self.check_not_required(reason)
        LOG.info('The guest\'s filesystems are not frozen for the snapshot: '
                 '%s', reason, instance=self._instance)
        yield planning.Consistency.CRASH

    def check_not_required(self, reason: str) -> None:
        """Check that the image does not require a quiesce, which has failed.

        :param reason: why it has failed
        :raises QuiesceFailed: it does
        """
        if self._instance.image_meta.properties.get(
                'os_require_quiesce', False):
            raise exception.QuiesceFailed(
                instance=self._instance.uuid, reason=reason,
                user_reason=reasons.for_users(reason))

    def thaw(self) -> None:
        """Thaw the filesystems, if they are frozen.

        After a failure, it may be called again.

        :raises ThawFailed: they are still frozen
        """
        if not self._frozen:
            return
        try:
            guest = connection.call_when_reachable(
                lambda: domain.find(self._host, self._instance),
                self._instance)
        except connection.UNREACHABLE as error:
            raise self._thaw_failed(error) from error
        if guest is not None:
            self._thaw(guest)
        self._frozen = False

    def _thaw(self, guest: domain.Domain) -> None:
        try:
            with guest.agent_timeout(CONF.snapext.agent_timeout):
                guest.thaw_filesystems()
        except libvirt.libvirtError as error:
            if guest.is_active():
                raise self._thaw_failed(error) from error
            LOG.debug('The guest is off: its filesystems need no thaw',
                      instance=self._instance)
        else:
            LOG.debug('The guest\'s filesystems are thawed',
                      instance=self._instance)

    def _thaw_failed(self, error: Exception) -> exception.ThawFailed:
        return exception.ThawFailed(
            instance=self._instance.uuid, guest=self._instance.name,
            reason=str(error))

    def freeze(self) -> str | None:
        """Freeze the filesystems, until thaw() is called.

        :returns: why it can't be done; None if they are frozen
        :raises InstanceNotFound: the guest is gone
        :raises ThawFailed: they may be frozen
        """
        guest = domain.get(self._host, self._instance)
        reason = no_agent_reason(self._instance, guest)
        if reason is not None:
            return reason
        # An agent that hangs, or is still busy with a trim, is not told to
        # freeze: it would do so later, and nobody would thaw.
        silent = agent_silence(guest, CONF.snapext.agent_timeout)
        if silent is not None:
            return _freeze_reason(silent)
        try:
            with guest.agent_timeout(CONF.snapext.agent_timeout):
                guest.freeze_filesystems()
        except libvirt.libvirtError as error:
            if not _has_frozen_nothing(error):
                self._frozen = True
                self.thaw()
            return _freeze_reason(error)
        self._frozen = True
        LOG.debug('The guest\'s filesystems are frozen',
                  instance=self._instance)
        return None


def no_agent_reason(instance: objects.Instance,
                    guest: domain.Domain) -> str | None:
    """Return why a guest has no agent to call; None if it has one."""
    if not _has_agent(instance):
        return reasons.UserReason(
            'its image does not have the property hw_qemu_guest_agent')
    if not _agent_connected(guest):
        return reasons.UserReason(
            'its guest agent is not connected',
            'its guest agent does not run: start qemu-guest-agent in the '
            'server')
    return None


def agent_silence(guest: domain.Domain,
                  seconds: int) -> libvirt.libvirtError | None:
    """Return the error of an agent that does not answer; None if it does.

    An agent that refuses what it is asked has answered, too.

    :param seconds: that it may take, but at most 5 if it has left an earlier
        command unanswered: qemuAgentGuestSync of libvirt's qemu_agent.c
    :raises libvirtError: the connection to libvirtd is lost
    """
    try:
        with guest.agent_timeout(seconds):
            guest.ping_agent()
    except libvirt.libvirtError as error:
        if connection.is_disconnect(error):
            raise
        if error.get_error_code() in NO_ANSWER:
            return error
    return None


def _has_agent(instance: objects.Instance) -> bool:
    return bool(instance.image_meta.properties.get(
        'hw_qemu_guest_agent', False))


def _has_frozen_nothing(error: libvirt.libvirtError) -> bool:
    """Return whether a freeze that failed is known to have frozen nothing.

    A thaw would then end the freeze of somebody else, such as a backup
    program. An agent that answers with an error has thawed what it had
    frozen, unless its hook failed: a part of the hook may have quiesced an
    application (QEMU's qga/commands-posix.c, qmp_guest_fsfreeze_freeze_list).
    """
    if connection.is_disconnect(error) or HOOK in str(error):
        return False
    code = error.get_error_code()
    return code in NOTHING_SENT or (
        code not in NO_ANSWER and ANSWERED in str(error))


def _qemu_of(guest: domain.Domain | None) -> str:
    """Return which QEMU a guest runs in; an empty text if in none.

    Two of the same guest differ, unless libvirtd has had no guest in between.
    """
    if guest is None or not guest.is_active():
        return ''
    return f'{durable.boot_id()} {guest.id}'


def _freeze_reason(error: libvirt.libvirtError) -> reasons.UserReason:
    """Return why the guest agent has not frozen the filesystems."""
    code = error.get_error_code()
    if code in NO_ANSWER:
        text = 'its guest agent (qemu-guest-agent) does not answer'
    elif code in NOTHING_SENT:
        text = 'the server is paused, or has no guest agent'
    else:
        text = ('its guest agent could not do so: the log of '
                'qemu-guest-agent in the server has the reason')
    return reasons.UserReason(str(error), text)


def _agent_connected(guest: domain.Domain) -> bool:
    channels = etree.fromstring(guest.get_xml_desc()).xpath(
        './devices/channel/target[@name=$name]', name=AGENT_CHANNEL)
    return any(channel.get('state') == 'connected' for channel in channels)
