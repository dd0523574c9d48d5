# SPDX-License-Identifier: Apache-2.0
"""Calls to a libvirtd that may restart."""

from __future__ import annotations

from collections.abc import Callable
import typing as ty

import libvirt
from nova import exception as nova_exception
from nova import objects
from nova.virt.libvirt import host as libvirt_host
from oslo_log import log as logging
import tenacity

from nova_snapext import conf

CONF = conf.CONF
LOG = logging.getLogger(__name__)

# Errors of libvirt, and of Nova's Host when it is asked for a connection or a
# guest.
UNREACHABLE = (libvirt.libvirtError,
               nova_exception.HypervisorUnavailable,
               nova_exception.InternalError)

# Domains of libvirt's errors for a call whose connection is lost, as in
# nova.virt.libvirt.host.Host._test_connection.
CONNECTION_LOST = (libvirt.VIR_FROM_REMOTE, libvirt.VIR_FROM_RPC)

# Seconds between two tries. A libvirtd that is down can't notify anybody when
# it is up again.
RETRY_INTERVAL = 1

# A libvirtd that goes down so many times during the same calls probably does
# so because of them.
MAX_DISCONNECTS = 5

Result = ty.TypeVar('Result')


def call_when_reachable(question: Callable[[], Result],
                        instance: objects.Instance) -> Result:
    """Call until libvirtd responds, for at most [snapext]operation_timeout.

    :param question: may be called more than once
    :param instance: the instance of the log lines
    :raises UNREACHABLE: libvirtd does not respond
    """
    def log(state: tenacity.RetryCallState) -> None:
        LOG.warning('libvirtd can\'t be reached, and is tried again: %s',
                    state.outcome and state.outcome.exception(),
                    instance=instance)

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(UNREACHABLE),
        stop=tenacity.stop_after_delay(CONF.snapext.operation_timeout),
        wait=tenacity.wait_fixed(RETRY_INTERVAL),
        before_sleep=log,
        reraise=True)(question)


def retry_on_disconnect(host: libvirt_host.Host, attempt: Callable[[], Result],
                        instance: objects.Instance) -> Result:
    """Call, and call again each time that libvirtd restarts during the call.

    :param attempt: must not rely on the result of an earlier call
    :raises UNREACHABLE: libvirtd does not come back, or goes down each time
    """
    disconnects = 0
    while True:
        call_when_reachable(host.get_connection, instance)
        try:
            return attempt()
        except UNREACHABLE as error:
            disconnects += 1
            if not is_disconnect(error) or disconnects == MAX_DISCONNECTS:
                raise
            LOG.info('The connection to libvirtd was lost, and the step is '
                     'tried again: %s', error, instance=instance)


def is_disconnect(error: BaseException | None) -> bool:
    """Return whether an error says that libvirtd went down during a call."""
    if isinstance(error, nova_exception.InternalError):
        # Nova's Host raises it in place of libvirt's error.
        return is_disconnect(error.__context__)
    if isinstance(error, libvirt.libvirtError):
        return error.get_error_domain() in CONNECTION_LOST
    return isinstance(error, nova_exception.HypervisorUnavailable)
