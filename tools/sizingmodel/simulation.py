# SPDX-License-Identifier: Apache-2.0
"""A simulation of all snapshots of a night, event by event."""

import collections
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import heapq
import itertools
import math
import random

from sizingmodel import model as modelling

# Two events closer than this, in seconds, are simultaneous: what is between
# them has no peak.
INSTANT = 1e-6


@dataclasses.dataclass(eq=False)
class Snapshot:
    """One snapshot of one guest. Times are seconds, sizes MiB."""

    host: 'Host'
    asked_at: float
    size: float
    began_at: float = math.nan
    active_at: float = math.nan
    ended_at: float = math.nan
    #: What its group has to have served until it is complete.
    complete_at: float = math.nan


@dataclasses.dataclass(eq=False)
class Host:
    """One host.

    :ivar space: its scratch files and overlays at their peak, MiB
    """

    waiting: collections.deque[Snapshot] = dataclasses.field(
        default_factory=collections.deque)
    running: list[Snapshot] = dataclasses.field(default_factory=list)
    uploads: list[Snapshot] = dataclasses.field(default_factory=list)
    space: float = 0
    most_running: int = 0


class Group:
    """The uploads of all hosts with the same number of uploads.

    They have the same limits, so each is as fast as the others.

    :param limit: what each of them can send, MiB/s
    :ivar rate: what each of them sends, MiB/s
    :ivar served: what each would have sent since the beginning, MiB
    :ivar count: number of uploads
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.rate = 0.0
        self.served = 0.0
        self.count = 0
        self._members: set[Snapshot] = set()
        self._ends: list[tuple[float, int, Snapshot]] = []

    def add(self, upload: Snapshot, left: float, number: int) -> None:
        """Add an upload.

        :param left: what it still has to send, MiB
        :param number: orders uploads that are complete at the same moment
        """
        upload.complete_at = self.served + left
        self._members.add(upload)
        self.count += 1
        heapq.heappush(self._ends, (upload.complete_at, number, upload))

    def remove(self, upload: Snapshot) -> float:
        """Remove an upload, and return what it still has to send, MiB."""
        self._members.remove(upload)
        self.count -= 1
        return max(0.0, upload.complete_at - self.served)

    def first(self) -> Snapshot | None:
        """Return the upload that is complete first."""
        while self._ends:
            complete_at, _, upload = self._ends[0]
            if upload in self._members and upload.complete_at == complete_at:
                return upload
            heapq.heappop(self._ends)
        return None


def share(groups: Sequence[Group], rate: float) -> None:
    """Set the rates of uploads that share Glance fairly.

    None gets more than its limit; what it leaves is for the others.

    :param rate: what Glance takes of all, MiB/s
    """
    count = sum(group.count for group in groups)
    for group in sorted(groups, key=lambda group: group.limit):
        if group.count:
            group.rate = min(group.limit, rate / count)
            rate -= group.rate * group.count
            count -= group.count


class Simulation:
    """Simulates all snapshots.

    :ivar snapshots: all of them
    :ivar received: what Glance has received, MiB
    :ivar peak_rate: highest rate of all uploads together, MiB/s
    :ivar peak_uploads: most uploads at the same time
    """

    def __init__(self, model: modelling.Model) -> None:
        self._model = model
        self._now = 0.0
        self._numbers = itertools.count()
        self._events: list[tuple[float, int, str, Snapshot]] = []
        self._groups = [
            Group(min(model.upload_limit, model.host_limit / count))
            for count in range(1, model.at_once + 1)]
        self.hosts = [Host() for _ in range(model.hosts)]
        self.received = self.peak_rate = 0.0
        self.peak_uploads = 0
        self.snapshots = list(self._ask())

    def run(self) -> None:
        """Run until all snapshots are complete."""
        while True:
            at, upload = self._next_complete()
            if self._events and self._events[0][0] <= at:
                at, _, step, snapshot = heapq.heappop(self._events)
                self._advance(at)
                getattr(self, step)(snapshot)
            elif upload is not None:
                self._advance(at)
                self._complete(upload)
            else:
                return
            share(self._groups, self._model.glance_rate)

    def _ask(self) -> Iterator[Snapshot]:
        """Make the snapshots, each with its time and its size."""
        # Not for secrets: the same seed gives the same night.
        rng = random.Random(self._model.seed)
        total = self._model.hosts * self._model.guests
        for number in range(total):
            part = number / total if self._model.is_even else rng.random()
            size = self._model.data * self._model.sent * (
                1 + self._model.spread * rng.uniform(-1, 1))
            # Neighbours in time are on different hosts.
            snapshot = Snapshot(self.hosts[number % self._model.hosts],
                                part * self._model.window, size)
            self._schedule(snapshot.asked_at, '_enqueue', snapshot)
            yield snapshot

    def _schedule(self, at: float, step: str, snapshot: Snapshot) -> None:
        heapq.heappush(self._events, (at, next(self._numbers), step, snapshot))

    def _next_complete(self) -> tuple[float, Snapshot | None]:
        """Return which upload is complete first, and when."""
        found: tuple[float, Snapshot | None] = (math.inf, None)
        for group in self._groups:
            upload = group.first()
            if upload is not None:
                left = max(0.0, upload.complete_at - group.served)
                at = self._now + left / group.rate
                if at < found[0]:
                    found = at, upload
        return found

    def _advance(self, at: float) -> None:
        """Let all uploads send until a time."""
        seconds = at - self._now
        rate, uploads = 0.0, 0
        for group in self._groups:
            group.served += group.rate * seconds
            rate += group.rate * group.count
            uploads += group.count
        self.received += rate * seconds
        if seconds > INSTANT:
            self.peak_rate = max(self.peak_rate, rate)
            self.peak_uploads = max(self.peak_uploads, uploads)
        self._now = at

    def _enqueue(self, snapshot: Snapshot) -> None:
        snapshot.host.waiting.append(snapshot)
        self._begin(snapshot.host)

    def _begin(self, host: Host) -> None:
        """Begin the next snapshot of a host, if it may run one more."""
        if host.waiting and len(host.running) < self._model.concurrent:
            snapshot = host.waiting.popleft()
            snapshot.began_at = self._now
            host.running.append(snapshot)
            host.most_running = max(host.most_running, len(host.running))
            self._schedule(self._now + self._model.fixed, '_upload', snapshot)

    def _upload(self, snapshot: Snapshot) -> None:
        lefts = self._take_out(snapshot.host)
        snapshot.host.uploads.append(snapshot)
        self._put_in(snapshot.host, [*lefts, snapshot.size])

    def _complete(self, snapshot: Snapshot) -> None:
        snapshot.active_at = self._now
        uploads = snapshot.host.uploads
        lefts = self._take_out(snapshot.host)
        del lefts[uploads.index(snapshot)]
        uploads.remove(snapshot)
        self._put_in(snapshot.host, lefts)
        self._schedule(self._now + self._model.merge_seconds(
            self._now - snapshot.began_at), '_end', snapshot)

    def _take_out(self, host: Host) -> list[float]:
        """Take the uploads of a host out of their group.

        :returns: what each still has to send, MiB
        """
        return [self._groups[len(host.uploads) - 1].remove(upload)
                for upload in host.uploads]

    def _put_in(self, host: Host, lefts: list[float]) -> None:
        for upload, left in zip(host.uploads, lefts, strict=True):
            self._groups[len(host.uploads) - 1].add(
                upload, left, next(self._numbers))

    def _end(self, snapshot: Snapshot) -> None:
        snapshot.ended_at = self._now
        host = snapshot.host
        # Space only grows until one ends: so this is a peak.
        host.space = max(host.space, sum(
            self._model.kept(self._now - one.began_at)
            for one in host.running))
        host.running.remove(snapshot)
        self._begin(host)


def percentile(values: Sequence[float], part: float) -> float:
    """Return the smallest value that a part of all values does not exceed.

    :param part: above 0, at most 1
    """
    return sorted(values)[math.ceil(part * len(values)) - 1]
