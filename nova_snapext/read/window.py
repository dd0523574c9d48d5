# SPDX-License-Identifier: Apache-2.0
"""The number of reads in flight."""

from __future__ import annotations

import collections


class Window:
    """Adapts the number of reads in flight to the speed of the storage.

    If the consumer is slower than the storage, more reads would only occupy
    memory, and several are requested at once, as soon as half of them have
    arrived: then the server wakes up only once for all of them. If each read
    takes long, as from remote storage, the number of reads determines the
    speed. After each window of reads, it is doubled if more than half of the
    time was spent waiting for them, and halved if not.

    :param minimum: bytes in flight, also at the start
    :param maximum: bytes in flight
    :param max_reads: reads in flight, however small they are
    :ivar size: bytes that may be in flight now
    """

    def __init__(self, minimum: int, maximum: int, max_reads: int) -> None:
        self._minimum = minimum
        self._maximum = maximum
        self._max_reads = max_reads
        self.size = minimum
        self._sizes: collections.deque[int] = collections.deque()
        self._in_flight = 0
        self._is_filling = True
        self._begin: float | None = None
        self._waited = 0.0
        self._arrived = 0

    def may_request(self) -> bool:
        """Return whether to request another read before the next arrival."""
        share = self._fill_share()
        self._is_filling = share < 1 and (
            self._is_filling or self.size > self._minimum or share <= 1 / 2)
        return self._is_filling

    def _fill_share(self) -> float:
        return max(self._in_flight / self.size,
                   len(self._sizes) / self._max_reads)

    def requested(self, size: int) -> None:
        """Count a read that was requested.

        :param size: in bytes
        """
        self._sizes.append(size)
        self._in_flight += size

    def arrived(self, begin: float, end: float) -> None:
        """Count the oldest read, which has arrived.

        :param begin: start of the wait for it, by the monotonic clock
        :param end: end of the wait
        """
        size = self._sizes.popleft()
        self._in_flight -= size
        if self._begin is None:
            self._begin = begin
        self._waited += end - begin
        self._arrived += size
        if self._arrived < self.size:
            return
        if 2 * self._waited > end - self._begin:
            self.size = min(2 * self.size, self._maximum)
        else:
            self.size = max(self.size // 2, self._minimum)
        self._begin, self._waited, self._arrived = end, 0.0, 0
