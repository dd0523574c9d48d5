# SPDX-License-Identifier: Apache-2.0
"""What can only be seen by looking again and again: space, and processes."""

from collections.abc import Iterable
import contextlib
import os
import pathlib

from devcloud import state as cloud_state
from devcloud import watch

from devbench import process

#: Files of the strategies that keep what the guest writes or overwrites
#: meanwhile, by name.
SCRATCH = ('scratch', 'disk.snapext')

#: Looks at the processes that are known for each that searches for others,
#: which reads of all that the host has.
EVERY = 5


class Space(watch._Watcher):
    """Samples what a snapshot occupies on the host, and keeps the peaks.

    In bytes: `scratch`, where what the guest writes meanwhile goes; `disk`,
    by which the guest's own disk grows; and `staged`, all else: copies, files
    without a name, the guest's memory.

    :param state: the cloud
    :param server: the guest's id
    :param compute: process id of nova-compute
    """

    # Looking takes a millisecond of CPU, which snapshots that need both cores
    # would have to do without; and a file that is staged is there for seconds.
    interval = 0.1

    def __init__(self, state: cloud_state.State, server: str,
                 compute: int) -> None:
        super().__init__()
        self._instance = state.instances / server
        self._directories = (
            state.snapshots, self._instance,
            state.libvirt / 'lib/qemu/save')
        self._snapshots = str(state.snapshots)
        self._files = process.PROC / str(compute) / 'fd'
        self._before = self._occupied()
        self.peaks = dict.fromkeys(self._before, 0)

    def look(self) -> None:
        for name, size in self._occupied().items():
            self.peaks[name] = max(self.peaks[name],
                                   size - self._before[name])

    def _occupied(self) -> dict[str, int]:
        found = {'scratch': 0, 'disk': 0, 'staged': self._nameless()}
        for directory in self._directories:
            for place, _, files in os.walk(directory):
                for name in files:
                    kind = self._kind(place, name)
                    path = os.path.join(place, name)
                    if kind is None:
                        continue
                    with contextlib.suppress(FileNotFoundError):
                        found[kind] += os.lstat(path).st_blocks * 512
        return found

    def _kind(self, place: str, name: str) -> str | None:
        if name in SCRATCH:
            return 'scratch'
        if place == str(self._instance):
            # Beside the disk there is what the guest says, which grows too.
            return 'disk' if name.startswith('disk') else None
        return 'staged'

    def _nameless(self) -> int:
        """Files that nova-compute has open, and that have no name any more."""
        size = 0
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for link in self._files.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    target = os.readlink(link)
                    if (target.endswith(' (deleted)')
                            and target.startswith(self._snapshots)):
                        size += os.stat(link).st_blocks * 512
        return size


class Processes(watch._Watcher):
    """Follows processes that may end, or be others afterwards.

    QEMU is another one after a guest was suspended, and nobody of ours waits
    for a qemu-nbd in the background: what they had used is what was last
    seen of them.

    :param state: the cloud
    :param server: the guest's id
    """

    interval = 0.2

    def __init__(self, state: cloud_state.State, server: str) -> None:
        super().__init__()
        self._words = {'qemu': server, 'qemu-nbd': str(state.nova)}
        self._looks = 0
        self._first: dict[str, dict[int, process.Usage]] = {
            kind: self._usages(kind) for kind in self._words}
        self._last: dict[str, dict[int, process.Usage]] = {
            kind: dict(found) for kind, found in self._first.items()}

    def look(self) -> None:
        self._looks += 1
        if self._looks % EVERY == 0:
            self.look_now()
            return
        for last in self._last.values():
            last.update(_usages(last))

    def look_now(self) -> None:
        """Look for processes that have come, too."""
        for kind, last in self._last.items():
            last.update(self._usages(kind))

    def used(self, kind: str) -> process.Usage:
        """Give what the processes of a kind have used meanwhile.

        :param kind: qemu or qemu-nbd
        """
        total = process.Usage()
        for pid, last in self._last[kind].items():
            total += last - self._first[kind].get(pid, process.Usage())
        return total

    def _usages(self, kind: str) -> dict[int, process.Usage]:
        return _usages(
            pid for pid, program in process.with_word(self._words[kind])
            if (program.startswith('qemu-system') if kind == 'qemu'
                else program == kind))


def _usages(pids: Iterable[int]) -> dict[int, process.Usage]:
    """Give what processes have used, save those that are gone."""
    found = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            found[pid] = process.usage(pid)
    return found


def family(root: int) -> list[int]:
    """Find a process, its session, and all who descend from it."""
    parents, sessions = {}, {}
    for path in process.PROC.glob('[0-9]*/stat'):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(')')[2].split()
            pid = int(path.parent.name)
            parents[pid], sessions[pid] = int(fields[1]), int(fields[3])
    members = {root} | {pid for pid, session in sessions.items()
                        if session == root}
    while more := {pid for pid, parent in parents.items()
                   if parent in members and pid not in members}:
        members |= more
    return sorted(members)


def size_of(path: pathlib.Path) -> int:
    """The size of a file, in bytes; 0 where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
