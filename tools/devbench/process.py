# SPDX-License-Identifier: Apache-2.0
"""What processes have used, as the kernel counts it in /proc."""

from collections.abc import Iterable
import dataclasses
import os
import pathlib

TICK = os.sysconf('SC_CLK_TCK')
PROC = pathlib.Path('/proc')


@dataclasses.dataclass(frozen=True)
class Usage:
    """What a process has used since it began, and the children it reaped.

    :param cpu: seconds
    :param minor_faults: pages that were mapped without reading a disk
    :param read_calls: bytes given to read(2) and its kind, from the page
        cache too
    :param write_calls: bytes taken by write(2) and its kind
    :param read_disk: bytes fetched from storage
    :param written_disk: bytes sent to storage, or on their way
    """

    cpu: float = 0.0
    minor_faults: int = 0
    read_calls: int = 0
    write_calls: int = 0
    read_disk: int = 0
    written_disk: int = 0

    def __sub__(self, earlier: 'Usage') -> 'Usage':
        return Usage(*(mine - its for mine, its in zip(
            dataclasses.astuple(self), dataclasses.astuple(earlier),
            strict=True)))

    def __add__(self, other: 'Usage') -> 'Usage':
        return Usage(*map(sum, zip(
            dataclasses.astuple(self), dataclasses.astuple(other),
            strict=True)))


def usage(pid: int) -> Usage:
    """Give what a process has used.

    :raises: OSError if there is none
    """
    return parse_usage((PROC / str(pid) / 'stat').read_text(),
                       (PROC / str(pid) / 'io').read_text())


def parse_usage(stat: str, io: str) -> Usage:
    """Read /proc/PID/stat and /proc/PID/io, see proc(5).

    Both count the children that were waited for.
    """
    # From the third field on: the second may hold anything.
    fields = stat.rpartition(')')[2].split()
    counts = dict(line.split(': ') for line in io.splitlines())
    return Usage(
        cpu=sum(map(int, fields[11:15])) / TICK,
        minor_faults=int(fields[7]) + int(fields[8]),
        read_calls=int(counts['rchar']),
        write_calls=int(counts['wchar']),
        read_disk=int(counts['read_bytes']),
        written_disk=int(counts['write_bytes']))


def total(pids: Iterable[int]) -> Usage:
    """Add up what processes have used; those that are gone count nothing."""
    found = Usage()
    for pid in pids:
        try:
            found += usage(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def memory(pid: int, name: str = 'VmRSS') -> int:
    """Give a process's memory.

    :param name: line of /proc/PID/status: VmRSS now, VmHWM at its peak
    :returns: in bytes
    """
    for line in (PROC / str(pid) / 'status').read_text().splitlines():
        if line.startswith(f'{name}:'):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(f'process {pid} has no memory any more')


def forget_peak(pid: int) -> None:
    """Begin anew to look for a process's peak of memory."""
    (PROC / str(pid) / 'clear_refs').write_text('5')


def with_word(word: str) -> list[tuple[int, str]]:
    """Find processes whose command line holds a word.

    :returns: process id and name of the program
    """
    found = []
    for path in PROC.glob('[0-9]*/cmdline'):
        try:
            line = path.read_bytes()
        except OSError:  # it has ended meanwhile
            continue
        if word.encode() in line:
            program = line.split(b'\0')[0].decode(errors='replace')
            found.append((int(path.parent.name),
                          os.path.basename(program)))
    return found
