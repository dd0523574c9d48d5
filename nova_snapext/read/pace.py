# SPDX-License-Identifier: Apache-2.0
"""The pace at which the frozen disks of a host may be read."""

from __future__ import annotations

import time


class Pace:
    """Tells when it is whose turn, so that all together keep to a limit."""

    def __init__(self) -> None:
        # When what was asked for so far may have been read.
        self._until = 0.0

    def turn(self, length: int, limit: int) -> float:
        """Ask to read.

        :param length: in bytes
        :param limit: in bytes per second
        :returns: when it may begin, by the monotonic clock
        """
        # No lock: if two ask in the same moment, some bytes go uncounted. And
        # under eventlet one must not be waited for by two native threads.
        begin = max(self._until, time.monotonic())
        self._until = begin + length / limit
        return begin


#: Of all disks that this process reads.
OF_HOST = Pace()
