# SPDX-License-Identifier: Apache-2.0
"""A run: measure all cases, with all contestants in turns."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import json
import pathlib
import shutil
import time
from typing import Any

from devcloud import api
from devcloud import cloud
from devcloud import compute
from devcloud import errors
from devcloud import servers
from devcloud import shell
from devcloud import state as cloud_state
from devcloud import wait

from devbench import bars
from devbench import cases
from devbench import chain
from devbench import contestants
from devbench import figures
from devbench import guest
from devbench import host
from devbench import measure
from devbench import terminal
from devbench import turns

#: Name of the guests.
SERVER = 'benchmark'

#: Maximum seconds of a guest's boot without KVM.
BOOT_TIMEOUT = 300

#: Number of records that a guest writes before it is measured.
WARM_UP_RECORDS = 20

PACKAGES = ('nova', 'glance', 'python-glanceclient', 'nova-snapext')


class Run:
    """One run.

    :param names: names of the contestants
    :param rounds: number of turns of each contestant
    :param baseline: seconds to observe a guest before each turn
    :param settings: more settings of nova-compute, for all contestants
    :param say: called with progress messages
    :param save: called with the results so far, after each turn
    """

    def __init__(self, state: cloud_state.State, names: Sequence[str],
                 rounds: int, baseline: float, settings: Sequence[str],
                 say: Callable[[str], None],
                 save: Callable[[dict[str, Any]], None]) -> None:
        self.state = state
        self.names = names
        self.rounds = rounds
        self.baseline = baseline
        self.settings = settings
        self.say = say
        self.save = save
        self.place = state.root / 'benchmark'

    def run(self, chosen: Sequence[cases.Case]) -> None:
        """Measure cases.

        :param chosen: the cases
        """
        results: dict[str, Any] = {
            'kind': 'cloud', 'rounds': self.rounds,
            'baseline': self.baseline, 'settings': list(self.settings),
            'host': {**host.facts(), 'packages': host.packages(
                self.state.bin('python'), PACKAGES)},
            'cases': [], 'failures': []}
        make_flavors(api.Client.admin(self.state),
                     [*chosen, cases.NEIGHBOUR])
        self.remove_leftovers()
        try:
            for case in chosen:
                # A failed case must not lose hours of other cases.
                done = list(results['cases'])
                with self._failures_recorded(results, case.name):
                    for found in self._case(case):
                        results['cases'] = [*done, found]
                        self.save(results)
                    self.say(f'{case.name} is done\n\n'
                             f'{terminal.case(found)}\n')
                self.save(results)
        finally:
            self.remove_leftovers()
            compute.configure(self.state, (), reset=True)

    def _case(self, case: cases.Case) -> Iterator[dict[str, Any]]:
        """Measure a case.

        :returns: its results so far, after each turn
        """
        self.say(f'{case.name}: {case.title}')
        image = guest.image(self.state, case)
        with contextlib.ExitStack() as stack:
            self.place.mkdir(exist_ok=True)
            stack.callback(shutil.rmtree, self.place)
            subject, facts = self._prepare(case, image, stack)
            facts['failures'] = []
            for runs in self._turns(case, subject, facts):
                yield self.summarize(case, facts, runs)

    @contextlib.contextmanager
    def _failures_recorded(self, results: dict[str, Any], what: str
                           ) -> Iterator[None]:
        """Add a failure to the results, and continue."""
        try:
            yield
        except errors.CloudError as exc:
            results['failures'].append(f'{what}: {exc}')
            self.say(f'{what} FAILED: {exc}')

    def _prepare(self, case: cases.Case, image: str,
                 stack: contextlib.ExitStack
                 ) -> tuple[measure.Guest, dict[str, Any]]:
        """Boot a case's guest, and measure its disk."""
        self._configure(case, ())
        server = servers.create(
            self.client, SERVER, image, flavor(case), timeout=900)
        stack.callback(self._delete, server)
        if case.overlays:
            self._power(server, False)
            chain.deepen(self.state.instances / server / 'disk',
                         case.overlays, case.data // 4)
            self._power(server, True)
        console = stack.enter_context(guest.Console(
            self.state.instances / server / 'console.log'))
        await_writes(console)
        ready_made, data = self._ready_made(server)
        allocated = self._allocated(case, server)
        self.say(f'{case.name}: {data >> 20} MiB that are not zeros, '
                 f'{allocated >> 20} MiB allocated')
        neighbours = self._boot_neighbours(case, stack)
        return (measure.Guest(server, console, ready_made, data, neighbours),
                {'data': data, 'allocated': allocated,
                 'virtual': case.disk << 30, 'ready_made':
                     ready_made.stat().st_size})

    def _boot_neighbours(self, case: cases.Case,
                         stack: contextlib.ExitStack) -> tuple[str, ...]:
        """Boot the other guests of a case, and return their ids."""
        found = []
        for _number in range(case.neighbours):
            found.append(servers.create(
                self.client, SERVER, guest.image(self.state, cases.NEIGHBOUR),
                flavor(cases.NEIGHBOUR), timeout=900))
            stack.callback(self._delete, found[-1])
            with guest.Console(self.state.instances / found[-1] /
                               'console.log') as console:
                await_writes(console)
        return tuple(found)

    def _turns(self, case: cases.Case, subject: measure.Guest,
               facts: dict[str, Any]
               ) -> Iterator[dict[str, list[dict[str, Any]]]]:
        taking_part = contestants.of(case, self.names)
        groups = turns.grouped(taking_part, lambda one: one.needs)
        runs: dict[str, list[dict[str, Any]]] = {
            one.name: [] for one in taking_part}
        for number, (settings, off), one in turns.rounds(
                groups, self.rounds):
            what = f'round {number + 1}: {one.name}'
            with self._failures_recorded(facts, what):
                is_new = self._configure(case, settings)
                self._set_power(subject, off)
                if is_new:
                    self.warm_up(subject.server, one)
                run = measure.Turn(self.state, one, subject,
                                   self.baseline).run()
                runs[one.name].append({'round': number, **run})
                self._check_nothing_left()
                self.say(f'{case.name}, {what}: {run["wall"]:.2f} s, '
                         f'{run["sent"] >> 20} MiB')
            yield runs

    def summarize(self, case: cases.Case, facts: dict[str, Any],
                  runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
        """Return a case's results."""
        summaries = {name: figures.summaries(
            [{key: value for key, value in run.items() if key != 'round'}
             for run in turns_]) for name, turns_ in runs.items()}
        found = {'name': case.name, 'title': case.title,
                 'block': case.is_block, **facts, 'runs': runs,
                 'summaries': summaries}
        found['ratios'] = bars.ratios(found)
        found['bars'] = bars.bars(found)
        return found

    @property
    def client(self) -> api.Client:
        # A new client each time: its token expires.
        return api.Client.demo(self.state)

    def _configure(self, case: cases.Case, settings: Sequence[str]) -> bool:
        """Return whether nova-compute was started."""
        return compute.configure(
            self.state, (*contestants.SETTINGS, *case.settings,
                         *self.settings, *settings), reset=True)

    def warm_up(self, server: str, one: contestants.Contestant) -> None:
        """Have a new nova-compute take a snapshot before it is measured.

        The first one after a start logs in to Keystone, and starts the
        process of oslo.privsep.
        """
        client = self.client
        image = self._snapshot(
            client, server, one.strategy or contestants.BACKUP)
        client.delete('glance', f'/images/{image}')

    def _snapshot(self, client: api.Client, server: str, strategy: str) -> str:
        """Return the image of a snapshot, when it is complete."""
        before = servers.show(client, server)['status']
        image = servers.action(client, server, 'createImage', {
            'name': 'benchmark',
            'metadata': {'snapext_strategy': strategy}})['image_id']
        servers.await_status(client, server, before, timeout=1800)
        return image

    def _set_power(self, subject: measure.Guest, off: bool) -> None:
        """Start the guest or shut it off, unless done."""
        wanted = 'SHUTOFF' if off else 'ACTIVE'
        if servers.show(self.client, subject.server)['status'] == wanted:
            return
        self._power(subject.server, not off)
        if not off:
            await_writes(subject.console)

    def _power(self, server: str, on: bool) -> None:
        client = self.client
        servers.action(client, server, 'os-start' if on else 'os-stop')
        servers.await_status(client, server, 'ACTIVE' if on else 'SHUTOFF')

    def _ready_made(self, server: str) -> tuple[pathlib.Path, int]:
        """Make a file with an image of the guest's disk.

        It is made from a snapshot, which also fills caches before the measured
        snapshots.

        :returns: the file, and the number of bytes that aren't zeros
        """
        client = self.client
        image = self._snapshot(client, server, contestants.BACKUP)
        file = self.place / 'snapshot'
        servers.download(client, image, file)
        client.delete('glance', f'/images/{image}')
        # Without zeros.
        ready_made = self.place / 'ready-made.qcow2'
        shell.run(['qemu-img', 'convert', '-f', 'qcow2', '-O', 'qcow2', '-S',
                   '64k', '-t', 'unsafe', '-T', 'unsafe', file, ready_made])
        file.unlink()
        checked = json.loads(shell.run(
            ['qemu-img', 'check', '--output=json', ready_made]))
        return ready_made, checked['allocated-clusters'] * 64 * 1024

    def _allocated(self, case: cases.Case, server: str) -> int:
        """Return the number of allocated bytes of the guest's disk."""
        if case.is_block:
            return case.disk << 30
        extents = json.loads(shell.run([
            'qemu-img', 'map', '--force-share', '--output=json',
            self.state.instances / server / 'disk']))
        return sum(one['length'] for one in extents
                   if one['data'] and not one['zero'])

    def _check_nothing_left(self) -> None:
        left = [path.name for path in self.state.snapshots.glob('*')]
        if left:
            raise errors.CloudError(f'left in the snapshots directory: {left}')

    def _delete(self, server: str) -> None:
        servers.delete(self.client, server)

    def remove_leftovers(self) -> None:
        """Delete the servers and images of this run and of earlier runs."""
        client = self.client
        for server in client.get('nova-api', '/servers')['servers']:
            if server['name'] == SERVER:
                servers.delete(client, server['id'])
        for image in client.get('glance', '/images?visibility=private'
                                )['images']:
            if image['name'] == 'benchmark':
                client.delete('glance', f'/images/{image["id"]}')


def await_writes(console: guest.Console) -> None:
    """Wait until a guest has booted and writes records."""
    since = time.monotonic()
    wait.until('records of the guest', lambda: sum(
        one.when > since for one in list(console.records))
        >= WARM_UP_RECORDS, BOOT_TIMEOUT)


def flavor(case: cases.Case) -> str:
    """Return the name of the flavor for the size of a case's disk."""
    return f'snap.bench.{case.disk}'


def make_flavors(admin: api.Client, chosen: Sequence[cases.Case]) -> None:
    """Create the flavors for cases.

    Placement refuses a guest whose disk is larger than the space of the host,
    so the flavors request only the size of the data.
    """
    known = {one['id'] for one in admin.get('nova-api', '/flavors')['flavors']}
    for case in {case.disk: case for case in chosen}.values():
        if flavor(case) not in known:
            admin.post('nova-api', '/flavors', {'flavor': {
                'id': flavor(case), 'name': flavor(case), 'vcpus': 1,
                'ram': 192, 'disk': case.disk}})
        admin.post('nova-api', f'/flavors/{flavor(case)}/os-extra_specs', {
            'extra_specs': {
                'resources:DISK_GB': str(1 + case.data // cases.GIB)}})


def smoke(state: cloud_state.State, say: Callable[[str], None],
          save: Callable[[dict[str, Any]], None]) -> None:
    """Check that the benchmark works, with tiny data and one round."""
    Run(state, contestants.SMOKE, 1, 1, (), say, save).run([cases.SMOKE])


def running_cloud() -> cloud_state.State:
    """Return the cloud.

    :raises: CloudError if it does not run
    """
    state = cloud_state.State.default()
    if not all(daemon.is_running() for daemon in cloud.daemons(state)):
        raise errors.CloudError('the cloud does not run: start it with '
                                '`tools/cloud up`')
    return state
