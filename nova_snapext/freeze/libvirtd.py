# SPDX-License-Identifier: Apache-2.0
"""A libvirtd that is away, as while it is restarted, or that hangs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent import futures
import threading
import typing as ty

import libvirt
from nova import exception as nova_exception
from nova import objects
from nova.virt.libvirt import host as libvirt_host
from oslo_log import log as logging
from oslo_utils import timeutils
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

# One that goes so often while it is told the same goes because of it.
MOST_LOSSES = 5

# Messages that may stay unanswered until a connection is given up.
KEEPALIVES = 5

Answer = ty.TypeVar('Answer')


def bound(host: libvirt_host.Host) -> None:
    """Have nobody wait for ever for a libvirtd that hangs, or was killed.

    :param host: Nova's, which has no connection yet
    """
    # libvirt tells of a connection that is lost in the thread that finds out.
    # Where that is _get_connection(), it has the lock already for which Nova's
    # callback waits: a libvirtd that is killed at the wrong moment would hang
    # nova-compute for ever.
    host._wrapped_conn_lock = threading.RLock()
    if CONF.snapext.libvirtd_timeout:
        host._connect = _Connector(host._connect)


class _Connector:
    """Connects to libvirtd, with a bound on each wait for it.

    libvirt has a keepalive for connections, but none until one is open.
    """

    def __init__(self, connect: Callable[..., ty.Any]):
        self._connect = connect
        self._attempt: futures.Future[ty.Any] | None = None
        self._watch = timeutils.StopWatch(CONF.snapext.libvirtd_timeout)

    def __call__(self, *args: ty.Any) -> ty.Any:
        """Connect.

        One caller at a time, as Nova has it. What others have waited for in
        vain is waited for on, and not once more for as long.

        :raises libvirtError: libvirtd can't be reached, or does not answer
        """
        if self._attempt is None:
            self._attempt = futures.Future()
            self._watch.restart()
            # Nothing ends it but libvirtd, which must not keep nova-compute
            # from being stopped.
            threading.Thread(
                target=self._run, args=(self._attempt, *args),
                name='snapext-libvirtd', daemon=True).start()
        try:
            connection = self._attempt.result(
                max(self._watch.leftover(), PAUSE))
        except futures.TimeoutError:
            raise libvirt.libvirtError(
                f'libvirtd hangs: it has not answered for '
                f'{self._watch.elapsed():.0f} seconds. Restart it') from None
        except BaseException:
            self._attempt = None
            raise
        self._attempt = None
        return connection

    def _run(self, attempt: futures.Future[ty.Any], *args: ty.Any) -> None:
        try:
            connection = self._connect(*args)
            # After so many intervals, and one more, it is closed.
            connection.setKeepAlive(max(
                1, CONF.snapext.libvirtd_timeout // (KEEPALIVES + 1)),
                KEEPALIVES)
        except BaseException as error:
            attempt.set_exception(error)
        else:
            attempt.set_result(connection)


def answer_to(question: Callable[[], Answer],
              instance: objects.Instance) -> Answer:
    """Ask until libvirtd answers, for [snapext]job_timeout at the most.

    :param question: may be asked more than once
    :param instance: on whose behalf
    :raises UNREACHABLE: it does not answer
    """
    def log(state: tenacity.RetryCallState) -> None:
        LOG.warning('libvirtd can\'t be reached, and is asked again: %s',
                    state.outcome and state.outcome.exception(),
                    instance=instance)

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(UNREACHABLE),
        stop=tenacity.stop_after_delay(CONF.snapext.job_timeout),
        wait=tenacity.wait_fixed(PAUSE),
        before_sleep=log,
        reraise=True)(question)


def outlived(host: libvirt_host.Host, attempt: Callable[[], Answer],
             instance: objects.Instance) -> Answer:
    """Attempt something, again if libvirtd goes meanwhile and comes back.

    :param attempt: does not rely on what it has seen before
    :raises UNREACHABLE: libvirtd does not come back, or goes each time
    """
    losses = 0
    while True:
        answer_to(host.get_connection, instance)
        try:
            return attempt()
        except UNREACHABLE as error:
            losses += 1
            if not _was_lost(error) or losses == MOST_LOSSES:
                raise
            LOG.info('libvirtd went meanwhile: looking again',
                     instance=instance)


def _was_lost(error: BaseException | None) -> bool:
    """Tell an error by which libvirtd has gone while it was asked."""
    if isinstance(error, nova_exception.InternalError):
        # Nova's Host makes it of libvirt's.
        return _was_lost(error.__context__)
    if isinstance(error, libvirt.libvirtError):
        return error.get_error_domain() in CONNECTION_LOST
    return isinstance(error, nova_exception.HypervisorUnavailable)
