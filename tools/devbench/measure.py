# SPDX-License-Identifier: Apache-2.0
"""One turn: upload a guest's disk to Glance, and measure the cost."""

import dataclasses
import datetime
import json
import pathlib
import re
import subprocess
import time

from devcloud import api
from devcloud import errors
from devcloud import servers
from devcloud import services
from devcloud import shell
from devcloud import state as cloud_state
from devcloud import wait

from devbench import contestants
from devbench import guest
from devbench import process
from devbench import samples

GIB = 1 << 30

#: Maximum seconds of a turn.
TIMEOUT = 1800

#: Seconds between two checks of the size of the stored file, and between two
#: requests to the API, which cost CPU time of Glance.
POLL_INTERVAL, API_POLL_INTERVAL = 0.02, 2

#: The driver's lines about a snapshot in nova-compute's log.
FROZEN = re.compile(r'(?m)^(\S+ \S+) .* Root disk \S+ is frozen')
FINISHED = re.compile(r'Snapshot of root disk \S+ finished: (.*)')

PUT = pathlib.Path(__file__).with_name('put.py')


@dataclasses.dataclass(frozen=True)
class Guest:
    """The guest of a case.

    :param server: its id
    :param console: reads its console log
    :param ready_made: file with an image of its disk
    :param data: bytes of its disk that aren't zeros
    :param neighbours: ids of other guests, whose CPU time is measured
    """

    server: str
    console: guest.Console
    ready_made: pathlib.Path
    data: int
    neighbours: tuple[str, ...] = ()


@dataclasses.dataclass
class _Times:
    """Times on our monotonic clock; `clock` is `begin` since the epoch."""

    begin: float = 0.0
    clock: float = 0.0
    active: float = 0.0
    end: float = 0.0


class Counters:
    """Counts the resources that all processes use from now on."""

    def __init__(self, state: cloud_state.State, subject: Guest) -> None:
        self.began = time.monotonic()
        self.neighbours = [
            pid for server in subject.neighbours
            for pid, program in process.find(server)
            if program.startswith('qemu-system')]
        self.compute = pid_of(services.nova_compute(state), state)
        self.glance = pid_of(services.glance(state), state)
        self.before = self._now()
        self.idle = process.memory(self.compute)
        process.reset_peak(self.compute)
        self.processes = samples.Processes(state, subject.server)

    def _now(self) -> dict[str, process.Usage]:
        found = {name: process.total(samples.family(pid)) for name, pid in (
            ('compute', self.compute), ('glance', self.glance))}
        found['neighbours'] = process.total(self.neighbours)
        return found

    def used(self) -> dict[str, process.Usage]:
        self.processes.search()
        found = {name: now - self.before[name]
                 for name, now in self._now().items()}
        found['compute'] += self.processes.used('qemu-nbd')
        found['qemu'] = self.processes.used('qemu')
        return found

    def neighbours_rate(self) -> float | None:
        """Return the CPU seconds that the neighbours get in a second."""
        if not self.neighbours:
            return None
        used = self._now()['neighbours'] - self.before['neighbours']
        return used.cpu / (time.monotonic() - self.began)

    def memory(self) -> int:
        return process.memory(self.compute, 'VmHWM') - self.idle


