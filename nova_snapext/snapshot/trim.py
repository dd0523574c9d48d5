# SPDX-License-Identifier: Apache-2.0
"""Have the guest trim before its disk is frozen.

What the guest's file systems have freed still lies on the disk, and would be
sent. The guest agent can discard it. The root disk gets smaller by that, on
the host and in the image.

The agent carries out one command at a time, and libvirt can't end a trim. A
call that waits for its end would keep every other call from the agent, and
could not be cancelled. So libvirt waits for a moment only, and then the agent
is asked for something that changes nothing, until it answers: the trim is over
then. A trim that takes too long goes on in the guest, beside the snapshot.

Nothing is frozen yet, and the guest has no overlay and no scratch file that
discards could make larger.
"""

from __future__ import annotations

from collections.abc import Mapping
import os
import time
import typing as ty

import libvirt
from nova.compute import power_state
from nova import objects
from nova.virt.libvirt import host as libvirt_host
from oslo_log import log as logging
from oslo_utils import strutils
from oslo_utils import timeutils

from nova_snapext import cancel
from nova_snapext import conf
from nova_snapext.hypervisor import connection
from nova_snapext.hypervisor import domain
from nova_snapext.hypervisor import thin_disk
from nova_snapext import plan as planning
from nova_snapext.resources import guest_filesystems
from nova_snapext.snapshot import selection
from nova_snapext.strategies import base

CONF = conf.CONF
LOG = logging.getLogger(__name__)

#: A request asks for a trim with this image property, or declines it.
PROPERTY = 'snapext_trim'

# Seconds that libvirt waits for the agent at a time. A snapshot that is
# cancelled waits no longer than that.
ANSWER_TIMEOUT = 2
# Seconds between two questions. Each one is written to the agent's port, and
# stays there until the agent reads it.
POLL_INTERVAL = 1


def is_wanted(instance: objects.Instance,
              properties: Mapping[str, ty.Any]) -> bool:
    """Return whether the request and [snapext]guest_trim want a trim.

    :param properties: of the image that the snapshot becomes
    """
    option = CONF.snapext.guest_trim
    if PROPERTY not in properties:
        return bool(option == 'always')
    text = str(properties[PROPERTY])
    try:
        requested = strutils.bool_from_string(text, strict=True)
    except ValueError:
        LOG.warning('The image property %(property)s of the request is '
                    '%(value)s, which is neither yes nor no, and is ignored',
                    {'property': PROPERTY, 'value': selection.sanitize(text)},
                    instance=instance)
        return bool(option == 'always')
    if requested and option == 'never':
        LOG.info('The guest does not trim, although the request asks for it: '
                 '[snapext]guest_trim is never', instance=instance)
    return requested and bool(option != 'never')


