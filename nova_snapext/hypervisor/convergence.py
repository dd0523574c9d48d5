# SPDX-License-Identifier: Apache-2.0
"""Whether an active commit gains on the guest that it follows.

QEMU's mirror job copies what the overlay holds, and again what the guest
writes in the meantime. libvirt's ``cur`` grows by what is copied, ``end`` by
what the guest writes to pieces that are not waiting already. ``end - cur`` is
what is left, and the guest can change to its disk when that is nothing (seen
with QEMU 7.2 and libvirt 9.0; block/mirror.c, job_progress_set_remaining).
"""

from __future__ import annotations

import collections
import dataclasses

from nova_snapext.hypervisor import write_limit

# Seconds without a new low of what is left, before a commit is taken to be
# overtaken. A Linux guest writes back its cache in cycles of 30 seconds
# (vm.dirty_expire_centisecs): two of them, so that no cycle counts as a trend.
PATIENCE = 60

# Seconds over which the guest is measured: one such cycle. It is also the
# patience with a guest that is limited: it can't write in bursts.
WINDOW = 30

# A commit gains if the guest writes less than this part of what is copied. At
# the limit it takes ten times as long as for a guest that does not write.
MAX_REWRITTEN = 0.9


@dataclasses.dataclass(frozen=True)
class Sample:
    """The state of a commit at one time.

    :ivar at: seconds on any clock that does not jump
    :ivar copied: bytes that were copied
    :ivar total: bytes that were copied or are left
    :ivar written: bytes that the guest has written since it was started
    :ivar requests: the number of its writes
    """

    at: float
    copied: int
    total: int
    written: int
    requests: int

    @property
    def left(self) -> int:
        """Bytes that are left to copy."""
        return self.total - self.copied


class Convergence:
    """What the samples of one commit say."""

    def __init__(self, limited: bool) -> None:
        """Begin to watch a commit.

        :param limited: whether the guest's writes are limited already
        """
        self._patience: float
        self._window: collections.deque[Sample]
        self._low: Sample | None
        self.restart(limited)

    def restart(self, limited: bool) -> None:
        """Forget all samples, because the guest is now limited otherwise."""
        self._patience = WINDOW if limited else PATIENCE
        self._window = collections.deque()
        self._low = None

    def add(self, sample: Sample) -> None:
        """Add the newest sample."""
        if not sample.copied:
            # QEMU still looks for what the overlay holds.
            return
        self._window.append(sample)
        while len(self._window) > 1 and (
                self._window[1].at <= sample.at - WINDOW):
            self._window.popleft()
        if self._low is None or self._low.left - sample.left >= (
                1 - MAX_REWRITTEN) * max(1, sample.copied - self._low.copied):
            self._low = sample

    @property
    def copied_per_second(self) -> float:
        """Bytes a second that are copied; 0 if that is not known yet."""
        if not self._window:
            return 0
        seconds, copied, _rewritten = self._differences()
        return copied / seconds if seconds else 0

    @property
    def seconds_since_low(self) -> float:
        """Seconds since so little was left as never before.

        A commit of any size reaches new lows as long as it gains.
        """
        return (self._window[-1].at - self._low.at
                if self._low is not None else 0)

    @property
    def is_overtaken(self) -> bool:
        """Whether the guest writes as much as is copied, or more.

        Both has to be seen: no new low for a long time, which a short burst
        of writes can't cause, and a guest that still writes as much.
        """
        if self.seconds_since_low < self._patience:
            return False
        seconds, copied, rewritten = self._differences()
        return (seconds >= WINDOW and rewritten > 0 and
                rewritten >= MAX_REWRITTEN * copied)

    def lower_rate(self) -> write_limit.WriteRate:
        """Return a rate of writes at which the commit should gain.

        It is half of what the guest writes; less, if the guest has to be
        slowed down more for what it rewrites to be half of what is copied; and
        never more bytes than half of what is copied.
        """
        seconds, copied, rewritten = self._differences()
        first, last = self._window[0], self._window[-1]
        written = last.written - first.written
        requests = last.requests - first.requests
        wanted = min(written * min(0.5, copied / (2 * max(1, rewritten))),
                     copied / 2)
        return write_limit.WriteRate(
            int(wanted / seconds),
            int(requests * wanted / max(1, written) / seconds))

    def _differences(self) -> tuple[float, int, int]:
        """Return seconds, copied bytes and rewritten bytes of the window."""
        first, last = self._window[0], self._window[-1]
        return (last.at - first.at, last.copied - first.copied,
                last.total - first.total)

    def __str__(self) -> str:
        seconds, copied, rewritten = self._differences()
        return (f'in {seconds:.0f} seconds {copied} bytes were copied and the '
                f'guest wrote to {rewritten} others, and '
                f'{self._window[-1].left} are left')
