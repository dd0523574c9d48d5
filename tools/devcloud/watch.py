# SPDX-License-Identifier: Apache-2.0
"""Watch a guest, its host and its domain while something happens to it."""

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
from typing import Self

from devcloud import errors
from devcloud import libvirtd
from devcloud import state as cloud_state

#: Seconds between two looks.
INTERVAL = 0.02


class _Watcher:
    """A thread that looks again and again until stopped.

    :cvar interval: seconds between two looks
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
                self.look()
        except Exception as exc:  # for whoever asks the watcher later
            self.failure = exc

    def look(self) -> None:
        raise NotImplementedError

    def check(self) -> None:
        """:raises: CloudError if the watching itself has failed"""
        if self.failure is not None:
            raise errors.CloudError(
                f'{type(self).__name__} failed: {self.failure!r}')


class Tail:
    """The lines that are appended to a file.

    One that has become shorter is read from its beginning.

    :param path: the file, which may come later
    :param from_end: whether those that it has already are passed over
    """

    def __init__(self, path: pathlib.Path, from_end: bool = False) -> None:
        self.path = path
        self._position = path.stat().st_size if from_end else 0
        self._rest = ''

    def lines(self) -> list[str]:
        """The whole lines that have come since the last call."""
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
class Seen:
    """A record's acknowledgement on the guest's console.

    :param number: the record's number
    :param uptime: the guest's clock, in seconds
    :param when: our monotonic clock when we saw it, in seconds
    :param clock: the time of day then, in seconds since the epoch
    """

    number: int
    uptime: float
    when: float
    clock: float


class Console(_Watcher):
    """Follows a guest's console log.

    :param log: console.log in the instance's directory
    """

    RECORD = re.compile(r'^REC (\d+) (\d+\.\d+)\r?$')

    def __init__(self, log: pathlib.Path) -> None:
        super().__init__()
        self._log = Tail(log)
        self.lines: list[str] = []
        self.seen: list[Seen] = []

    def look(self) -> None:
        for line in self._log.lines():
            self.lines.append(line.strip())
            if found := self.RECORD.match(line):
                self.seen.append(Seen(int(found[1]), float(found[2]),
                                      time.monotonic(), time.time()))

    def find(self, pattern: str) -> re.Match | None:
        """The first line that matches a pattern."""
        self.check()
        matches = (re.search(pattern, line) for line in list(self.lines))
        return next((one for one in matches if one), None)

    def last(self) -> int:
        """The number of the last record seen; 0 if there was none."""
        self.check()
        return self.seen[-1].number if self.seen else 0

    def last_before(self, clock: float) -> int:
        """The last record seen before a time of day."""
        return max((one.number for one in list(self.seen)
                    if one.clock < clock), default=0)

    def stall(self, begin: float, end: float) -> float:
        """The longest time between two records, by the guest's clock.

        :param begin: where to begin, on our monotonic clock
        :param end: where to end
        """
        times = [one.uptime for one in list(self.seen)
                 if begin <= one.when <= end]
        return max((later - earlier for earlier, later
                    in itertools.pairwise(times)), default=0.0)


class DiskUsage(_Watcher):
    """Samples how much a directory occupies, and keeps the peak.

    :param directory: the directory
    """

    def __init__(self, directory: pathlib.Path) -> None:
        super().__init__()
        self.directory = directory
        self.peak = 0

    def look(self) -> None:
        total = 0
        # Passes over directories that go meanwhile, which rglob() does not.
        for place, _, files in os.walk(self.directory):
            for name in files:
                with contextlib.suppress(FileNotFoundError):
                    total += os.lstat(
                        os.path.join(place, name)).st_blocks * 512
        self.peak = max(self.peak, total)


class TaskStates(_Watcher):
    """Follows the task states of a server, as Nova notifies of them.

    Every one, however short; looks at the server through the API miss some,
    and cost Nova and Keystone CPU that what is watched would have to do
    without.

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
        #: What Nova has told, in any order.
        self._updates: list[tuple[datetime.datetime, str | None]] = []

    def look(self) -> None:
        for log in self._logs:
            for line in log.lines():
                if found := self.UPDATE.search(line):
                    update = json.loads(found[1])
                    if update['payload']['instance_id'] == self.server:
                        self._updates.append((
                            datetime.datetime.fromisoformat(
                                update['timestamp']).replace(
                                    tzinfo=datetime.UTC),
                            update['payload']['new_task_state']))

    def _in_order(self) -> list[tuple[datetime.datetime, str | None]]:
        self.check()
        return sorted(self._updates, key=operator.itemgetter(0))

    def names(self) -> list[str]:
        """The states that are tasks, in order."""
        return [state for state, _ in itertools.groupby(
            state for _, state in self._in_order()) if state]

    def began(self) -> float | None:
        """When the first task began, on our monotonic clock."""
        return next((_monotonic(when) for when, state in self._in_order()
                     if state), None)

    def ended(self) -> float | None:
        """When the last task had ended, or None while there is one."""
        if not self.names():
            return None
        when, state = self._in_order()[-1]
        return None if state else _monotonic(when)


def _monotonic(when: datetime.datetime) -> float:
    """A time of day on our monotonic clock."""
    return time.monotonic() - (time.time() - when.timestamp())


class DomainEvents:
    """What libvirt reports of a domain's life, as virsh prints it.

    :param host: libvirtd
    :param domain: the domain's name
    """

    def __init__(self, host: libvirtd.Libvirtd, domain: str) -> None:
        self.command = ['virsh', '-c', host.uri, 'event', '--domain', domain,
                        '--event', 'lifecycle', '--loop', '--timestamp']
        self.output = tempfile.TemporaryFile('w+')  # noqa: SIM115
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> 'DomainEvents':
        # A pipe that stays open and silent: virsh ends when its input does.
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=self.output,
            stderr=subprocess.STDOUT)
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.communicate()

    def lines(self) -> list[str]:
        """The events so far.

        :raises: CloudError if virsh has ended early
        """
        if self.process is None or self.process.poll() is not None:
            raise errors.CloudError('virsh event has ended early')
        self.output.seek(0)
        return [line for line in self.output.read().splitlines()
                if 'event ' in line]
