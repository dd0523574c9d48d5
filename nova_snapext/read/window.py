# SPDX-License-Identifier: Apache-2.0
"""How many reads are under way at once."""

from __future__ import annotations


class Window:
    """Few reads, as long as they are not waited for, and more where they are.

    Where whoever takes what was read is the slower one, more would only wait,
    and hold memory meanwhile. Where each read takes long, as from storage
    that is far away, the number of them is the speed. Looked at once for each
    windowful: twice as many if more than half of the time was spent waiting,
    half as many if less.

    :param least: how many there are at first, and at the least
    :param most: how many there may be
    :ivar size: how many there are now
    """

    def __init__(self, least: int, most: int) -> None:
        self._least = least
        self._most = most
        self.size = least
        self._begin: float | None = None
        self._waited = 0.0
        self._arrived = 0

    def arrived(self, begin: float, end: float) -> None:
        """Take a read into account.

        :param begin: when it began to be waited for, by the monotonic clock
        :param end: when it was there
        """
        if self._begin is None:
            self._begin = begin
        self._waited += end - begin
        self._arrived += 1
        if self._arrived < self.size:
            return
        if 2 * self._waited > end - self._begin:
            self.size = min(2 * self.size, self._most)
        else:
            self.size = max(self.size // 2, self._least)
        self._begin, self._waited, self._arrived = end, 0.0, 0
