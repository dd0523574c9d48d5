# SPDX-License-Identifier: Apache-2.0
"""A libvirtd that is away, as while it is restarted, or that hangs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent import futures
import errno
import os
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

# So often within its timeout a watched one is asked for a sign of life.
SIGNS = 6

# One that starts lets whoever connects wait until it knows all its guests: for
# so many timeouts.
STARTING = 10

# Sockets of the daemon that serves guests, among others or them alone; where
# they are is libvirt's business.
SOCKETS = ('libvirt-sock', 'virtqemud-sock')

Answer = ty.TypeVar('Answer')


class Watch:
    """Hangs up on a libvirtd that gives no sign of life.

    Whatever waits for it in this process then fails as if it had gone. The
    keepalive of libvirt's connections would not do: in 9.0 it depends on the
    thread of libvirt's events, in which Nova asks libvirt too; where several
    threads wait on one connection it ends the wait of one of them; and for who
    connects there is none.

    :param uri: of Nova's connection
    :param timeout: seconds without a sign of life
    """

    def __init__(self, uri: str, timeout: int):
        self._uri = uri
        self._timeout = timeout
        asked = parse.parse_qs(parse.urlsplit(uri).query).get('socket', [])
        self._sockets = {*SOCKETS, *map(os.path.basename, asked)}
        self._is_over = threading.Event()
        # Nothing ends its waits but libvirtd.
        self._thread = threading.Thread(
            target=self._run, name='snapext-libvirtd', daemon=True)

    @staticmethod
    def serves(uri: str) -> bool:
        """Tell whether the libvirtd of an URI is on this host."""
        parts = parse.urlsplit(uri)
        _driver, _plus, transport = parts.scheme.partition('+')
        return not parts.netloc and transport in ('', 'unix')

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        patience = STARTING * self._timeout
        while not self._is_over.is_set():
            try:
                patience = self._look(patience)
            except (OSError, RuntimeError):
                # There are no more descriptors, or threads, at the moment.
                LOG.exception('libvirtd can\'t be watched')
                self._is_over.wait(self._timeout)

    def _look(self, patience: int) -> int:
        """Connect, and look until it hangs, or goes.

        :param patience: seconds to wait for the connection
        :returns: for the next one
        """
        try:
            # Not closed here, as that asks libvirtd, too.
            connection = _answer(lambda: libvirt.open(self._uri), patience)
            patience = self._timeout
            while not self._is_over.wait(self._timeout / SIGNS):
                # Of high priority: it waits for no guest, and for no other
                # call but a few of these.
                _answer(connection.getLibVersion, patience)
        except futures.TimeoutError:
            self._hang_up(patience)
            return self._timeout
        except libvirt.libvirtError:
            # It is away, as Nova says itself.
            self._is_over.wait(PAUSE)
        return STARTING * self._timeout

    def _hang_up(self, silence: int) -> None:
        """End all connections to it.

        :param silence: seconds for which it has given no sign of life
        """
        ended = sum(map(self._is_hung_up, os.listdir('/proc/self/fd')))
        LOG.error('libvirtd hangs: it has given no sign of life for '
                  '%(silence)d seconds. What waits for it in nova-compute is '
                  'ended as if it had gone (%(ended)d connections). Restart '
                  'it', {'silence': silence, 'ended': ended})

    def _is_hung_up(self, descriptor: str) -> bool:
        """End a connection to libvirtd, if a descriptor is one.

        For whoever reads or writes there; the descriptor itself stays open.
        """
        number = int(descriptor)
        try:
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                return False
            with socket.fromfd(
                    number, socket.AF_UNIX, socket.SOCK_STREAM) as own:
                peer = own.getpeername()
                if (not isinstance(peer, str) or
                        os.path.basename(peer) not in self._sockets):
                    return False
                own.shutdown(socket.SHUT_RDWR)
                return True
        except OSError as error:
            if error.errno in (errno.EBADF, errno.ENOTCONN):
                # It was closed just now, or is connected to nobody.
                return False
            raise


def _answer(question: Callable[[], Answer], patience: float) -> Answer:
    """Ask what libvirt may never answer.

    :param patience: seconds to wait
    :raises TimeoutError: it does not answer in time; the thread that waits
        for it ends when the connection does
    """
    answer: futures.Future[Answer] = futures.Future()

    def ask() -> None:
        try:
            answer.set_result(question())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    return answer.result(patience)


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
