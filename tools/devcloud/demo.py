# SPDX-License-Identifier: Apache-2.0
"""Take a snapshot of a guest while it writes, and check the result."""

import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time
from typing import Any

from devcloud import api
from devcloud import cloud
from devcloud import errors
from devcloud import layout
from devcloud import libvirtd
from devcloud import records
from devcloud import servers
from devcloud import shell
from devcloud import state as cloud_state
from devcloud import wait
from devcloud import watch

IMAGE = 'snap-guest-mixed'
FLAVOR = 'snap.mixed'
NAMES = ('demo-guest', 'demo-snapshot', 'demo-second-guest')

#: Number of records that the guest writes before the snapshot.
WARM_UP_RECORDS = 100

#: Maximum seconds of a guest's boot without KVM, and of the snapshot.
BOOT_TIMEOUT = 180
SNAPSHOT_TIMEOUT = 600

#: The driver's last and first line about a snapshot in nova-compute's log.
FINISHED = re.compile(r'Snapshot of root disk \S+ finished: (.*)')
BEGINNING = re.compile(r'^(\S+ \S+) .*Beginning (live |cold )?snapshot')


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Observations of the snapshot.

    Times are on the monotonic clock of this machine, in seconds.
    """

    image: str
    begin: float
    end: float
    #: The last acknowledged record when the image's first byte arrived.
    acknowledged_after: int
    host_space: int
    task_states: list[str]


class Demo:
    """One run.

    :param keep: do not delete the guests and the image
    """

    def __init__(self, state: cloud_state.State, keep: bool) -> None:
        self.state = state
        self.keep = keep
        self.client = api.Client.demo(state)
        self.host: libvirtd.Libvirtd = cloud.hypervisor(state)
        self.compute_log = state.log('nova-compute')
        self.failures = 0

    def run(self) -> bool:
        """Run the demo.

        :returns: whether all checks passed
        """
        with contextlib.ExitStack() as stack:
            if not self.keep:
                self._remove()
                stack.callback(self._remove)
            self._run(stack)
        return not self.failures

    def _run(self, stack: contextlib.ExitStack) -> None:
        self.say(f'booting {NAMES[0]} from {IMAGE}')
        first = servers.create(self.client, NAMES[0], servers.image_id(
            self.client, IMAGE), FLAVOR)
        console = stack.enter_context(self.console(first))
        domain = self.domain(first)
        events = stack.enter_context(watch.DomainEvents(self.host, domain))
        self.say('waiting until the guest writes records')
        wait.until('records of the guest',
                   lambda: console.last() >= WARM_UP_RECORDS, BOOT_TIMEOUT)
        offset = self.compute_log.stat().st_size
        disk = self.root_disk(domain)
        shot = self.take_snapshot(first, console)
        wait.until('records after the snapshot',
                   lambda: console.last() > shot.acknowledged_after + 10, 60)
        log = self.compute_log.read_bytes()[offset:].decode()

        try:
            image = self.client.get('glance', f'/images/{shot.image}')
        except errors.ApiError as exc:
            raise errors.CloudError(
                f'the snapshot failed: its image was deleted; the end of '
                f"nova-compute's log:\n{wait.tail(self.compute_log)}"
            ) from exc
        self.prove('the image is active', image['status'] == 'active',
                   image['status'])
        directory = self.state.root / 'demo'
        directory.mkdir(exist_ok=True)
        stack.callback(shutil.rmtree, directory)
        file = directory / 'image.qcow2'
        self.prove_content(image, file)
        report = records.verify(file, scratch=directory)
        file.unlink()
        self.prove_records(report, console, shot, log)
        self.prove_nothing_left(domain, disk)
        self.prove_never_stopped(console, events, shot)
        self.prove_boots(shot.image, report)
        self.print_figures(console, shot, image, log)

    def say(self, text: str) -> None:
        print(f'- {text}', flush=True)

    def prove(self, claim: str, is_true: bool, evidence: object = '') -> None:
        """Print whether a claim is true, and count it if it is not."""
        self.failures += not is_true
        mark = 'ok    ' if is_true else 'FAILED'
        print(f'{mark} {claim}' + (f' ({evidence})' if evidence else ''),
              flush=True)

    def console(self, server: str) -> watch.Console:
        return watch.Console(self.state.instances / server / 'console.log')

    def domain(self, server: str) -> str:
        """Return the name of a server's domain."""
        return self.host.virsh('domname', server).strip()

    def root_disk(self, domain: str) -> str:
        """Return libvirt's list of the domain's disks."""
        return self.host.virsh('domblklist', domain).strip()

    def take_snapshot(self, server: str, console: watch.Console) -> Snapshot:
        """Take a snapshot of the server as its owner, and observe it."""
        command = ['openstack', 'server', 'image', 'create', '--name',
                   NAMES[1], '-f', 'json', server]
        self.say(f'$ {shlex.join(command)}')
        env = dict(re.findall(r'export (OS_\w+)=(.*)',
                              cloud.environment(self.state, 'demo')))
        request = subprocess.Popen(
            [self.state.bin(command[0]), *command[1:]], text=True,
            stdout=subprocess.PIPE, env={**os.environ, **env})
        with (watch.DiskUsage(self.state.snapshots) as usage,
              watch.TaskStates(self.state, server) as tasks):
            begin = wait.until(
                'the start of the snapshot', lambda: tasks.began()
                or (time.monotonic() if request.poll() else None), 60)
            output, _ = request.communicate(timeout=60)
            if request.returncode:
                raise errors.CloudError('Nova refused the snapshot')
            image = json.loads(output)['id']
            acknowledged = self.follow(server, image, begin, tasks, console)
            end = tasks.ended() or time.monotonic()
        usage.check()
        return Snapshot(image, begin, end, acknowledged, usage.peak,
                        tasks.names())

    def follow(self, server: str, image: str, begin: float,
               tasks: watch.TaskStates, console: watch.Console) -> int:
        """Show the progress of a snapshot until it has ended.

        :param begin: its begin, on the monotonic clock
        :returns: the last acknowledged record when the image's first byte
            arrived
        """
        stored = self.state.glance_store / image
        acknowledged = 0
        printed = ''
        while not tasks.ended():
            size = stored.stat().st_size if stored.exists() else 0
            if size and not acknowledged:
                acknowledged = console.last()
            seconds = time.monotonic() - begin
            shown = servers.show(self.client, server)
            line = (f'  {seconds:5.1f} s  '
                    f'{shown["OS-EXT-STS:task_state"] or "":22} '
                    f'progress {shown.get("progress", 0):3} %  '
                    f'in Glance {size / layout.MIB:7.1f} MiB  '
                    f'guest at record {console.last()}')
            self.show_progress(line, printed)
            printed = line
            if seconds > SNAPSHOT_TIMEOUT:
                raise errors.TimedOut(f'the snapshot did not end within '
                                      f'{SNAPSHOT_TIMEOUT} s')
            time.sleep(0.1)
        print()
        return acknowledged or console.last()

    @staticmethod
    def show_progress(line: str, previous: str) -> None:
        """Replace the line on a terminal; else print one line a second."""
        if sys.stdout.isatty():
            print(f'\r{line}', end='', flush=True)
        elif line[:6] != previous[:6]:
            print(line, flush=True)

    def prove_content(self, image: dict[str, Any],
                      file: pathlib.Path) -> None:
        """Download the image and check its file."""
        digest = servers.download(self.client, image['id'], file,
                                  image['os_hash_algo'])
        self.prove('its content has the digest that Glance stored',
                   digest == image['os_hash_value'],
                   f'{image["os_hash_algo"]} {digest[:16]}...')
        try:
            checked = shell.run(['qemu-img', 'check', file])
        except errors.CommandFailed as exc:
            self.prove('qemu-img check finds no error', False, exc.output)
        else:
            self.prove('qemu-img check finds no error', True,
                       checked.splitlines()[0])

    def prove_records(self, report: records.Report, console: watch.Console,
                      shot: Snapshot, log: str) -> None:
        """Prove that the image ends at the freeze.

        It has all records from before the freeze, and none from after it.
        """
        found, files = report.records, report.filesystem
        self.prove('the image has all records, complete and in order',
                   found.complete and files.first_gap is None,
                   f'1 to {found.last}')
        beginnings = [match for line in log.splitlines()
                      if (match := BEGINNING.match(line))]
        low = 0
        if beginnings:
            low = console.last_before(datetime.datetime.fromisoformat(
                beginnings[0][1]).timestamp())
        # One more record may be on disk, but not acknowledged.
        high = shot.acknowledged_after + 1
        self.prove('the last record is from the time of the freeze',
                   bool(low) and low <= found.last <= high
                   and found.last - 1 <= files.last <= found.last,
                   f'record {found.last}, expected {low} to {high}' if low
                   else 'nova-compute has logged no beginning')
        self.prove('its file system is clean, without journal recovery',
                   files.clean and not files.needs_recovery,
                   'e2fsck -fn' if files.clean else files.check)

    def prove_nothing_left(self, domain: str, disk: str) -> None:
        """Prove that nothing is left on the host's disk and in libvirt."""
        left = [str(path) for path in self.state.snapshots.rglob('*')]
        self.prove('nothing is left in the snapshots directory', not left,
                   ' '.join(left))
        job = self.host.virsh('domjobinfo', domain)
        self.prove('no job runs in libvirt', re.search(
            r'Job type:\s+None', job) is not None)
        info = self.host.virsh('dominfo', domain)
        self.prove('the domain is persistent and has the same disk as before',
                   re.search(r'Persistent:\s+yes', info) is not None
                   and self.root_disk(domain) == disk)
        servers_left = [path.parent.name for path in
                        pathlib.Path('/proc').glob('[0-9]*/cmdline')
                        if self.serves_our_disk(path)]
        self.prove('no qemu-nbd is left', not servers_left,
                   ' '.join(servers_left))

    def serves_our_disk(self, cmdline: pathlib.Path) -> bool:
        """Return whether a process is a qemu-nbd for one of Nova's disks."""
        try:
            words = cmdline.read_bytes().split(b'\0')
        except OSError:  # The process has ended.
            return False
        return (words[0].endswith(b'qemu-nbd')
                and any(str(self.state.nova).encode() in word
                        for word in words))

    def prove_never_stopped(self, console: watch.Console,
                            events: watch.DomainEvents,
                            shot: Snapshot) -> None:
        """Prove that the first guest never stopped writing."""
        numbers = [one.number for one in console.records]
        during = [one for one in console.records
                  if shot.begin <= one.when <= shot.end]
        self.prove('the first guest wrote all the time, without a gap',
                   bool(during) and records.first_gap(numbers) is None,
                   f'{len(during)} records during the snapshot')
        reported = events.lines()
        self.prove('libvirt reported no stop of the first guest', not reported,
                   '; '.join(reported))

    def prove_boots(self, image: str, report: records.Report) -> None:
        """Prove that a guest boots from the image and finds all records."""
        self.say(f'booting {NAMES[2]} from {NAMES[1]}')
        second = servers.create(self.client, NAMES[2], image, FLAVOR)
        with self.console(second) as console:
            found = wait.until(
                'the second guest to verify its records',
                lambda: console.find(r'^FOUND (\d+) LAST (\d+) GAPS (\d+) '
                                     r'BAD (\d+)'), BOOT_TIMEOUT)
            last = report.records.last
            self.prove('a second guest boots and finds all records',
                       [int(word) for word in found.groups()]
                       == [last, last, 0, 0], found[0])
            self.prove('it has mounted its file system without recovery',
                       console.find('^MOUNTED clean') is not None)
            wait.until('records of the second guest',
                       lambda: console.last() > last, BOOT_TIMEOUT)
            self.prove('it continues with the next record',
                       console.records[0].number == last + 1,
                       f'record {console.records[0].number}')

    def print_figures(self, console: watch.Console, shot: Snapshot,
                      image: dict[str, Any], log: str) -> None:
        """Print a table of the snapshot's figures."""
        finished = FINISHED.search(log)
        logged = dict(re.findall(r'(\w+)=(\S+)',
                                 finished[1] if finished else ''))
        self.prove('nova-compute has logged the figures',
                   finished is not None)
        start = console.records[0].when
        rows = [
            ('strategy', logged.get('strategy', '-')),
            ('consistency', logged.get('consistency', '-')),
            ('wall time, request to end',
             f'{shot.end - shot.begin:.1f} s'),
            ('wall time in the driver', logged.get('wall', '-')),
            ('freeze', logged.get('freeze', '-')),
            ('bytes read', _mib(logged.get('read'))),
            ('bytes sent', _mib(logged.get('sent'))),
            ('image in Glance', _mib(image['size'])),
            ('peak host space', _mib(shot.host_space)),
            ('longest pause between records, before',
             f'{console.stall(start, shot.begin):.3f} s'),
            ('longest pause between records, during',
             f'{console.stall(shot.begin, shot.end):.3f} s'),
            ('task states', ', '.join(shot.task_states)),
        ]
        width = max(len(name) for name, _ in rows)
        print()
        for name, value in rows:
            print(f'  {name:{width}}  {value}')

    def _remove(self) -> None:
        """Delete the guests and images of this run and of earlier runs."""
        for server in self.client.get('nova-api', '/servers')['servers']:
            if server['name'] in NAMES:
                servers.delete(self.client, server['id'])
        for image in self.client.get('glance', '/images?visibility=private'
                                     )['images']:
            if image['name'] == NAMES[1]:
                self.client.delete('glance', f'/images/{image["id"]}')


def _mib(size: object) -> str:
    """Return a number of bytes as text, in MiB."""
    if size is None:
        return '-'
    return f'{int(str(size)) / layout.MIB:,.1f} MiB'
