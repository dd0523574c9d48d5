# SPDX-License-Identifier: Apache-2.0
"""Buffers to read into, reused as soon as nothing refers to them."""

from __future__ import annotations

import collections

# Idle buffers to keep: a reader releases several at once. The fewer there
# are, the sooner each is used again, and the likelier it is still in the CPU
# caches.
SPARE = 4


class BufferPool:
    """Provides buffers, and reuses those that no view refers to.

    A new buffer for every request costs more than reading into it: the C
    library maps and unmaps such sizes, and each page of a new mapping is a
    fault (526,000 of them and 2 to 6 CPU seconds for 2 GiB, instead of 0.5).
    Buffers are not returned: a buffer is in use as long as a view of it, or
    of a part of it, exists in any thread. The pool has as many buffers as are
    in use at once, and few more: each call of :meth:`take` removes at most
    one surplus buffer. Small reads that follow each other share a buffer.

    :param size: of each buffer, in bytes
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._buffers: collections.deque[bytearray] = collections.deque()
        # The buffer that the last view is of, and how much of it was taken.
        self._current = bytearray()
        self._taken = 0

    def __len__(self) -> int:
        return len(self._buffers)

    def take(self, length: int) -> memoryview:
        """Return a view of bytes that no other view contains.

        :param length: in bytes, at most the size of the pool's buffers
        """
        if self._taken + length > len(self._current):
            self._current, self._taken = self._idle_buffer(), 0
        begin, self._taken = self._taken, self._taken + length
        return memoryview(self._current)[begin:self._taken]

    def _idle_buffer(self) -> bytearray:
        for _ in range(len(self._buffers)):
            # The least recently taken buffer is the likeliest to be idle.
            buffer = self._buffers[0]
            self._buffers.rotate(-1)
            if _is_idle(buffer):
                if (len(self._buffers) > SPARE and
                        _is_idle(self._buffers[SPARE - 1])):
                    self._buffers.popleft()
                return buffer
        buffer = bytearray(self._size)
        self._buffers.append(buffer)
        return buffer


def _is_idle(buffer: bytearray) -> bool:
    # A bytearray refuses to change its length while its memory is exported:
    # by a memoryview, a slice of one, a running hash or a pending request.
    # Removing one byte and adding one stays within the allocated memory.
    try:
        buffer.pop()
    except BufferError:
        return False
    buffer.append(0)
    return True
