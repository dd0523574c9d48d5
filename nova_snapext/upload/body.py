# SPDX-License-Identifier: Apache-2.0
"""The bytes of one upload attempt, as a file object."""

from __future__ import annotations

import collections
from collections.abc import Callable
from collections.abc import Generator
from concurrent import futures
import hashlib

from oslo_utils import units

from nova_snapext import compat
from nova_snapext import encode

# Bytes that one call of the thread hashes at least. To wake the thread for
# each chunk of the encoder costs more than to read the chunk.
DIGEST_BATCH = units.Mi

# Batches that may wait to be hashed. This bounds the memory of the digest.
DIGEST_BACKLOG = 4

# Bytes of a chunk of the encoder that is sent at once: it may be one byte that
# keeps the connection alive while nothing else is ready.
SENT_AT_ONCE = 4 * units.Ki

# Called with the number of bytes sent so far, and the expected total.
OnProgress = Callable[[int, int], None]


class Digest:
    """Hash the chunks of an image in a thread, while they are sent.

    hashlib releases the GIL, and SHA-512 alone takes a third of the time that
    Glance takes to receive an image.
    """

    def __init__(self, algorithm: str):
        self.algorithm = algorithm
        self._hash = hashlib.new(algorithm, usedforsecurity=False)
        self._thread = compat.thread_pool(1, 'snapext-digest')
        self._batch: list[encode.Chunk] = []
        self._batch_size = 0
        self._backlog: collections.deque[futures.Future[None]] = (
            collections.deque())

    def update(self, chunk: encode.Chunk) -> None:
        self._batch.append(chunk)
        self._batch_size += len(chunk)
        if self._batch_size >= DIGEST_BATCH:
            self._submit()

    def hexdigest(self) -> str:
        self._submit()
        while self._backlog:
            self._backlog.popleft().result()
        return self._hash.hexdigest()

    def _submit(self) -> None:
        if len(self._backlog) >= DIGEST_BACKLOG:
            self._backlog.popleft().result()
        self._backlog.append(self._thread.submit(self._digest, self._batch))
        self._batch, self._batch_size = [], 0

    def _digest(self, batch: list[encode.Chunk]) -> None:
        for chunk in batch:
            self._hash.update(chunk)

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)


class Body:
    """The file object that python-glanceclient reads an image from.

    :param stream: the image, from its first byte
    :param expected_size: approximate size of the image, in bytes
    :param chunk_size: maximum length of one read, in bytes
    :param on_progress: called after each read
    :ivar sent: bytes that were read from it
    :ivar is_sent: whether its end was read, too
    """

    def __init__(self, stream: Generator[encode.Chunk, None, None],
                 expected_size: int, chunk_size: int, digest: Digest,
                 on_progress: OnProgress):
        self._stream = stream
        self._expected_size = expected_size
        self._chunk_size = chunk_size
        self._digest = digest
        self._on_progress = on_progress
        self._rest = memoryview(b'')
        self.sent = 0
        self.is_sent = False

    def read(self, _size: int = -1) -> bytes:
        """Return the next chunk, and no bytes at the end.

        The requested size is ignored. The client requests 1 MiB, and sends
        each result as one HTTP chunk.
        """
        pieces, left = [], self._chunk_size
        while left:
            if not self._rest:
                self._rest = memoryview(next(self._stream, b''))
                self._digest.update(self._rest)
            piece, self._rest = self._rest[:left], self._rest[left:]
            pieces.append(piece)
            left -= len(piece)
            if len(piece) <= SENT_AT_ONCE:
                break
        chunk = b''.join(pieces)
        self.sent += len(chunk)
        self.is_sent = not chunk
        self._on_progress(self.sent, self._expected_size)
        return chunk
