# SPDX-License-Identifier: Apache-2.0
"""Observe a guest, its host and its domain in the background."""

import contextlib
import dataclasses
import datetime
import itertools
import json
import operator
import os
import pathlib
import re
import subprocess
import tempfile
import threading
import time
from typing import Any
from typing import Self

from devcloud import errors
from devcloud import libvirtd
from devcloud import state as cloud_state

#: Seconds between two polls.
INTERVAL = 0.02


class Poller:
    """A thread that calls poll() repeatedly until it is stopped.

    :cvar interval: seconds between two calls
    """

    interval = INTERVAL

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self.failure: Exception | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _loop(self) -> None:
        try:
            while not self._stopping.wait(self.interval):
                self.poll()
        except Exception as exc:  # check() reports it.
            self.failure = exc

    def poll(self) -> None:
        raise NotImplementedError

    def check(self) -> None:
        """Raise CloudError if a call of poll() has failed."""
        if self.failure is not None:
            raise errors.CloudError(
                f'{type(self).__name__} failed: {self.failure!r}')


class Tail:
    """Reads the lines that are appended to a file.

    If the file has become shorter, it is read from its beginning.

    :param path: the file; it may be created later
    :param from_end: whether to skip the existing lines
    """

    def __init__(self, path: pathlib.Path, from_end: bool = False) -> None:
        self.path = path
        self._position = path.stat().st_size if from_end else 0
        self._rest = ''

    def new_lines(self) -> list[str]:
        """Return the complete lines that were added since the last call."""
        if not self.path.exists():
            return []
        with open(self.path, 'rb') as stream:
            if os.fstat(stream.fileno()).st_size < self._position:
                self._position, self._rest = 0, ''
            stream.seek(self._position)
            new = stream.read()
        self._position += len(new)
        *lines, self._rest = (self._rest + new.decode(errors='replace')
                              ).split('\n')
        return lines


@dataclasses.dataclass(frozen=True)
class Record:
    """A record that the guest has acknowledged on its console.

    :param number: the record's number
    :param uptime: the guest's clock, in seconds
    :param when: when we read it, on our monotonic clock, in seconds
    :param clock: when we read it, in seconds since the epoch
    """

    number: int
    uptime: float
    when: float
    clock: float


class Console(Poller):
    """Reads a guest's console log.

    :param log: console.log in the instance's directory
    """

    RECORD = re.compile(r'^REC (\d+) (\d+\.\d+)\r?$')

    def __init__(self, log: pathlib.Path) -> None:
        super().__init__()
        self._log = Tail(log)
        self.lines: list[str] = []
        self.records: list[Record] = []

    def poll(self) -> None:
        for line in self._log.new_lines():
            self.lines.append(line.strip())
            if found := self.RECORD.match(line):
                self.records.append(
                    Record(int(found[1]), float(found[2]),
                           time.monotonic(), time.time()))

    def find(self, pattern: str) -> re.Match | None:
        """Return the first match of a pattern in a line, or None."""
        self.check()
        matches = (re.search(pattern, line) for line in list(self.lines))
        return next((one for one in matches if one), None)

    def last(self) -> int:
        """Return the number of the last record; 0 if there is none."""
        self.check()
        return self.records[-1].number if self.records else 0

    def last_before(self, clock: float) -> int:
        """Return the number of the last record before a time of day."""
        return max((one.number for one in list(self.records)
                    if one.clock < clock), default=0)

    def stall(self, begin: float, end: float) -> float:
        """Return the longest time between two records, by the guest's clock.

        :param begin: of the period, on our monotonic clock
        :param end: of the period
        """
        times = [one.uptime for one in list(self.records)
                 if begin <= one.when <= end]
        return max((later - earlier for earlier, later
                    in itertools.pairwise(times)), default=0.0)


class DiskUsage(Poller):
    """Samples the disk usage of a directory, and keeps the peak.

    :param directory: the directory
    """

    def __init__(self, directory: pathlib.Path) -> None:
        super().__init__()
        self.directory = directory
        self.peak = 0

    def poll(self) -> None:
        total = 0
        # Unlike rglob(), os.walk() skips directories that were just removed.
        for directory, _, files in os.walk(self.directory):
            for name in files:
                with contextlib.suppress(FileNotFoundError):
                    total += os.lstat(
                        os.path.join(directory, name)).st_blocks * 512
        self.peak = max(self.peak, total)


class TaskStates(Poller):
    """Reads the task states of a server from Nova's notifications.

    It gets all states, even very short ones. Polling the API would miss some,
    and would take CPU time from the observed operation.

    :param state: the cloud, whose controller services log notifications
    :param server: the server's id
    """

    UPDATE = re.compile(r'INFO oslo\.messaging\.notification\.'
                        r'compute\.instance\.update \[.*?\] (\{.*)')

    def __init__(self, state: cloud_state.State, server: str) -> None:
        super().__init__()
        self.server = server
        self._logs = [Tail(state.log(service), from_end=True)
                      for service in ('nova-api', 'nova-conductor')]
        #: Times and task states of the notifications, in any order.
        self._updates: list[tuple[datetime.datetime, str | None]] = []

    def poll(self) -> None:
        for log in self._logs:
            for line in log.new_lines():
                if found := self.UPDATE.search(line):
                    self._add(json.loads(found[1]))

    def _add(self, update: dict[str, Any]) -> None:
        payload = update['payload']
        states = payload['old_task_state'], payload['new_task_state']
        # Without a task, it may be a late one of the task before.
        if payload['instance_id'] == self.server and any(states):
            self._updates.append((
                datetime.datetime.fromisoformat(update['timestamp']).replace(
                    tzinfo=datetime.UTC), states[1]))

    def _in_order(self) -> list[tuple[datetime.datetime, str | None]]:
        self.check()
        return sorted(self._updates, key=operator.itemgetter(0))

    def names(self) -> list[str]:
        """Return the task states in order, without None."""
        return [state for state, _ in itertools.groupby(
            state for _, state in self._in_order()) if state]

    def began(self) -> float | None:
        """Return the begin of the first task, on our monotonic clock."""
        return next((_monotonic(when) for when, state in self._in_order()
                     if state), None)

    def ended(self) -> float | None:
        """Return the end of the last task, or None while a task runs."""
        if not self.names():
            return None
        when, state = self._in_order()[-1]
        return None if state else _monotonic(when)


def _monotonic(when: datetime.datetime) -> float:
    """Return a time of day on our monotonic clock."""
    return time.monotonic() - (time.time() - when.timestamp())


class DomainEvents:
    """Reads the lifecycle events of a domain from `virsh event`.

    :param host: libvirtd
    :param domain: the domain's name
    """

    def __init__(self, host: libvirtd.Libvirtd, domain: str) -> None:
        self.command = ['virsh', '-c', host.uri, 'event', '--domain', domain,
                        '--event', 'lifecycle', '--loop', '--timestamp']
        self.output = tempfile.TemporaryFile('w+')  # noqa: SIM115
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> 'DomainEvents':
        # virsh ends when its input ends: give it a pipe that stays open.
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=self.output,
            stderr=subprocess.STDOUT)
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.communicate()

    def lines(self) -> list[str]:
        """Return the events so far.

        :raises: CloudError if virsh has ended early
        """
        if self.process is None or self.process.poll() is not None:
            raise errors.CloudError('virsh event has ended early')
        self.output.seek(0)
        return [line for line in self.output.read().splitlines()
                if 'event ' in line]
