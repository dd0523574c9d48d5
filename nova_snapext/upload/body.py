# SPDX-License-Identifier: Apache-2.0
"""The bytes of one upload attempt, as a file object."""

from __future__ import annotations

import collections
from collections.abc import Callable
from collections.abc import Generator
from concurrent import futures
import hashlib

from nova_snapext import compat
from nova_snapext import encode

# Chunks of the encoder (512 KiB) that one call of the thread hashes. To wake
# the thread for each chunk costs more than to read the chunk.
DIGEST_BATCH = 2

# Batches that may wait to be hashed. This bounds the memory of the digest.
DIGEST_BACKLOG = 4


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
        self._backlog: collections.deque[futures.Future[None]] = (
            collections.deque())

    def update(self, chunk: encode.Chunk) -> None:
        self._batch.append(chunk)
        if len(self._batch) == DIGEST_BATCH:
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
        self._batch = []

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
        if not self._rest:
            buffer = next(self._stream, b'')
            self._digest.update(buffer)
            self._rest = memoryview(buffer)
        chunk = bytes(self._rest[:self._chunk_size])
        self._rest = self._rest[self._chunk_size:]
        self.sent += len(chunk)
        self.is_sent = not chunk
        self._on_progress(self.sent, self._expected_size)
        return chunk
