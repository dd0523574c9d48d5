# SPDX-License-Identifier: Apache-2.0
"""The number of reads in flight."""

from __future__ import annotations


class Window:
    """Adapts the number of reads in flight to the speed of the storage.

    If the consumer is slower than the storage, more reads would only occupy
    memory. If each read takes long, as from remote storage, their number
    determines the speed. After each window of reads, the number is doubled if
    more than half of the time was spent waiting for them, and halved if not.

    :param minimum: reads in flight, also at the start
    :param maximum: reads in flight
    :ivar size: how many reads may be in flight now
    """

    def __init__(self, minimum: int, maximum: int) -> None:
        self._minimum = minimum
        self._maximum = maximum
        self.size = minimum
        self._begin: float | None = None
        self._waited = 0.0
        self._arrived = 0

    def arrived(self, begin: float, end: float) -> None:
        """Count a read that has arrived.

        :param begin: start of the wait for it, by the monotonic clock
        :param end: end of the wait
        """
        if self._begin is None:
            self._begin = begin
        self._waited += end - begin
        self._arrived += 1
        if self._arrived < self.size:
            return
        if 2 * self._waited > end - self._begin:
            self.size = min(2 * self.size, self._maximum)
        else:
            self.size = max(self.size // 2, self._minimum)
        self._begin, self._waited, self._arrived = end, 0.0, 0
