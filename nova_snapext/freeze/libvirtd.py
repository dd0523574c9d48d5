# SPDX-License-Identifier: Apache-2.0
"""A libvirtd that is away, as while it is restarted."""

from __future__ import annotations

from collections.abc import Callable
import typing as ty

import libvirt
from nova import exception as nova_exception
from oslo_log import log as logging
import tenacity

from nova_snapext import conf

CONF = conf.CONF
LOG = logging.getLogger(__name__)

# What asking Nova's Host for a connection or a guest can end in, and libvirt's
# own, as nova.virt.libvirt.host.Host._test_connection tells it.
UNREACHABLE = (libvirt.libvirtError,
               nova_exception.HypervisorUnavailable,
               nova_exception.InternalError)

# Domains of the errors in which calls end whose connection is lost meanwhile.
CONNECTION_LOST = (libvirt.VIR_FROM_REMOTE, libvirt.VIR_FROM_RPC)

# Between questions, in seconds: a daemon that is away tells nobody when it is
# back.
PAUSE = 1

Answer = ty.TypeVar('Answer')


def answer_to(question: Callable[[], Answer]) -> Answer:
    """Ask until libvirtd answers, for [snapext]job_timeout at the most.

    :param question: may be asked more than once
    :raises UNREACHABLE: it does not answer
    """
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(UNREACHABLE),
        stop=tenacity.stop_after_delay(CONF.snapext.job_timeout),
        wait=tenacity.wait_fixed(PAUSE),
        before_sleep=_log,
        reraise=True)(question)


def was_lost(error: Exception) -> bool:
    """Tell an error by which libvirtd has gone while it was asked."""
    if isinstance(error, libvirt.libvirtError):
        return error.get_error_domain() in CONNECTION_LOST
    return isinstance(error, nova_exception.HypervisorUnavailable)


def _log(state: tenacity.RetryCallState) -> None:
    LOG.warning('libvirtd can\'t be reached, and is asked again: %s',
                state.outcome and state.outcome.exception())
