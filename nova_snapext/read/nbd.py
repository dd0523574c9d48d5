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

from oslo_log import log as logging

from nova_snapext import exception
from nova_snapext import libnbd
from nova_snapext.read import buffers
from nova_snapext.read import extent
from nova_snapext.read import rate_limiter
from nova_snapext.read import window

LOG = logging.getLogger(__name__)

# libnbd's binding. It has no types.
nbd: ty.Any = libnbd.load()

# Bytes of one read. For each read, QEMU's threads wake one another several
# times and displace other work from their CPUs: 256 KiB take 0.8 CPU seconds
# per GiB, 512 KiB take 0.55. Beyond 1 MiB it is slower again.
REQUEST_SIZE = 512 * 1024

# Minimum of bytes in flight: more are not faster if Glance is slower than the
# storage, and their buffers displace from the CPU caches the data that a
# Glance on the same host has just received.
MIN_IN_FLIGHT = 4 * REQUEST_SIZE

# Maximum number of reads in flight, and of bytes, for slow storage: QEMU
# serves no more reads of one client at once.
MAX_READS = 16
MAX_IN_FLIGHT = MAX_READS * REQUEST_SIZE

# Bytes that one block status request covers. QEMU lists up to 131,072 extents
# in a reply, which take 10 MiB as Python integers. If each 64 KiB cluster is
# an extent of its own, this many bytes are 4,096 extents.
STATUS_STRIDE = 256 * 1024 * 1024

# Seconds without a byte from the server until the read fails. Storage that
# fails over may not respond for a minute.
TIMEOUT = 120.0

# Bytes that probe() reads: no server rejects a read of this size.
PROBE_SIZE = 4096

# Seconds after which a waiting thread checks for an abort.
ABORT_LATENCY = 0.1


def unix_uri(socket: str, export: str) -> str:
    """Return the NBD URI of an export on a Unix socket.

    :param socket: path of the socket
    :param export: name of the export
    """
    return (f"nbd+unix:///{urllib.parse.quote(export, safe='')}"
            f"?socket={urllib.parse.quote(socket)}")


def unix_export(uri: str) -> tuple[str, str] | None:
    """Return socket path and export name of an NBD URI, see unix_uri().

    :returns: None if the URI names no Unix socket
    """
    parts = urllib.parse.urlsplit(uri)
    sockets = urllib.parse.parse_qs(parts.query).get('socket')
    if parts.scheme != 'nbd+unix' or not sockets:
        return None
    return sockets[0], urllib.parse.unquote(parts.path.removeprefix('/'))


def is_zero(view: memoryview) -> bool:
    """Check, at the speed of C, whether a buffer contains only zeros."""
    return bool(nbd.Buffer.from_buffer(view).is_zero())


KnownExtents = Callable[[], extent.ExtentMap | None] | None


class _Request(ty.NamedTuple):
    cookie: int
    offset: int
    view: memoryview


