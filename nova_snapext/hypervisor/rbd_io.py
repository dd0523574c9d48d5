# SPDX-License-Identifier: Apache-2.0
"""Read and write an RBD image by several requests at a time.

librbd completes them in threads of its own. Nothing here waits for a cluster
that does not respond: the image is opened and closed in a thread that is left
alone then, see ceph.Call.
https://docs.ceph.com/en/latest/rbd/api/librbdpy/
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import contextlib
import errno
import os
import typing as ty

from oslo_utils import timeutils

from nova_snapext import cancel
from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.hypervisor import ceph

CONF = conf.CONF

#: Bytes of one request at most: as many as the parts of a disk that is read.
REQUEST_SIZE = 512 * 1024

# Requests that are under way at the same time: a cluster is fast only if many
# of its OSDs work.
MAX_IN_FLIGHT = 16

# Seconds after which a waiting thread checks for a cancellation.
CANCEL_LATENCY = 0.5


class _Request:
    """A request that librbd has not completed yet, or has.

    :param to_read: how many bytes it has to read
    :ivar content: what is written, and then what was read. librbd does not
        copy it
    :ivar error: why it has failed; None if it has not
    """

    def __init__(self, content: bytes = b'', to_read: int = 0):
        self.is_complete = False
        self.content = content
        self.error: OSError | None = None
        self._to_read = to_read

    def complete(self, completion: ty.Any, content: bytes | None) -> None:
        code = completion.get_return_value()
        self.content = content or b''
        if code < 0:
            self.error = OSError(-code, os.strerror(-code))
        elif self._to_read and (code, len(self.content)) != (
                self._to_read, self._to_read):
            self.error = OSError(errno.EIO, f'{code} bytes were read')
        self.is_complete = True


class OpenImage(contextlib.AbstractContextManager['OpenImage']):
    """An RBD image, or a snapshot of it, that is open.

    It serves one thread. What is written is complete after :meth:`flush`.

    :param token: its cancellation ends each wait, with the cause
    :param snapshot: name of the snapshot to read; None: the image is written
    """

    def __init__(self, image: ceph.ImageSpec, token: cancel.CancelToken,
                 snapshot: str | None = None):
        self._image = image
        self._snapshot = snapshot
        self._token = token
        self._action = f'{"read" if snapshot else "write"} {image}'
        native = cancel.native_threading()
        # Notified whenever a request is complete, or the image is open.
        self._changed = native.Condition()
        self._closing = native.Event()
        self._volume: ty.Any = None
        self._call: ceph.Call[None] | None = None
        self._in_flight: collections.deque[_Request] = collections.deque()

    def __enter__(self) -> OpenImage:
        """Open the image.

        :raises CephError: it can't be opened, or not in time
        :raises Exception: the token's cause
        """
        action = f'open {self._image}'
        self._call = ceph.Call(action, self._hold_open, self._image)
        try:
            self._wait(action, CONF.snapext.operation_timeout, lambda: (
                self._volume is not None or self._call_has_ended()))
            if self._volume is None:
                self._call.result(0)
        except BaseException:
            self._closing.set()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None,
                 *_exc: object) -> None:
        # It waits for requests that are under way, and Ceph may never respond.
        # ceph.remove_image() waits for its end, in any case.
        self._closing.set()
        if kind is None and self._call is not None:
            self._call.result(CONF.snapext.operation_timeout)

    def write(self, data: memoryview, offset: int) -> None:
        """Write, now or later: see :meth:`flush`.

        :raises CephError: Ceph has refused this or an earlier request, or
            completes none for [snapext]read_timeout
        :raises Exception: the token's cause
        """
        while len(self._in_flight) >= MAX_IN_FLIGHT:
            self._oldest()
        # The binding takes nothing else.
        request = _Request(bytes(data))
        self._begin(request, lambda on_complete: self._volume.aio_write(
            request.content, offset, on_complete))

    def flush(self) -> None:
        """Wait until all that was written is on the disks of the cluster.

        :raises CephError: as for :meth:`write`
        :raises Exception: the token's cause
        """
        while self._in_flight:
            self._oldest()
        self._begin(_Request(), lambda on_complete: self._volume.aio_flush(
            on_complete))
        self._oldest()

    def read(self, ranges: Iterable[tuple[int, int]],
             ) -> Iterator[tuple[int, memoryview]]:
        """Read parts of the image, in this order.

        :param ranges: offset and length of each part, in bytes
        :yields: offset and content of consecutive chunks of at most
            :data:`REQUEST_SIZE`
        :raises CephError: as for :meth:`write`
        :raises Exception: the token's cause
        """
        offsets: collections.deque[int] = collections.deque()
        for begin, length in ranges:
            for offset in range(begin, begin + length, REQUEST_SIZE):
                while len(self._in_flight) >= MAX_IN_FLIGHT:
                    yield offsets.popleft(), memoryview(self._oldest())
                self._begin_read(
                    offset, min(REQUEST_SIZE, begin + length - offset))
                offsets.append(offset)
        while self._in_flight:
            yield offsets.popleft(), memoryview(self._oldest())

    def _begin_read(self, offset: int, length: int) -> None:
        self._begin(_Request(to_read=length), lambda on_complete: (
            self._volume.aio_read(offset, length, on_complete)))

    def _begin(self, request: _Request,
               submit: Callable[[Callable[..., None]], object]) -> None:
        def on_complete(completion: ty.Any,
                        content: bytes | None = None) -> None:
            # In a thread of librbd.
            with self._changed:
                request.complete(completion, content)
                self._changed.notify_all()

        self._token.raise_if_cancelled()
        try:
            submit(on_complete)
        except Exception as error:
            raise exception.CephError(
                action=self._action, reason=str(error) or repr(error),
            ) from error
        self._in_flight.append(request)

    def _oldest(self) -> bytes:
        """Wait for the oldest request, and return what it has read."""
        request = self._in_flight[0]
        self._wait(self._action, CONF.snapext.read_timeout,
                   lambda: request.is_complete)
        self._in_flight.popleft()
        if request.error is None:
            return request.content
        raise exception.CephError(
            action=self._action, reason=str(request.error)) from request.error

    def _wait(self, action: str, seconds: float,
              is_done: Callable[[], bool]) -> None:
        watch = timeutils.StopWatch(seconds).start()
        with self._changed:
            while not is_done():
                self._token.raise_if_cancelled()
                if watch.expired():
                    raise exception.CephTimeout(
                        action=action, seconds=f'{seconds:g}')
                self._changed.wait(CANCEL_LATENCY)

    def _call_has_ended(self) -> bool:
        return self._call is not None and self._call.wait(0)

    def _hold_open(self) -> None:
        with ceph.opened(self._image, self._snapshot,
                         is_bulk=True) as volume:
            with self._changed:
                self._volume = volume
                self._changed.notify_all()
            self._closing.wait()
