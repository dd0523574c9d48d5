# SPDX-License-Identifier: Apache-2.0
"""The limit of the rate at which the frozen disks of a host are read."""

from __future__ import annotations

import time


class RateLimiter:
    """Schedules the reads of all disks, so that together they keep a limit."""

    def __init__(self) -> None:
        # When all reserved reads may have been done.
        self._until = 0.0

    def reserve(self, length: int, limit: int) -> float:
        """Reserve time for a read.

        :param length: in bytes
        :param limit: in bytes per second
        :returns: when the read may start, by the monotonic clock
        """
        # No lock: if two threads reserve at the same moment, some bytes are
        # not counted. And under eventlet two native threads must not wait
        # for the same lock.
        begin = max(self._until, time.monotonic())
        self._until = begin + length / limit
        return begin


#: For all disks that this process reads.
HOST_LIMITER = RateLimiter()
