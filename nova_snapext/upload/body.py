# SPDX-License-Identifier: Apache-2.0
"""The bytes of one attempt at an upload, as a file to read from."""

from __future__ import annotations

import collections
from collections.abc import Callable
from collections.abc import Generator
from concurrent import futures
import hashlib

from nova_snapext import encode

# So many pieces of 512 KiB are digested in one go: to wake the thread for each
# costs more than reading it.
DIGEST_BATCH = 2

# Digesting may lag so many batches behind the sending, at the most: what it
# holds in memory.
DIGEST_BACKLOG = 4


# Called with the number of bytes sent so far, and about those to send in all.
OnSent = Callable[[int, int], None]


class Digest:
    """A digest that is computed beside the sending.

    hashlib releases the GIL, and SHA-512 alone takes a third of the time that
    Glance takes to swallow an image.
    """

    def __init__(self, algorithm: str):
        self.algorithm = algorithm
        self._hash = hashlib.new(algorithm, usedforsecurity=False)
        self._thread = futures.ThreadPoolExecutor(max_workers=1)
        self._batch: list[encode.Piece] = []
        self._backlog: collections.deque[futures.Future[None]] = (
            collections.deque())

    def update(self, buffer: encode.Piece) -> None:
        self._batch.append(buffer)
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

    def _digest(self, batch: list[encode.Piece]) -> None:
        for buffer in batch:
            self._hash.update(buffer)

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)


class Body:
    """What python-glanceclient reads an image from, piece by piece.

    :param stream: the image, from byte 0
    :param expected_size: about that of the image, in bytes
    :param piece_size: the most that one read gives, in bytes
    """

    def __init__(self, stream: Generator[encode.Piece, None, None],
                 expected_size: int, piece_size: int, digest: Digest,
                 on_sent: OnSent):
        self._stream = stream
        self._expected_size = expected_size
        self._piece_size = piece_size
        self._digest = digest
        self._on_sent = on_sent
        self._rest = memoryview(b'')
        self.sent = 0

    def read(self, _size: int = -1) -> bytes:
        """Give the next piece; an empty one at the end.

        What is asked for does not matter: the client asks for 1 MiB, and
        sends what it gets as one HTTP chunk.
        """
        if not self._rest:
            buffer = next(self._stream, b'')
            self._digest.update(buffer)
            self._rest = memoryview(buffer)
        piece = bytes(self._rest[:self._piece_size])
        self._rest = self._rest[self._piece_size:]
        self.sent += len(piece)
        self._on_sent(self.sent, self._expected_size)
        return piece
