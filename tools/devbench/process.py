# SPDX-License-Identifier: Apache-2.0
"""The resources that processes have used, from /proc."""

from collections.abc import Iterable
import dataclasses
import os
import pathlib

TICK = os.sysconf('SC_CLK_TCK')
PROC = pathlib.Path('/proc')


@dataclasses.dataclass(frozen=True)
class Usage:
    """The resources of a process and of its ended children, since its start.

    :param cpu: seconds
    :param minor_faults: pages that were mapped without reading a disk
    :param read_calls: bytes of read(2) and similar calls, including those
        from the page cache
    :param write_calls: bytes of write(2) and similar calls
    :param read_disk: bytes read from storage
    :param written_disk: bytes written to storage, or still to be written
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
    """Return the resources that a process has used.

    :raises: OSError if it does not exist
    """
    return parse_usage((PROC / str(pid) / 'stat').read_text(),
                       (PROC / str(pid) / 'io').read_text())


def parse_usage(stat: str, io: str) -> Usage:
    """Parse /proc/PID/stat and /proc/PID/io, see proc(5).

    Both include the children that were waited for.
    """
    # Start with the third field: the second may contain any character.
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
    """Return the sum of several processes; ended processes count as zero."""
    found = Usage()
    for pid in pids:
        try:
            found += usage(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def memory(pid: int, name: str = 'VmRSS') -> int:
    """Return a process's memory.

    :param name: line of /proc/PID/status: VmRSS is now, VmHWM is the peak
    :returns: in bytes
    """
    for line in (PROC / str(pid) / 'status').read_text().splitlines():
        if line.startswith(f'{name}:'):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(f'process {pid} has ended')


def reset_peak(pid: int) -> None:
    """Reset a process's peak of memory to its memory now."""
    (PROC / str(pid) / 'clear_refs').write_text('5')


def find(text: str) -> list[tuple[int, str]]:
    """Find processes with a text in their command lines.

    :returns: process ids and names of the programs
    """
    found = []
    for path in PROC.glob('[0-9]*/cmdline'):
        try:
            line = path.read_bytes()
        except OSError:  # The process has ended.
            continue
        if text.encode() in line:
            program = line.split(b'\0')[0].decode(errors='replace')
            found.append((int(path.parent.name),
                          os.path.basename(program)))
    return found
