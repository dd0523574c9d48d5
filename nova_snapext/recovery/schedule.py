# SPDX-License-Identifier: Apache-2.0
"""When a recovery that failed is tried again, and what of it is logged."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Collection
import logging
import math
import re
import threading

from oslo_utils import timeutils

from nova_snapext import conf

CONF = conf.CONF

# Seconds after a try in which an event of its guest may come from the try
# itself: it pauses and resumes guests, and aborts its own jobs. libvirt
# delivers events in well under one.
OWN_EVENTS = 5

# A try may slow its guest down (see [snapext]merge_min_write_kbps), so tries
# take a tenth of the time at most.
MAX_DUTY = 10


class Schedule:
    """Decides when each instance may be tried again.

    :param clock: returns seconds; it must not jump
    """

    def __init__(self, clock: Callable[[], float] = timeutils.now):
        self._clock = clock
        self._lock = threading.Lock()
        # The end of the last try, and its duration.
        self._last: dict[str, tuple[float, float]] = {}
        # When to try those again that had an event soon after the last try.
        self._deferred: dict[str, float] = {}

    def ended(self, uuid: str, duration: float = 0) -> None:
        """Note the end of a try, or of a snapshot.

        :param uuid: uuid of the instance
        :param duration: of the try, in seconds
        """
        with self._lock:
            self._last[uuid] = self._clock(), duration

    def is_due(self, uuid: str) -> bool:
        """Return whether the periodic look may try an instance."""
        # The look must not come a moment too early.
        return self._seconds_to(uuid, CONF.snapext.recovery_interval / 2) <= 0

    def is_settled(self, uuid: str) -> bool:
        """Return whether an event can't come from the last try."""
        with self._lock:
            ended, _duration = self._last.get(uuid, (-OWN_EVENTS, 0))
            return self._clock() - ended >= OWN_EVENTS

    def defer(self, uuid: str) -> None:
        """Note an event that may come from the last try."""
        seconds = self._seconds_to(uuid, OWN_EVENTS)
        with self._lock:
            self._deferred[uuid] = self._clock() + seconds

    def take_deferred(self) -> list[str]:
        """Return the instances whose deferred tries are due now, once."""
        now = self._clock()
        with self._lock:
            due = [uuid for uuid, when in self._deferred.items()
                   if when <= now]
            for uuid in due:
                del self._deferred[uuid]
            return due

    def seconds_to_deferred(self) -> float:
        """Return when the next deferred try is due, in seconds."""
        with self._lock:
            return min(self._deferred.values(),
                       default=math.inf) - self._clock()

    def _seconds_to(self, uuid: str, pause: float) -> float:
        """Return when an instance may be tried again, in seconds.

        :param pause: after a try that took no time, in seconds
        """
        with self._lock:
            if uuid not in self._last:
                return 0
            ended, duration = self._last[uuid]
            return ended + max(pause, MAX_DUTY * duration) - self._clock()

    def forget_all_but(self, uuids: Collection[str]) -> None:
        """Forget all instances but those that still have something left."""
        with self._lock:
            for uuid in self._last.keys() - uuids:
                del self._last[uuid]
            for uuid in self._deferred.keys() - uuids:
                del self._deferred[uuid]


class FailureLog:
    """The failures that are in the log already.

    A recovery that is tried every minute must not fill the log with the same
    reason.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, set[str]] = {}

    def level(self, uuid: str, text: str, level: int = logging.ERROR) -> int:
        """Return at which level to log a text.

        :param uuid: uuid of the instance
        :param level: of a text that is not in the log yet
        :returns: DEBUG for a text that differs from an earlier one in
            numbers alone
        """
        # Bytes that are left, seconds that have passed.
        text = re.sub(r'\d+', '#', text)
        with self._lock:
            known = self._known.setdefault(uuid, set())
            if text in known:
                return logging.DEBUG
            known.add(text)
            return level

    def forget(self, uuid: str) -> None:
        """Forget an instance that is recovered."""
        with self._lock:
            self._known.pop(uuid, None)
