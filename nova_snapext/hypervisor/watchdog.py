# SPDX-License-Identifier: Apache-2.0
"""A watchdog for a libvirtd that hangs."""

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
from oslo_log import log as logging

LOG = logging.getLogger(__name__)

# Seconds between two connections to a libvirtd that is down: it can't notify
# anybody when it is up again.
RETRY_INTERVAL = 1

# Calls to libvirtd within one timeout: a few more than one, as each call may
# come just before libvirtd hangs.
CHECKS_PER_TIMEOUT = 6

# A libvirtd that starts accepts connections, and answers when it knows all its
# guests. It has so many timeouts for this.
STARTUP_TIMEOUTS = 10

# Names of the sockets of libvirtd, and of the virtqemud that serves guests
# alone; their directory is libvirt's choice.
SOCKETS = ('libvirt-sock', 'virtqemud-sock')

Result = ty.TypeVar('Result')


class Watchdog:
    """Closes the connections to a libvirtd that does not respond.

    All calls of this process that wait for libvirtd then fail as if it had
    gone down.

    The keepalive of libvirt's connections can't do this. In libvirt 9.0 it
    needs the thread of libvirt's events, and Nova makes blocking calls in this
    thread; of several threads that wait on one connection it ends the wait of
    one; and there is none while a connection is being opened.

    :param uri: URI of Nova's connection
    :param timeout: seconds without a response, after which libvirtd hangs
    """

    def __init__(self, uri: str, timeout: float):
        self._uri = uri
        self._timeout = timeout
        socket_paths = parse.parse_qs(
            parse.urlsplit(uri).query).get('socket', [])
        self._sockets = {*SOCKETS, *map(os.path.basename, socket_paths)}
        self._is_stopped = threading.Event()
        # A daemon thread: only libvirtd can end its calls.
        self._thread = threading.Thread(
            target=self._run, name='snapext-libvirtd', daemon=True)

    @staticmethod
    def serves(uri: str) -> bool:
        """Return whether the libvirtd of a URI is on this host."""
        parts = parse.urlsplit(uri)
        _driver, _plus, transport = parts.scheme.partition('+')
        return not parts.netloc and transport in ('', 'unix')

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._is_stopped.set()
        self._thread.join()

    def _run(self) -> None:
        connect_timeout = STARTUP_TIMEOUTS * self._timeout
        while not self._is_stopped.is_set():
            try:
                connect_timeout = self._watch(connect_timeout)
            except (OSError, RuntimeError):
                # The process has no descriptor or thread left at the moment.
                LOG.exception('libvirtd can\'t be watched; trying again in '
                              '%s seconds', self._timeout)
                self._is_stopped.wait(self._timeout)

    def _watch(self, connect_timeout: float) -> float:
        """Connect, and call libvirtd until it hangs or goes down.

        :param connect_timeout: seconds to wait for the connection
        :returns: seconds to wait for the next connection
        """
        timeout = connect_timeout
        try:
            # It is never closed explicitly: this would call libvirtd too.
            connection = _call(lambda: libvirt.open(self._uri), timeout)
            LOG.debug('The watchdog is connected to libvirtd')
            timeout = self._timeout
            while not self._is_stopped.wait(
                    self._timeout / CHECKS_PER_TIMEOUT):
                # libvirtd gives this call a high priority: it waits for no
                # guest, and for few other calls.
                _call(connection.getLibVersion, timeout)
        except futures.TimeoutError:
            self._close_connections(timeout)
            return self._timeout
        except libvirt.libvirtError as error:
            # Nova logs by itself that libvirtd is down.
            LOG.debug('The watchdog has lost libvirtd: %s', error)
            self._is_stopped.wait(RETRY_INTERVAL)
        return STARTUP_TIMEOUTS * self._timeout

    def _close_connections(self, silence: float) -> None:
        """Close all connections of this process to libvirtd.

        :param silence: seconds since the last response
        """
        closed = sum(map(self._is_closed, os.listdir('/proc/self/fd')))
        LOG.error('libvirtd hangs: it has not responded for %(silence)d '
                  'seconds. Its connections to nova-compute are closed '
                  '(%(closed)d), so that all calls that wait for it fail. '
                  'Restart libvirtd', {'silence': silence, 'closed': closed})

    def _is_closed(self, descriptor: str) -> bool:
        """Close the connection of a descriptor if it is one to libvirtd.

        The descriptor itself stays open; reading and writing ends.
        """
        number = int(descriptor)
        try:
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                return False
            with socket.fromfd(
                    number, socket.AF_UNIX, socket.SOCK_STREAM) as duplicate:
                peer = duplicate.getpeername()
                if (not isinstance(peer, str) or
                        os.path.basename(peer) not in self._sockets):
                    return False
                duplicate.shutdown(socket.SHUT_RDWR)
                return True
        except OSError as error:
            if error.errno in (errno.EBADF, errno.ENOTCONN):
                # It has just been closed, or was never connected.
                return False
            raise


def _call(function: Callable[[], Result], timeout: float) -> Result:
    """Call libvirt, which may never return.

    :param timeout: in seconds
    :raises TimeoutError: it has not returned in time. The thread that waits
        for it ends when the connection is closed
    """
    result: futures.Future[Result] = futures.Future()
    threading.Thread(
        target=_set_result, args=(result, function), daemon=True).start()
    try:
        return result.result(timeout)
    finally:
        # Its error refers to this function. Such a cycle would keep the
        # connection open until the garbage collector comes.
        del result


def _set_result(result: futures.Future[Result],
                function: Callable[[], Result]) -> None:
    try:
        result.set_result(function())
    except BaseException as error:
        result.set_exception(error)
    finally:
        del result
