# SPDX-License-Identifier: Apache-2.0
"""Several snapshots at once, each of another guest on the same host."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import itertools
import time
from typing import Any

from devcloud import api
from devcloud import compute
from devcloud import layout
from devcloud import servers
from devcloud import services
from devcloud import state as cloud_state

from devbench import bars
from devbench import cases
from devbench import contestants
from devbench import figures
from devbench import guest
from devbench import host
from devbench import measure
from devbench import process
from devbench import runner
from devbench import samples
from devbench import turns

#: Numbers of snapshots at once.
NUMBERS = (1, 2, 4, 8)

CONTESTANTS = (contestants.BACKUP, contestants.COMPRESSED,
               contestants.NOVA_LIVE)

#: The guests are alike. Compression and Nova's own need the files of a system.
CASE = cases.Case('several', '512 MiB of files of a system disk', 2,
                  512 * layout.MIB, cases.BY_NAME['system'].fill)

#: Allow as many snapshots at once as are requested.
SETTINGS = (f'DEFAULT.max_concurrent_snapshots={max(NUMBERS)}',
            f'DEFAULT.max_concurrent_builds={max(NUMBERS)}')


class Run:
    """One run.

    :param state: the cloud
    :param rounds: number of turns of each contestant and number
    :param numbers: numbers of snapshots at once
    :param case: what the guests have
    :param say: called with progress messages
    """

    def __init__(self, state: cloud_state.State, rounds: int,
                 say: Callable[[str], None],
                 numbers: Sequence[int] = NUMBERS,
                 case: cases.Case = CASE) -> None:
        self.state = state
        self.rounds = rounds
        self.say = say
        self.numbers = numbers
        self.case = case
        self.cloud = runner.Run(state, (), rounds, 0, (), say, lambda _: None)

    def run(self) -> dict[str, Any]:
        """Measure all contestants with all numbers.

        :raises: CloudError if a snapshot fails
        """
        runner.make_flavors(api.Client.admin(self.state), [self.case])
        self.cloud.remove_leftovers()
        runs: dict[tuple[str, int], list[dict[str, float | None]]] = {}
        try:
            with self._guests() as guests:
                for number, one, count in self._turns(guests[0]):
                    found = self._turn(one, guests[:count])
                    runs.setdefault((one.name, count), []).append(found)
                    self.say(f'round {number + 1}: {count} x {one.name}: '
                             f'{found["wall"]:.2f} s')
        finally:
            self.cloud.remove_leftovers()
            compute.configure(self.state, (), reset=True)
        measured = rows(runs)
        return {'kind': 'several', 'rounds': self.rounds,
                'title': f'{max(self.numbers)} guests on a host, each with '
                         f'{self.case.title}',
                'host': host.facts(), 'rows': measured,
                'bars': _bars(measured)}

    def _turns(self, server: str
               ) -> Iterator[tuple[int, contestants.Contestant, int]]:
        """Return all turns: round, contestant, and number of snapshots.

        nova-compute is configured for the contestant, and has taken a
        snapshot of a server.
        """
        pairs = itertools.product(
            (contestants.BY_NAME[name] for name in CONTESTANTS), self.numbers)
        groups = turns.grouped(pairs, lambda pair: pair[0].settings)
        for number, settings, (one, count) in turns.rounds(
                groups, self.rounds):
            if compute.configure(self.state, (
                    *contestants.SETTINGS, *SETTINGS, *settings), reset=True):
                self.cloud.warm_up(server, one)
            yield number, one, count

    @contextlib.contextmanager
    def _guests(self) -> Iterator[list[str]]:
        """Boot the guests, one after the other."""
        compute.configure(self.state, (*contestants.SETTINGS, *SETTINGS),
                          reset=True)
        image = guest.image(self.state, self.case)
        with contextlib.ExitStack() as stack:
            found = []
            for _number in range(max(self.numbers)):
                server = servers.create(
                    self.cloud.client, runner.SERVER, image,
                    runner.flavor(self.case), timeout=900)
                stack.callback(servers.delete, self.cloud.client, server)
                console = stack.enter_context(guest.Console(
                    self.state.instances / server / 'console.log'))
                runner.await_writes(console)
                found.append(server)
            yield found

    def _turn(self, one: contestants.Contestant, guests: list[str]
              ) -> dict[str, float | None]:
        """Take a snapshot of each guest at once.

        :returns: the measured values, by name
        """
        client = api.Client.demo(self.state)
        pid = measure.pid_of(
            services.nova_compute(self.state), self.state)
        idle = process.memory(pid)
        process.reset_peak(pid)
        before = process.total(samples.family(pid))
        images: list[str] = []
        begin = time.monotonic()
        try:
            for server in guests:
                images.append(servers.action(client, server, 'createImage', {
                    'name': 'benchmark', 'metadata': {
                        'snapext_strategy': one.strategy}})['image_id'])
            # Each in turn: the last one that is waited for is active when all
            # are, and requests cost CPU time of Glance.
            for image in images:
                measure.await_active(self.state, client, image, one.name)
            wall = time.monotonic() - begin
            for server in guests:
                servers.await_status(client, server, 'ACTIVE')
            used = process.total(samples.family(pid)) - before
            peak = process.memory(pid, 'VmHWM')
        finally:
            for image in images:
                client.delete('glance', f'/images/{image}', missing_ok=True)
        gib = len(guests) * self.case.data / cases.GIB
        return {'wall': wall, 'cpu_per_gib': used.cpu / gib,
                'memory': (peak - idle) / len(guests)}


def rows(runs: dict[tuple[str, int], list[dict[str, float | None]]]
         ) -> list[dict[str, Any]]:
    """Return a row for each contestant and number, with its medians.

    :param runs: the measured values of each round
    :returns: contestant, number, the values, and `of_one`: the wall time as a
        multiple of that of as many snapshots one after the other
    """
    found = []
    for (name, number), values in runs.items():
        summary = figures.summaries(values)
        one = figures.summaries(runs.get((name, 1), []))
        alone = one.get('wall', {}).get('median')
        found.append({
            'contestant': name, 'number': number, **summary,
            'of_one': figures.ratio(summary['wall']['median'],
                                    alone and alone * number)})
    return sorted(found, key=lambda row: (
        CONTESTANTS.index(row['contestant']), row['number']))


def _bars(found_rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the bars of our own snapshots."""
    found: list[bars.Bar] = []
    for row in found_rows:
        if row['contestant'] == contestants.NOVA_LIVE:
            continue
        what = f'{row["number"]} at once, {row["contestant"]}'
        found.append((f'{what}: memory of each, MiB',
                      row['memory']['max'] / layout.MIB, 64, False))
        if row['number'] > 1:
            found.append((f'{what}: wall / one after the other',
                          row['of_one'], 1, False))
    return bars.judged(found)
