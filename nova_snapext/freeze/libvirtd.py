# SPDX-License-Identifier: Apache-2.0
"""A libvirtd that is away, as while it is restarted, or that hangs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent import futures
import contextlib
import os
import queue
import socket
import stat
import threading
import typing as ty
from urllib import parse

import libvirt
from nova import exception as nova_exception
from nova import objects
from nova.virt.libvirt import host as libvirt_host
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

# One that goes so often while it is told the same goes because of it.
MOST_LOSSES = 5

# Messages of a keepalive that may stay unanswered until libvirt ends the
# connection.
KEEPALIVES = 5

# Sockets of the daemon that serves guests, among others or them alone; where
# they are is libvirt's business.
SOCKETS = ('libvirt-sock', 'virtqemud-sock')

Answer = ty.TypeVar('Answer')


class Watch:
    """Hangs up on a libvirtd that gives no sign of life.

    Whatever waits for it in this process then fails as if it had gone. A
    keepalive of Nova's connection alone would not do: where several threads
    wait on one connection, libvirt 9.0 ends the wait of one of them. And
    connecting has none.

    :param uri: of Nova's connection; what is not on this host is not hung up
        on
    :param timeout: seconds without a sign of life
    """

    def __init__(self, uri: str, timeout: int):
        self._uri = uri
        self._timeout = timeout
        asked = parse.parse_qs(parse.urlsplit(uri).query).get('socket', [])
        self._sockets = {*SOCKETS, *map(os.path.basename, asked)}
        # Why connections have ended; None: it is over.
        self._ends: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._is_over = threading.Event()
        # Nothing ends its waits but libvirtd.
        self._thread = threading.Thread(
            target=self._run, name='snapext-libvirtd', daemon=True)

    def start(self) -> None:
        """Begin, once libvirt's events are dispatched."""
        self._thread.start()

    def stop(self) -> None:
        self._is_over.set()
        self._ends.put(None)
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.is_set():
            try:
                with contextlib.closing(self._connect()) as connection:
                    hangs = self._end_of(connection) == (
                        libvirt.VIR_CONNECT_CLOSE_REASON_KEEPALIVE)
            except futures.TimeoutError:
                hangs = True
            except libvirt.libvirtError:
                # It is away, as Nova says itself.
                self._is_over.wait(PAUSE)
                continue
            if hangs:
                self._hang_up()

    def _connect(self) -> ty.Any:
        """Connect.

        :raises TimeoutError: it does not answer
        :raises libvirtError: it can't be reached
        """
        attempt: futures.Future[ty.Any] = futures.Future()

        def connect() -> None:
            try:
                attempt.set_result(libvirt.open(self._uri))
            except libvirt.libvirtError as error:
                attempt.set_exception(error)

        threading.Thread(target=connect, daemon=True).start()
        return attempt.result(self._timeout)

    def _end_of(self, connection: ty.Any) -> int | None:
        """Wait for the end of a connection.

        :returns: the reason that libvirt gives
        """
        connection.registerCloseCallback(
            lambda _connection, reason, ends: ends.put(reason), self._ends)
        # After so many intervals, and one more.
        connection.setKeepAlive(
            max(1, self._timeout // (KEEPALIVES + 1)), KEEPALIVES)
        return self._ends.get()

    def _hang_up(self) -> None:
        ended = sum(map(self._is_hung_up, os.listdir('/proc/self/fd')))
        if ended:
            LOG.error('libvirtd hangs: it has given no sign of life for '
                      '%(timeout)d seconds. What waits for it in nova-compute '
                      'is ended as if it had gone (%(ended)d connections). '
                      'Restart it', {'timeout': self._timeout,
                                     'ended': ended})

    def _is_hung_up(self, descriptor: str) -> bool:
        """End a connection to libvirtd, if a descriptor is one.

        For whoever reads or writes there; the descriptor itself stays open.
        """
        try:
            if not stat.S_ISSOCK(os.fstat(int(descriptor)).st_mode):
                return False
            with socket.socket(fileno=os.dup(int(descriptor))) as own:
                peer = own.getpeername()
                if (own.family != socket.AF_UNIX or
                        os.path.basename(os.fsdecode(peer))
                        not in self._sockets):
                    return False
                own.shutdown(socket.SHUT_RDWR)
                return True
        except OSError:
            # It was closed just now, or is connected to nobody.
            return False


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