class Disk:
    """A read-only connection to the NBD export of a frozen disk.

    It serves one thread at a time, but any thread may abort it. It blocks in
    libnbd, with the interpreter's lock released, and starts no threads.

    :param uri: of the export, see :func:`unix_uri`
    :param timeout: seconds without a byte from the server until a read fails
    :param rate_limit: bytes per second, for all disks of this process
        together; 0 means no limit
    :param known_extents: returns the extents of the disk, where its storage
        knows them better than the server; None if the storage does not tell
    :param lost_reason: returns why what was read may not be the frozen disk,
        though the server has reported no error; None if it is
    :ivar uri: where another client can read the same disk
    :ivar size: of the disk, in bytes
    :ivar bytes_read: bytes of data received from the server so far
    """

    def __init__(self, uri: str, timeout: float = TIMEOUT,
                 rate_limit: int = 0, known_extents: KnownExtents = None,
                 lost_reason: Callable[[], str | None] = lambda: None,
                 ) -> None:
        self.size = 0
        self.bytes_read = 0
        self.uri = uri
        self._timeout = timeout
        self._rate_limit = rate_limit
        self._known_extents = known_extents
        self._known: extent.ExtentMap | None = None
        self._lost_reason = lost_reason
        self._aborted = False
        self._reports_extents = False
        self._buffers = buffers.BufferPool(REQUEST_SIZE)
        self._in_flight: collections.deque[_Request] = collections.deque()
        self._window = _window()

    def __enter__(self) -> Disk:
        """Connect to the export.

        :raises DiskReadError: the server can't be reached, or doesn't serve
            this export
        """
        self._handle = nbd.NBD()
        try:
            self._handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
            # The buffers only ever contain data of this disk, and libnbd
            # fails a read that the server answers in part: there is no need
            # to clear them first.
            self._handle.set_pread_initialize(False)
            self._handle.aio_connect_uri(self.uri)
            self._wait(lambda: self._handle.aio_is_ready())
            self.size = self._handle.get_size()
            self._reports_extents = self._handle.can_meta_context(
                nbd.CONTEXT_BASE_ALLOCATION)
        except nbd.Error as error:
            self._close()
            raise self._error(error) from error
        except BaseException:
            self._close()
            raise
        LOG.debug('Connected to the frozen disk %(disk)s: %(size)d bytes, '
                  '%(extents)s',
                  {'disk': self.uri, 'size': self.size,
                   'extents': ('the server reports extents'
                               if self._reports_extents else
                               'the server does not report extents')})
        return self

    def __exit__(self, *_exc: object) -> None:
        # A regular disconnect keeps an error out of QEMU's log. A connection
        # that is broken or busy is just closed. All data has arrived: a server
        # that has just ended is no error.
        try:
            if self._handle.aio_is_ready() and not self._in_flight:
                self._handle.aio_disconnect()
        except nbd.Error as error:
            LOG.debug('The connection to %(disk)s could not be ended: '
                      '%(error)s', {'disk': self.uri, 'error': error})
        finally:
            self._close()

    def _close(self) -> None:
        # libnbd closes a connection when its handle is freed: nothing else
        # may refer to it, see _error().
        del self._handle

    def probe(self) -> None:
        """Check that the server still returns data.

        :raises DiskReadError: it fails, or does not respond in time
        """
        for _chunk in self.read([(0, min(PROBE_SIZE, self.size))]):
            pass

    def check_frozen(self) -> None:
        """Check that all that was read so far is of the frozen disk.

        :raises DiskReadError: it may not be, or that can't be known
        """
        reason = self._lost_reason()
        if reason is not None:
            raise self._error(reason)

    def abort(self) -> None:
        """Make all current and later waits for the disk fail soon."""
        self._aborted = True

    def extents(self) -> Iterator[extent.Extent]:
        """Return the extents of the disk, from its first byte to its last.

        A part that the server doesn't promise to read as zeros is data, even
        if it is a hole.

        :raises DiskReadError: the server fails, or its reply is invalid
        """
        self.ask_storage()
        # QEMU rounds the size of an odd image up. Its own extents fit then.
        if self._known is not None and self._known.end == self.size:
            return iter(self._known)
        if not self._reports_extents:
            return iter((extent.Extent(0, self.size, True),))
        return extent.coalesced(self._reported_extents())

    def ask_storage(self) -> None:
        """Ask the storage for the extents, where it knows them better.

        That takes some seconds for each TiB, and is done only once.
        """
        if self._known_extents is not None:
            self._known, self._known_extents = self._known_extents(), None

    def read(self, ranges: Iterable[tuple[int, int]]
             ) -> Iterator[tuple[int, memoryview]]:
        """Read parts of the disk, with several requests in flight.

        Yields the offset and content of consecutive chunks of at most 512
        KiB, which begin and end on multiples of that, or with their range. A
        chunk stays unchanged as long as anything refers to it. The caller may
        stop after any chunk, and read again.

        :param ranges: offset and length of each part, in bytes, in ascending
            order
        :raises DiskReadError: the server fails, or does not respond in time
        """
        # A caller that stopped early left requests in flight.
        while self._in_flight:
            self._oldest()
        self._window = _window()
        for offset, length in _split(ranges):
            while not self._window.may_request():
                yield self._oldest()
            self._request(offset, length)
        while self._in_flight:
            yield self._oldest()

    def _request(self, offset: int, length: int) -> None:
        if self._rate_limit:
            self._wait_for_rate_limit(length)
        view = self._buffers.take(length)
        try:
            # Not an nbd.Buffer: the binding of libnbd 1.14 never releases
            # the memory of such a buffer, and would keep all data ever read.
            cookie = self._handle.aio_pread(view, offset)
        except nbd.Error as error:
            raise self._error(error) from error
        self._in_flight.append(_Request(cookie, offset, view))
        self._window.requested(length)

    def _wait_for_rate_limit(self, length: int) -> None:
        begin = rate_limiter.HOST_LIMITER.reserve(length, self._rate_limit)
        while (left := begin - time.monotonic()) > 0:
            if self._aborted:
                raise self._error('it was aborted')
            try:
                # Earlier requests may complete during the wait.
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

    def _reported_extents(self) -> Iterator[extent.Extent]:
        offset = 0
        while offset < self.size:
            requested = min(STATUS_STRIDE, self.size - offset)
            reply = self._block_status(offset, requested)
            if not reply:
                raise self._error(f'the server returned no extents for '
                                  f'{requested} bytes at offset {offset}')
            # The last extent may exceed the requested range.
            for length, flags in zip(reply[::2], reply[1::2], strict=True):
                if not 0 < length <= self.size - offset:
                    raise self._error(
                        f'the server returned an extent of {length} bytes at '
                        f'offset {offset} of a disk of {self.size} bytes')
                yield extent.Extent(offset, length,
                                    not flags & nbd.STATE_ZERO)
                offset += length

    def _block_status(self, offset: int, length: int) -> list[int]:
        reply: list[int] = []

        def on_extents(context: str, _offset: int, entries: list[int],
                       _error: object) -> int:
            if context == nbd.CONTEXT_BASE_ALLOCATION:
                reply.extend(entries)
            return 0

        try:
            cookie = self._handle.aio_block_status(length, offset, on_extents)
        except nbd.Error as error:
            raise self._error(error) from error
        self._wait_for(cookie)
        return reply

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
                    raise self._error(f'the server did not respond for '
                                      f'{self._timeout:g} seconds')
        except nbd.Error as error:
            raise self._error(error) from error

    def _error(self, reason: nbd.Error | str) -> exception.DiskReadError:
        if isinstance(reason, nbd.Error):
            # Its frames refer to the handle, and would keep the connection
            # open as long as the error is kept.
            reason.with_traceback(None)
        return exception.DiskReadError(disk=self.uri, reason=str(reason))


def _window() -> window.Window:
    return window.Window(MIN_IN_FLIGHT, MAX_IN_FLIGHT, MAX_READS)


def _split(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for offset, length in ranges:
        end = offset + length
        while offset < end:
            border = offset - offset % REQUEST_SIZE + REQUEST_SIZE
            yield offset, min(border, end) - offset
            offset = border