class GuestTrim:
    """The trim of one guest before its snapshot.

    :param host: the driver's connection to libvirt
    :param token: of the snapshot
    """

    def __init__(self, host: libvirt_host.Host, plan: planning.Plan,
                 token: cancel.CancelToken):
        self._host = host
        self._plan = plan
        self._instance = plan.instance
        self._token = token

    def is_possible(self) -> bool:
        """Return whether the guest can trim, and would free something.

        If not, the log has the reason.

        :raises libvirtError: the guest's domain is gone
        """
        reason = base.find_reason(
            self._plan, self._state_reason, self._agent_reason,
            self._disk_reason, self._job_reason)
        if reason is not None:
            LOG.info('The guest does not trim its file systems for the '
                     'snapshot: %s', reason, instance=self._instance)
        return reason is None

    def _state_reason(self, plan: planning.Plan) -> str | None:
        if (not plan.running or
                plan.guest.get_power_state(self._host) != power_state.RUNNING):
            return 'it does not run'
        return None

    def _agent_reason(self, plan: planning.Plan) -> str | None:
        return guest_filesystems.no_agent_reason(plan.instance, plan.guest)

    def _disk_reason(self, plan: planning.Plan) -> str | None:
        if os.path.basename(plan.disk.path) == planning.OVERLAY_NAME:
            return 'it is on the overlay of an earlier snapshot'
        return thin_disk.kept_reason(plan.disk, plan.guest)

    def _job_reason(self, plan: planning.Plan) -> str | None:
        # Somebody's backup would have to save what is discarded.
        base.check_no_jobs(plan)
        return None

    def run(self) -> None:
        """Have the guest trim, for at most [snapext]guest_trim_timeout.

        Nothing of it fails the snapshot. If the image has os_require_quiesce,
        it waits as long again for an agent that the trim keeps from a freeze.

        :raises InstanceNotFound: the guest is gone
        :raises Exception: the cause, if the snapshot is cancelled
        """
        try:
            self._run()
        except (OSError, *connection.UNREACHABLE) as error:
            if domain.is_gone(error):
                raise
            LOG.warning('The guest could not trim its file systems: %s. The '
                        'snapshot goes on', error, instance=self._instance)

    def _run(self) -> None:
        limit = CONF.snapext.guest_trim_timeout
        requires_quiesce = self._instance.image_meta.properties.get(
            'os_require_quiesce', False)
        # An agent may still be busy with the trim of a snapshot before.
        patience = min(limit, CONF.snapext.agent_timeout)
        if not self._wait_for_agent(patience):
            LOG.warning('The guest does not trim its file systems for the '
                        'snapshot: its agent has not answered for %d seconds',
                        patience, instance=self._instance)
            return
        LOG.debug('The guest trims its file systems', instance=self._instance)
        before = thin_disk.allocated(self._plan.disk)
        with timeutils.StopWatch() as watch:
            ended = self._trim(limit)
        if ended:
            self._log_gain(before, watch.elapsed())
            return
        LOG.warning('The guest has not ended its trim after '
                    '[snapext]guest_trim_timeout, %(limit)d seconds. It goes '
                    'on in the guest, %(and_now)s',
                    {'limit': limit, 'and_now': (
                        'and the snapshot waits until its agent can freeze '
                        'the filesystems, but only as long again, as the '
                        'image has os_require_quiesce' if requires_quiesce else
                        'and the snapshot does not wait. Its image is '
                        'crash-consistent, unless the trim ends within '
                        'seconds')}, instance=self._instance)
        if requires_quiesce:
            self._wait_for_agent(limit)

    def _trim(self, limit: int) -> bool:
        """Trim, and return whether that has ended in time.

        :param limit: in seconds
        :raises libvirtError: the agent refuses
        """
        with timeutils.StopWatch(limit) as watch:
            guest = domain.get(self._host, self._instance)
            try:
                with guest.agent_timeout(ANSWER_TIMEOUT):
                    guest.trim_filesystems()
                return True
            except libvirt.libvirtError as error:
                if not (error.get_error_code() in guest_filesystems.NO_ANSWER
                        or connection.is_disconnect(error)):
                    raise
            return self._wait_for_agent(watch.leftover())

    def _wait_for_agent(self, seconds: float) -> bool:
        """Wait until the agent has ended its last command.

        A guest that does not run, or whose agent is no longer connected, has
        none to wait for.

        :returns: whether it has ended in time
        """
        with timeutils.StopWatch(seconds) as watch:
            # libvirtd may restart while the guest trims.
            while connection.retry_on_disconnect(
                    self._host, self._is_agent_busy, self._instance):
                self._token.raise_if_cancelled()
                if watch.expired():
                    return False
                time.sleep(POLL_INTERVAL)
        return True

    def _is_agent_busy(self) -> bool:
        guest = domain.get(self._host, self._instance)
        return (
            guest_filesystems.no_agent_reason(self._instance, guest) is None
            and guest_filesystems.agent_silence(
                guest, ANSWER_TIMEOUT) is not None)

    def _log_gain(self, before: int | None, seconds: float) -> None:
        after = thin_disk.allocated(self._plan.disk)
        sizes = ('the storage does not tell what that has freed'
                 if before is None or after is None else
                 f'before={before} after={after} freed={before - after}')
        LOG.info('The guest has trimmed its file systems. Root disk %(disk)s '
                 'on the host: %(sizes)s seconds=%(seconds).1f',
                 {'disk': self._plan.disk.target, 'sizes': sizes,
                  'seconds': seconds}, instance=self._instance)
