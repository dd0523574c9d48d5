# SPDX-License-Identifier: Apache-2.0
"""Memory that is read into, used again as soon as nobody looks at it."""

from __future__ import annotations

import collections

# Idle buffers that are kept: whoever reads lets go of several at once. The
# fewer there are, the sooner each comes round again, and the likelier it is
# still in the CPUs' caches.
SPARE = 4


class BufferPool:
    """Hands out buffers, and reuses those that nobody holds a view of.

    A buffer of its own for every request costs more than reading it: the C
    library maps and unmaps such sizes, and each page of a new mapping is a
    fault (526,000 of them and 2 to 6 CPU seconds for 2 GiB, instead of 0.5).
    Nobody has to give a buffer back: it is in use as long as a view of it, or
    of a part of it, exists, in whatever thread. The pool has as many buffers
    as are in use at once, and few more: what is not needed any longer goes,
    one buffer each time that another is taken.

    :param size: of each buffer, in bytes
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._buffers: collections.deque[bytearray] = collections.deque()

    def __len__(self) -> int:
        return len(self._buffers)

    def take(self, length: int) -> memoryview:
        """Give a view of a buffer that no other view exists of.

        :param length: in bytes, at most the size of the pool's buffers
        """
        return memoryview(self._idle_buffer())[:length]

    def _idle_buffer(self) -> bytearray:
        for _ in range(len(self._buffers)):
            # The one that was taken longest ago is the likeliest to be idle.
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
    # A bytearray refuses to change its length while anything exports its
    # memory: a memoryview, a slice of one, a hash or a request under way.
    # Less one byte, plus one byte stays within what is allocated.
    try:
        buffer.pop()
    except BufferError:
        return False
    buffer.append(0)
    return True
