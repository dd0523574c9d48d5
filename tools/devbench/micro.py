# SPDX-License-Identifier: Apache-2.0
"""Compare reader and encoders with the programs of QEMU and libnbd.

All of them read the same disk from the same qemu-nbd, in turns.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import dataclasses
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import time
import urllib.parse

from devcloud import errors
from devcloud import layout
from devcloud import shell
from devcloud import state as cloud_state
from devcloud import wait

from devbench import content
from devbench import drain
from devbench import figures
from devbench import host
from devbench import process
from devbench import turns

GIB = 1 << 30
TIB = 1 << 40

#: Maximum duration of one turn, in seconds.
TIMEOUT = 900

#: A disk without holes is so many times as large as its data.
DENSITY = 4

#: The programs that reader and encoders are compared with.
CONVERT, CONVERT_NULL, NBDCOPY = (
    'qemu-img convert to a file', 'qemu-img convert to null', 'nbdcopy')


@dataclasses.dataclass(frozen=True)
class Disk:
    """A disk to read.

    :param name: in the results
    :param size: virtual size, in bytes
    :param file: its file
    :param contestants: those that read it, by their names in contestants()
    :param format: of the file
    """

    name: str
    size: int
    file: pathlib.Path
    contestants: tuple[str, ...]
    format: str = 'qcow2'


class Export:
    """A qemu-nbd that serves a disk to one client after another."""

    def __init__(self, disk: Disk, place: pathlib.Path) -> None:
        self.disk = disk
        self.socket = place / 'nbd'
        socket = urllib.parse.quote(str(self.socket))
        self.uri = f'nbd+unix:///?socket={socket}'

    @property
    def source(self) -> tuple[str, str]:
        """Return the disk as arguments of qemu-img."""
        # Not as a URI: QEMU 9.1 and newer decode its query before they split
        # it. A doubled comma is a comma of the value.
        path = str(self.socket).replace(',', ',,')
        return '--image-opts', (
            f'driver=raw,file.driver=nbd,file.server.type=unix,'
            f'file.server.path={path}')

    @contextlib.contextmanager
    def serving(self) -> Iterator['Export']:
        self.socket.unlink(missing_ok=True)
        server = subprocess.Popen([
            'qemu-nbd', '--read-only', '--persistent', '--shared', '16',
            '--format', self.disk.format, '--socket', self.socket,
            self.disk.file])
        try:
            wait.until('qemu-nbd', self.socket.exists, 20)
            self.pid = server.pid
            yield self
        finally:
            server.terminate()
            server.wait()


def run(place: pathlib.Path, size: int, virtual: int, rounds: int,
        say: Callable[[str], None]) -> dict[str, object]:
    """Run all measurements, on disks made for them.

    :param place: directory for the disks; removed at the end
    :param size: bytes of data on each disk
    :param virtual: bytes of the sparse disk
    :param rounds: number of turns of each contestant
    :param say: called with progress messages
    :returns: facts about the host, all turns, medians and ratios
    """
    place.mkdir(parents=True, exist_ok=True)
    results = []
    try:
        for disk in disks(place, size, virtual, say):
            with Export(disk, place).serving() as export:
                results.append(_disk(export, place, rounds, say))
            disk.file.unlink()
    finally:
        shutil.rmtree(place)
    return {'kind': 'micro', 'host': host.facts(), 'data': size,
            'rounds': rounds, 'disks': results}


def disks(place: pathlib.Path, size: int, virtual: int,
          say: Callable[[str], None]) -> Iterator[Disk]:
    """Make the disks, each when the previous one is no longer needed."""
    everyone = tuple(contestants(place))
    raw = place / 'raw'
    say(f'making a disk of {size // layout.MIB} MiB of noise')
    content.sparse(raw, size)
    content.noise(raw, 0, size)
    yield Disk('incompressible', size, _qcow2(raw), everyone)
    say(f'making a system disk of {size // layout.MIB} MiB')
    content.system(raw, size, place)
    yield Disk('system', size, _qcow2(raw), everyone)
    say(f'making a disk of {virtual // GIB} GiB, with {size // layout.MIB} '
        f'MiB scattered in it')
    content.sparse(raw, virtual)
    content.scattered(raw, 0, virtual, size)
    yield Disk('sparse', virtual, _qcow2(raw), (
        'reader', 'qcow2', 'qcow2, zeros found', NBDCOPY))
    say(f'making a disk of {DENSITY * size // layout.MIB} MiB without holes, '
        f'with {size // layout.MIB} MiB scattered in it')
    content.zeros(raw, DENSITY * size)
    content.scattered(raw, 0, DENSITY * size, size, layout.MIB)
    yield Disk('without holes', DENSITY * size, raw, (
        'reader', 'qcow2, zeros found', CONVERT_NULL, NBDCOPY), 'raw')


def _qcow2(raw: pathlib.Path) -> pathlib.Path:
    target = raw.with_name('disk.qcow2')
    shell.run(['qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', '-t',
               'unsafe', '-T', 'unsafe', raw, target])
    raw.unlink()
    # A write-back during the measurements would disturb them.
    os.sync()
    return target


def contestants(place: pathlib.Path
                ) -> dict[str, Callable[[Export], dict[str, float]]]:
    """Return a function that reads a disk, for each contestant's name."""
    target = place / 'copy'

    def convert(export: Export) -> dict[str, float]:
        try:
            return _program(['qemu-img', 'convert', '-O', 'qcow2',
                             *export.source, target])
        finally:
            target.unlink(missing_ok=True)

    def convert_null(export: Export) -> dict[str, float]:
        return _program([
            'qemu-img', 'convert', '-n', '--target-image-opts',
            *export.source, f'driver=null-co,size={export.disk.size}'])

    def nbdcopy(export: Export) -> dict[str, float]:
        return _program(['nbdcopy', export.uri, 'null:'])

    ours = {kind: _drained(kind, place) for kind in drain.KINDS}
    return {**ours, CONVERT: convert, CONVERT_NULL: convert_null,
            NBDCOPY: nbdcopy}


