# SPDX-License-Identifier: Apache-2.0
"""A frozen disk, read over NBD with libnbd.

Sources: libnbd(3), nbd_aio_pread(3), nbd_block_status(3), and doc/proto.md of
https://github.com/NetworkBlockDevice/nbd.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import math
import time
import typing as ty
import urllib.parse

import nbd

from nova_snapext import exception
from nova_snapext.read import buffers
from nova_snapext.read import extent
from nova_snapext.read import pace
from nova_snapext.read import window

# Bytes of one read. For each QEMU's threads wake one another several times,
# and put whoever runs there off their CPUs: with 256 KiB it takes 0.8 CPU
# seconds per GiB, with 512 KiB 0.55. It is slower again beyond 1 MiB.
REQUEST_SIZE = 512 * 1024

# Reads under way at once, at least: more are no faster where Glance is the
# slower one, and what they hold pushes out of the CPUs' caches what a Glance
# on the same host has just been sent.
LEAST_IN_FLIGHT = 4

# And at most, where the storage is slow: QEMU takes no more of a client.
MOST_IN_FLIGHT = 16

# Bytes whose allocation is asked for at once. QEMU lists up to 131,072
# extents in an answer, which are 10 MiB as Python integers: where each 64 KiB
# cluster is an extent of its own, this many bytes are 4,096 extents.
STATUS_STRIDE = 256 * 1024 * 1024

# Seconds without a byte after which the server is given up. Storage that
# fails over may be silent for a minute.
TIMEOUT = 120.0

# Bytes that are read as a sign of life: what no server finds too small.
PROBE_SIZE = 4096

# Seconds until an idle wait looks whether it was aborted.
ABORT_LATENCY = 0.1


def unix_uri(socket: str, export: str) -> str:
    """Give the NBD URI of an export on a Unix socket.

    :param socket: path of the socket
    :param export: name of the export
    """
    return (f"nbd+unix:///{urllib.parse.quote(export, safe='')}"
            f"?socket={urllib.parse.quote(socket)}")


def is_zero(view: memoryview) -> bool:
    """Tell whether a buffer holds nothing but zeros, at the speed of C."""
    return bool(nbd.Buffer.from_buffer(view).is_zero())


class _Request(ty.NamedTuple):
    cookie: int
    offset: int
    view: memoryview


class Disk:
    """A read-only connection to the NBD export of a frozen disk.

    It serves one caller at a time, but may be aborted from another thread. It
    blocks in libnbd, with the interpreter's lock released, and starts no
    threads.

    :param uri: of the export, see :func:`unix_uri`
    :param timeout: seconds without a byte from the server until it is given
        up
    :param rate_limit: bytes per second that all such disks of this process
        are read at together, at the most; 0: no limit
    :ivar uri: where another client reads the same
    :ivar size: of the disk, in bytes
    :ivar bytes_read: how many bytes of data came from the server so far
    """

    def __init__(self, uri: str, timeout: float = TIMEOUT,
                 rate_limit: int = 0) -> None:
        self.size = 0
        self.bytes_read = 0
        self.uri = uri
        self._timeout = timeout
        self._rate_limit = rate_limit
        self._aborted = False
        self._describes = False
        self._buffers = buffers.BufferPool(REQUEST_SIZE)
        self._in_flight: collections.deque[_Request] = collections.deque()
        self._window = window.Window(LEAST_IN_FLIGHT, MOST_IN_FLIGHT)

    def __enter__(self) -> Disk:
        """Connect.

        :raises DiskReadError: the server can't be reached, or doesn't serve
            this export
        """
        self._handle = nbd.NBD()
        try:
            self._handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
            # Buffers only ever hold data of this disk, and libnbd fails a
            # read that the server answers in part: nothing to clear first.
            self._handle.set_pread_initialize(False)
            self._handle.aio_connect_uri(self.uri)
            self._wait(lambda: self._handle.aio_is_ready())
            self.size = self._handle.get_size()
            self._describes = self._handle.can_meta_context(
                nbd.CONTEXT_BASE_ALLOCATION)
        except nbd.Error as error:
            self._close()
            raise self._error(error) from error
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        # Saying good-bye keeps a complaint out of QEMU's log; a connection
        # that is broken or busy just ends.
        if self._handle.aio_is_ready() and not self._in_flight:
            self._handle.aio_disconnect()
        self._close()

    def _close(self) -> None:
        # libnbd closes a connection when its handle goes: nothing else may
        # refer to it, see _error().
        del self._handle

    def probe(self) -> None:
        """See that the server still gives data.

        :raises DiskReadError: it does not, or is silent for too long
        """
        for _piece in self.read([(0, min(PROBE_SIZE, self.size))]):
            pass

    def abort(self) -> None:
        """Make whatever waits for the disk, now or later, fail soon."""
        self._aborted = True

    def extents(self) -> Iterator[extent.Extent]:
        """List what the disk holds, from its first byte to its last.

        What the server doesn't promise to read as zeros is data, a hole too.

        :raises DiskReadError: the server fails, or answers nonsense
        """
        if not self._describes:
            return iter((extent.Extent(0, self.size, True),))
        return extent.coalesced(self._described())

    def read(self, runs: Iterable[tuple[int, int]]
             ) -> Iterator[tuple[int, memoryview]]:
        """Read parts of the disk, many requests under way at once.

        Yields offset and content of consecutive pieces of at most 512 KiB,
        which begin and end on multiples of that, or of the run's bounds. A
        piece stays as it is for as long as anybody holds it. Reading may be
        given up at any piece, and begun anew.

        :param runs: offset and length in bytes of each part, in ascending
            order
        :raises DiskReadError: the server fails, or is silent for too long
        """
        # Whoever gave up left requests under way.
        while self._in_flight:
            self._oldest()
        self._window = window.Window(LEAST_IN_FLIGHT, MOST_IN_FLIGHT)
        for offset, length in _pieces(runs):
            while len(self._in_flight) >= self._window.size:
                yield self._oldest()
            self._request(offset, length)
        while self._in_flight:
            yield self._oldest()

    def _request(self, offset: int, length: int) -> None:
        if self._rate_limit:
            self._await_turn(length)
        view = self._buffers.take(length)
        try:
            # Not an nbd.Buffer: libnbd 1.14's binding never lets go of
            # what such a one holds, and would keep all that was ever read.
            cookie = self._handle.aio_pread(view, offset)
        except nbd.Error as error:
            raise self._error(error) from error
        self._in_flight.append(_Request(cookie, offset, view))

    def _await_turn(self, length: int) -> None:
        begin = pace.OF_HOST.turn(length, self._rate_limit)
        while (left := begin - time.monotonic()) > 0:
            if self._aborted:
                raise self._error('it was aborted')
            try:
                # What was asked for before may arrive meanwhile.
                self._handle.poll(
                    math.ceil(min(left, ABORT_LATENCY) * 1000))
            except nbd.Error as error:
                raise self._error(error) from error

    def _oldest(self) -> tuple[int, memoryview]:
        request = self._in_flight.popleft()
        begin = time.monotonic()
        self._wait_for(request.cookie)
        self._window.arrived(begin, time.monotonic())
        self.bytes_read += len(request.view)
        return request.offset, request.view

    def _described(self) -> Iterator[extent.Extent]:
        offset = 0
        while offset < self.size:
            asked = min(STATUS_STRIDE, self.size - offset)
            answer = self._block_status(offset, asked)
            if not answer:
                raise self._error(f'no extents in the answer for {asked} '
                                  f'bytes at {offset}')
            # The last extent may go beyond what was asked for.
            for length, flags in zip(answer[::2], answer[1::2], strict=True):
                if not 0 < length <= self.size - offset:
                    raise self._error(
                        f'an extent of {length} bytes at {offset} on a disk '
                        f'of {self.size} bytes')
                yield extent.Extent(offset, length,
                                    not flags & nbd.STATE_ZERO)
                offset += length

    def _block_status(self, offset: int, length: int) -> list[int]:
        answer: list[int] = []

        def described(context: str, _offset: int, entries: list[int],
                      _error: object) -> int:
            if context == nbd.CONTEXT_BASE_ALLOCATION:
                answer.extend(entries)
            return 0

        try:
            cookie = self._handle.aio_block_status(length, offset, described)
        except nbd.Error as error:
            raise self._error(error) from error
        self._wait_for(cookie)
        return answer

    def _wait_for(self, cookie: int) -> None:
        self._wait(lambda: self._handle.aio_command_completed(cookie))

    def _wait(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self._timeout
        try:
            while True:
                if self._aborted:
                    raise self._error('it was aborted')
                if done():
                    return
                if self._handle.poll(int(ABORT_LATENCY * 1000)):
                    deadline = time.monotonic() + self._timeout
                elif time.monotonic() > deadline:
                    raise self._error(f'the server was silent for '
                                      f'{self._timeout:g} seconds')
        except nbd.Error as error:
            raise self._error(error) from error

    def _error(self, reason: nbd.Error | str) -> exception.DiskReadError:
        if isinstance(reason, nbd.Error):
            # Its frames refer to the handle, and would keep the connection
            # open for as long as anybody keeps the error.
            reason.with_traceback(None)
        return exception.DiskReadError(disk=self.uri, reason=str(reason))


def _pieces(runs: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for offset, length in runs:
        end = offset + length
        while offset < end:
            border = offset - offset % REQUEST_SIZE + REQUEST_SIZE
            yield offset, min(border, end) - offset
            offset = border
