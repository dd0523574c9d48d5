# SPDX-License-Identifier: Apache-2.0
"""Sample values that only polling can show: disk space and processes."""

from collections.abc import Iterable
import contextlib
import os
import pathlib

from devcloud import state as cloud_state
from devcloud import watch

from devbench import process

#: Names of files of the strategies that keep the data that the guest writes
#: or overwrites during the snapshot.
SCRATCH = ('scratch', 'disk.snapext')

#: Every Nth poll searches for new processes; the others only read the known
#: ones, because a search reads all processes of the host.
SEARCH_EVERY = 5


class Space(watch.Poller):
    """Samples the space of a snapshot on the host, and keeps the peaks.

    In bytes: `scratch` is for the data that the guest writes during the
    snapshot; `disk` is the growth of the guest's own disk; and `staged` is
    everything else: copies, deleted files, the guest's memory.

    :param state: the cloud
    :param server: the guest's id
    :param compute: process id of nova-compute
    """

    # A poll takes a millisecond of CPU time, and snapshots may need all cores.
    # Staged files exist for seconds, so this is often enough.
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

    def poll(self) -> None:
        for name, size in self._occupied().items():
            self.peaks[name] = max(self.peaks[name],
                                   size - self._before[name])

    def _occupied(self) -> dict[str, int]:
        found = {'scratch': 0, 'disk': 0, 'staged': self._deleted()}
        for top in self._directories:
            for directory, _, files in os.walk(top):
                for name in files:
                    kind = self._kind(directory, name)
                    path = os.path.join(directory, name)
                    if kind is None:
                        continue
                    with contextlib.suppress(FileNotFoundError):
                        found[kind] += os.lstat(path).st_blocks * 512
        return found

    def _kind(self, directory: str, name: str) -> str | None:
        if name in SCRATCH:
            return 'scratch'
        if directory == str(self._instance):
            # The console log beside the disk grows, too; do not count it.
            return 'disk' if name.startswith('disk') else None
        return 'staged'

    def _deleted(self) -> int:
        """Return the size of nova-compute's open files that were deleted."""
        size = 0
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for link in self._files.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    target = os.readlink(link)
                    if (target.endswith(' (deleted)')
                            and target.startswith(self._snapshots)):
                        size += os.stat(link).st_blocks * 512
        return size


class Processes(watch.Poller):
    """Samples the resources of processes that may end or be replaced.

    A suspended guest gets a new QEMU process, and our processes do not wait
    for a qemu-nbd in the background. So the last sample of an ended process is
    used.

    :param state: the cloud
    :param server: the guest's id
    """

    interval = 0.2

    def __init__(self, state: cloud_state.State, server: str) -> None:
        super().__init__()
        self._texts = {'qemu': server, 'qemu-nbd': str(state.nova)}
        self._polls = 0
        self._first: dict[str, dict[int, process.Usage]] = {
            kind: self._usages(kind) for kind in self._texts}
        self._last: dict[str, dict[int, process.Usage]] = {
            kind: dict(found) for kind, found in self._first.items()}

    def poll(self) -> None:
        self._polls += 1
        if self._polls % SEARCH_EVERY == 0:
            self.search()
            return
        for last in self._last.values():
            last.update(_usages(last))

    def search(self) -> None:
        """Sample all processes, including new ones."""
        for kind, last in self._last.items():
            last.update(self._usages(kind))

    def used(self, kind: str) -> process.Usage:
        """Return the resources that processes of a kind have used.

        :param kind: qemu or qemu-nbd
        """
        total = process.Usage()
        for pid, last in self._last[kind].items():
            total += last - self._first[kind].get(pid, process.Usage())
        return total

    def _usages(self, kind: str) -> dict[int, process.Usage]:
        return _usages(
            pid for pid, program in process.find(self._texts[kind])
            if (program.startswith('qemu-system') if kind == 'qemu'
                else program == kind))


def _usages(pids: Iterable[int]) -> dict[int, process.Usage]:
    """Return the resources of processes, without ended ones."""
    found = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            found[pid] = process.usage(pid)
    return found


def family(root: int) -> list[int]:
    """Return the ids of a process, its session, and all descendants."""
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
    """Return the size of a file, in bytes; 0 if it does not exist."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