class Turn:
    """One turn of a contestant.

    :param state: the cloud
    :param contestant: the contestant
    :param subject: the guest
    :param baseline: seconds to observe the guest before
    """

    def __init__(self, state: cloud_state.State,
                 contestant: contestants.Contestant, subject: Guest,
                 baseline: float) -> None:
        self.state = state
        self.contestant = contestant
        self.subject = subject
        self.baseline = baseline
        # With a new token: a run takes longer than a token is valid.
        self.client = api.Client.demo(state)
        self.times = _Times()
        self.image = ''
        self.extra: dict[str, float] = {}

    def run(self) -> dict[str, float | None]:
        """Run the turn.

        :returns: the measured values, by name
        :raises: CloudError if the image does not become active
        """
        shell.run(['sync'])
        since = time.monotonic()
        idle = Counters(self.state, self.subject)
        # Observe the undisturbed guest.
        time.sleep(self.baseline)
        idle_used, idle_rate = idle.used(), idle.neighbours_rate()
        log = self.state.log('nova-compute')
        offset = log.stat().st_size
        counters = Counters(self.state, self.subject)
        try:
            with samples.Space(self.state, self.subject.server,
                               counters.compute) as space, \
                    counters.processes:
                if self.contestant.is_put:
                    self._put()
                else:
                    self._snapshot()
            rate = counters.neighbours_rate()
            used, memory = counters.used(), counters.memory()
            space.check()
            counters.processes.check()
            size = self.client.get('glance', f'/images/{self.image}')['size']
        finally:
            if self.image:
                self.client.delete('glance', f'/images/{self.image}',
                                   missing_ok=True)
        with open(log, errors='replace') as lines:
            lines.seek(offset)
            text = lines.read()
        return {**self._wall(), **self._guest(since),
                **self._logged(text), **self.extra,
                **self._costs(used, idle_used, size), 'sent': size,
                'neighbours': rate, 'neighbours_before': idle_rate,
                'memory': memory,
                **{f'space_{kind}': peak
                   for kind, peak in space.peaks.items()}}

    def _put(self) -> None:
        self.image = self.client.post('glance', '/images', {
            'name': 'benchmark', 'disk_format': 'qcow2',
            'container_format': 'bare'})['id']
        child = subprocess.run(
            [self.state.bin('python'), PUT, cloud_state.url('glance'),
             self.image, self.subject.ready_made,
             str(self.contestant.chunk)],
            input=self.client.token(), text=True, capture_output=True,
            timeout=TIMEOUT)
        if child.returncode:
            raise errors.CommandFailed(
                [str(PUT)], child.returncode, child.stderr)
        result = json.loads(child.stdout)
        self.times.begin, self.times.clock = result['begin'], result['clock']
        self.times.active = self.times.end = result['begin'] + result['wall']
        self.extra['client_cpu'] = result['cpu']

    def _snapshot(self) -> None:
        strategy = self.contestant.strategy
        self.client.token()
        self.times.begin, self.times.clock = time.monotonic(), time.time()
        self.image = servers.action(
            self.client, self.subject.server, 'createImage', {
                'name': 'benchmark',
                'metadata': ({'snapext_strategy': strategy}
                             if strategy else {})})['image_id']
        self.times.active = await_active(
            self.state, self.client, self.image, self.contestant.name)
        wait.until('the end of the snapshot', lambda: not servers.show(
            self.client, self.subject.server)['OS-EXT-STS:task_state'],
            TIMEOUT, interval=0.2)
        self.times.end = time.monotonic()

    def _wall(self) -> dict[str, float]:
        return {'wall': self.times.active - self.times.begin,
                'until_released': self.times.end - self.times.begin}

    def _guest(self, since: float) -> dict[str, float | None]:
        """Return figures of the guest, before and during the snapshot."""
        if self.contestant.off:
            return {}
        console, times = self.subject.console, self.times
        before = (since, since + self.baseline)
        during = (times.begin, times.end)
        found = {'stall': console.pause(*during),
                 'stall_before': console.pause(*before),
                 'records': console.rate(*during),
                 'records_before': console.rate(*before)}
        if console.loads:
            found['rewrites'] = console.load_rate(*during)
            found['rewrites_before'] = console.load_rate(*before)
        return found

    def _logged(self, log: str) -> dict[str, float | None]:
        """Return the figures in the driver's log."""
        found: dict[str, float | None] = {}
        if frozen := FROZEN.search(log):
            when = datetime.datetime.fromisoformat(frozen[1]).timestamp()
            found['until_frozen'] = when - self.times.clock
        if finished := FINISHED.search(log):
            logged = dict(re.findall(r'(\w+)=([\d.]+)', finished[1]))
            found['freeze'] = float(logged['freeze'])
            found['read'] = int(logged['read'])
        return found

    def _costs(self, used: dict[str, process.Usage],
               idle: dict[str, process.Usage], size: int
               ) -> dict[str, float | None]:
        """Return CPU time, page faults and bytes of the processes.

        QEMU's figures are without those of the undisturbed guest.
        """
        length = self.times.end - self.times.begin
        share = 0 if self.contestant.off else length / self.baseline
        qemu, gib = used['qemu'], self.subject.data / GIB
        found: dict[str, float | None] = {
            'compute_cpu': used['compute'].cpu,
            'qemu_cpu': qemu.cpu - idle['qemu'].cpu * share,
            'glance_cpu': used['glance'].cpu,
            'glance_faults': used['glance'].minor_faults}
        for name in ('compute_cpu', 'qemu_cpu', 'glance_cpu'):
            found[f'{name}_per_gib'] = found[name] / gib  # type: ignore
        for who in ('compute', 'glance', 'qemu'):
            for field in ('read_calls', 'write_calls', 'read_disk',
                          'written_disk'):
                found[f'{who}_{field}'] = getattr(used[who], field)
        if (self.contestant.name.startswith('Nova')
                or self.contestant.name == contestants.LIBVIRT_DRIVER):
            # Nova logs no figure: add those of qemu-img, the upload, and
            # QEMU's mirror.
            found['read'] = used['compute'].read_calls + max(
                qemu.read_calls - idle['qemu'].read_calls * share,
                qemu.read_disk - idle['qemu'].read_disk * share, 0)
        return found


def await_active(state: cloud_state.State, client: api.Client, image: str,
                 contestant: str) -> float:
    """Wait until an image is active.

    Requests cost CPU time of Glance, so they are sent only when the stored
    file does not grow.

    :param contestant: its name, for errors
    :returns: the time when it was active, on our monotonic clock
    :raises: CloudError if the image is gone
    """
    stored = state.glance_store / image
    size, requested = 0, time.monotonic()

    def became_active() -> float | None:
        nonlocal size, requested
        before, size = size, samples.size_of(stored)
        now = time.monotonic()
        if (not (size and size == before)
                and now - requested < API_POLL_INTERVAL):
            return None
        requested = now
        return now if _is_active(state, client, image, contestant) else None

    return wait.until(f'image {image} active', became_active,
                      TIMEOUT, interval=POLL_INTERVAL)


def _is_active(state: cloud_state.State, client: api.Client, image: str,
               contestant: str) -> bool:
    try:
        shown = client.get('glance', f'/images/{image}')
    except errors.ApiError as exc:
        if exc.code != 404:
            raise
        raise errors.CloudError(
            f'{contestant}: the snapshot failed; the end of nova-compute\'s '
            f'log:\n{wait.tail(state.log("nova-compute"))}') from exc
    return shown['status'] == 'active'


def pid_of(service: services.Service, state: cloud_state.State) -> int:
    """Return the process id of a service.

    :raises: CloudError if it does not run
    """
    identity = service.daemon(state).identity()
    if identity is None:
        raise errors.CloudError(f'{service.name} does not run: start it with '
                                f'`tools/cloud up`')
    return identity.pid