def _drained(kind: str, place: pathlib.Path
             ) -> Callable[[Export], dict[str, float]]:
    tools = pathlib.Path(__file__).parents[1]

    def turn(export: Export) -> dict[str, float]:
        path = os.pathsep.join([str(tools), str(cloud_state.CHECKOUT)])
        return json.loads(shell.run(
            [sys.executable, '-m', 'devbench.drain', kind, export.uri],
            env={'PYTHONPATH': path, 'PYTHONDONTWRITEBYTECODE': '1'},
            cwd=place, timeout=TIMEOUT))
    return turn


def _program(command: list[object]) -> dict[str, float]:
    """Run a program.

    :returns: the wall time and CPU time, in seconds
    """
    def cpu() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime
    before, begin = cpu(), time.monotonic()
    shell.run(command, timeout=TIMEOUT)
    return {'wall': time.monotonic() - begin, 'cpu': cpu() - before}


def _disk(export: Export, place: pathlib.Path, rounds: int,
          say: Callable[[str], None]) -> dict[str, object]:
    everyone = contestants(place)
    runs: dict[str, list[dict[str, float]]] = {
        name: [] for name in export.disk.contestants}
    # So that all contestants find the disk in the page cache.
    everyone['reader'](export)
    for number, _, name in turns.rounds(
            {None: export.disk.contestants}, rounds):
        before = process.usage(export.pid).cpu
        turn = everyone[name](export)
        turn['server_cpu'] = process.usage(export.pid).cpu - before
        runs[name].append(turn)
        say(f'{export.disk.name}, round {number + 1}: {name}: '
            f'{turn["wall"]:.2f} s, CPU {turn["cpu"]:.2f} s, '
            f'server {turn["server_cpu"]:.2f} s')
    summaries = {name: figures.summaries(turns_)
                 for name, turns_ in runs.items()}
    return {'name': export.disk.name, 'size': export.disk.size,
            'runs': runs, 'summaries': summaries,
            'ratios': ratios(summaries)}


def ratios(summaries: dict[str, dict[str, dict[str, float]]]
           ) -> dict[str, dict[str, float]]:
    """Return the ratio of each wall time to those of the programs."""
    def wall(name: str) -> float | None:
        return summaries.get(name, {}).get('wall', {}).get('median')
    return {name: {other: quotient
                   for other in (CONVERT, CONVERT_NULL, NBDCOPY)
                   if (quotient := figures.ratio(wall(name), wall(other)))}
            for name in summaries}


def check_environment() -> None:
    """Check that this Python can import nova_snapext's dependencies.

    :raises CloudError: it can't
    """
    try:
        import nbd  # noqa: F401
        import nova  # noqa: F401
    except ImportError as exc:
        raise errors.CloudError(
            f'{sys.executable} can\'t import the dependencies of nova_snapext '
            f'({exc}): use the Python of the tox environment `benchmark`'
        ) from exc
