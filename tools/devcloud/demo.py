# SPDX-License-Identifier: Apache-2.0
"""Snapshot a guest while it writes, and prove what came of it."""

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

#: Records that the guest writes before its snapshot, for comparison.
WARM_UP_RECORDS = 100

#: Seconds for a guest to boot without KVM; for the snapshot.
BOOT_TIMEOUT = 180
SNAPSHOT_TIMEOUT = 600

#: The driver's last line about a snapshot in nova-compute's log.
FINISHED = re.compile(r'Snapshot of root disk \S+ finished: (.*)')
BEGINNING = re.compile(r'^(\S+ \S+) .*Beginning (live |cold )?snapshot')


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What was seen of the snapshot.

    Times are on our monotonic clock, in seconds.
    """

    image: str
    begin: float
    end: float
    #: The last record acknowledged when the image's first byte had come.
    acknowledged_after: int
    host_space: int
    task_states: list[str]


class Demo:
    """One run.

    :param keep: leave the guests and the image behind
    """

    def __init__(self, state: cloud_state.State, keep: bool) -> None:
        self.state = state
        self.keep = keep
        self.client = api.Client.demo(state)
        self.host: libvirtd.Libvirtd = cloud.hypervisor(state)
        self.compute_log = state.log('nova-compute')
        self.failures = 0

    def run(self) -> bool:
        """Do it all.

        :returns: whether every proof held
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
        self.say('waiting until it writes records')
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
                f'the snapshot failed, its image is gone; the end of '
                f"nova-compute's log:\n{wait.tail(self.compute_log)}"
            ) from exc
        self.prove('the image is active', image['status'] == 'active',
                   image['status'])
        place = self.state.root / 'demo'
        place.mkdir(exist_ok=True)
        stack.callback(shutil.rmtree, place)
        file = place / 'image.qcow2'
        self.prove_content(image, file)
        report = records.verify(file, scratch=place)
        file.unlink()
        self.prove_records(report, console, shot, log)
        self.prove_nothing_left(domain, disk)
        self.prove_never_stopped(console, events, shot)
        self.prove_boots(shot.image, report)
        self.print_figures(console, shot, image, log)

    def say(self, text: str) -> None:
        print(f'- {text}', flush=True)

    def prove(self, claim: str, holds: bool, evidence: object = '') -> None:
        """Print whether a claim holds, and count it if it does not."""
        self.failures += not holds
        mark = 'ok    ' if holds else 'FAILED'
        print(f'{mark} {claim}' + (f' ({evidence})' if evidence else ''),
              flush=True)

    def console(self, server: str) -> watch.Console:
        return watch.Console(self.state.instances / server / 'console.log')

    def domain(self, server: str) -> str:
        """The name of a server's domain."""
        return self.host.virsh('domname', server).strip()

    def root_disk(self, domain: str) -> str:
        """What libvirt has as the domain's disks."""
        return self.host.virsh('domblklist', domain).strip()

    def take_snapshot(self, server: str, console: watch.Console) -> Snapshot:
        """Snapshot the server as its owner would, and watch it happen."""
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
            answer, _ = request.communicate(timeout=60)
            if request.returncode:
                raise errors.CloudError('the snapshot was refused')
            image = json.loads(answer)['id']
            acknowledged = self.follow(server, image, begin, tasks, console)
            end = tasks.ended() or time.monotonic()
        usage.check()
        return Snapshot(image, begin, end, acknowledged, usage.peak,
                        tasks.names())

    def follow(self, server: str, image: str, begin: float,
               tasks: watch.TaskStates, console: watch.Console) -> int:
        """Show the progress of a snapshot until it has ended.

        :param begin: when it began, on our monotonic clock
        :returns: the last record acknowledged when the image's first byte
            had come
        """
        stored = self.state.glance_store / image
        acknowledged = 0
        shown = ''
        while not tasks.ended():
            size = stored.stat().st_size if stored.exists() else 0
            if size and not acknowledged:
                acknowledged = console.last()
            seconds = time.monotonic() - begin
            seen = servers.show(self.client, server)
            line = (f'  {seconds:5.1f} s  '
                    f'{seen["OS-EXT-STS:task_state"] or "":22} '
                    f'progress {seen.get("progress", 0):3} %  '
                    f'in Glance {size / layout.MIB:7.1f} MiB  '
                    f'guest at record {console.last()}')
            self.show_progress(line, shown)
            shown = line
            if seconds > SNAPSHOT_TIMEOUT:
                raise errors.TimedOut(f'the snapshot did not end in '
                                      f'{SNAPSHOT_TIMEOUT} s')
            time.sleep(0.1)
        print()
        return acknowledged or console.last()

    @staticmethod
    def show_progress(line: str, before: str) -> None:
        """One line that changes on a terminal; elsewhere, one a second."""
        if sys.stdout.isatty():
            print(f'\r{line}', end='', flush=True)
        elif line[:6] != before[:6]:
            print(line, flush=True)

    def prove_content(self, image: dict[str, Any],
                      file: pathlib.Path) -> None:
        """Download the image and check it by itself."""
        digest = servers.download(self.client, image['id'], file,
                                  image['os_hash_algo'])
        self.prove('its digest is the one that Glance keeps',
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
        """All that was acknowledged before the freeze, none from after."""
        found, files = report.records, report.filesystem
        self.prove('every record in the image is there, whole and in order',
                   found.complete and files.first_gap is None,
                   f'1 to {found.last}')
        beginnings = [match for line in log.splitlines()
                      if (match := BEGINNING.match(line))]
        low = 0
        if beginnings:
            low = console.last_before(datetime.datetime.fromisoformat(
                beginnings[0][1]).timestamp())
        # One more may have been on its way to its acknowledgement.
        high = shot.acknowledged_after + 1
        self.prove('they end where the disk was frozen',
                   bool(low) and low <= found.last <= high
                   and found.last - 1 <= files.last <= found.last,
                   f'record {low} was acknowledged before, {high} is the '
                   f'first that came later' if low else
                   'nova-compute has logged no beginning')
        self.prove('its filesystem is clean, without journal recovery',
                   files.clean and not files.needs_recovery,
                   'e2fsck -fn' if files.clean else files.check)

    def prove_nothing_left(self, domain: str, disk: str) -> None:
        """Neither on the host's disk nor in libvirt."""
        left = [str(path) for path in self.state.snapshots.rglob('*')]
        self.prove('nothing is left in the snapshots directory', not left,
                   ' '.join(left))
        job = self.host.virsh('domjobinfo', domain)
        self.prove('no job runs in libvirt', re.search(
            r'Job type:\s+None', job) is not None)
        info = self.host.virsh('dominfo', domain)
        self.prove('the domain is persistent, on the disk that it had',
                   re.search(r'Persistent:\s+yes', info) is not None
                   and self.root_disk(domain) == disk)
        servers_left = [path.parent.name for path in
                        pathlib.Path('/proc').glob('[0-9]*/cmdline')
                        if self.serves_our_disk(path)]
        self.prove('no qemu-nbd is left', not servers_left,
                   ' '.join(servers_left))

    def serves_our_disk(self, cmdline: pathlib.Path) -> bool:
        """Whether a process is a qemu-nbd for one of Nova's disks."""
        try:
            words = cmdline.read_bytes().split(b'\0')
        except OSError:  # it has ended meanwhile
            return False
        return (words[0].endswith(b'qemu-nbd')
                and any(str(self.state.nova).encode() in word
                        for word in words))

    def prove_never_stopped(self, console: watch.Console,
                            events: watch.DomainEvents,
                            shot: Snapshot) -> None:
        """The first guest went on writing all the time."""
        numbers = [one.number for one in console.seen]
        during = [one for one in console.seen
                  if shot.begin <= one.when <= shot.end]
        self.prove('the first guest wrote all the time, without a gap',
                   bool(during) and records.first_gap(numbers) is None,
                   f'{len(during)} records during the snapshot')
        reported = events.lines()
        self.prove('libvirt reported no stop of it', not reported,
                   '; '.join(reported))

    def prove_boots(self, image: str, report: records.Report) -> None:
        """A second guest boots from the image and finds the same records."""
        self.say(f'booting {NAMES[2]} from {NAMES[1]}')
        second = servers.create(self.client, NAMES[2], image, FLAVOR)
        with self.console(second) as console:
            found = wait.until(
                'the second guest to verify its records',
                lambda: console.find(r'^FOUND (\d+) LAST (\d+) GAPS (\d+) '
                                     r'BAD (\d+)'), BOOT_TIMEOUT)
            last = report.records.last
            self.prove('a second guest boots and finds all the records',
                       [int(word) for word in found.groups()]
                       == [last, last, 0, 0], found[0])
            self.prove('it has mounted its filesystem without recovery',
                       console.find('^MOUNTED clean') is not None)
            wait.until('records of the second guest',
                       lambda: console.last() > last, BOOT_TIMEOUT)
            self.prove('it writes on from there',
                       console.seen[0].number == last + 1,
                       f'record {console.seen[0].number}')

    def print_figures(self, console: watch.Console, shot: Snapshot,
                      image: dict[str, Any], log: str) -> None:
        """A table of what the snapshot cost."""
        finished = FINISHED.search(log)
        told = dict(re.findall(r'(\w+)=(\S+)',
                               finished[1] if finished else ''))
        self.prove('nova-compute has logged the figures',
                   finished is not None)
        start = console.seen[0].when
        rows = [
            ('strategy', told.get('strategy', '-')),
            ('consistency', told.get('consistency', '-')),
            ('wall time, request to end',
             f'{shot.end - shot.begin:.1f} s'),
            ('wall time in the driver', told.get('wall', '-')),
            ('freeze', told.get('freeze', '-')),
            ('bytes read', _mib(told.get('read'))),
            ('bytes sent', _mib(told.get('sent'))),
            ('image in Glance', _mib(image['size'])),
            ('host space at peak', _mib(shot.host_space)),
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
        """Delete the guests and images of this run, or of an earlier one."""
        for server in self.client.get('nova-api', '/servers')['servers']:
            if server['name'] in NAMES:
                servers.delete(self.client, server['id'])
        for image in self.client.get('glance', '/images?visibility=private'
                                     )['images']:
            if image['name'] == NAMES[1]:
                self.client.delete('glance', f'/images/{image["id"]}')


def _mib(size: object) -> str:
    """A number of bytes, for people."""
    if size is None:
        return '-'
    return f'{int(str(size)) / layout.MIB:,.1f} MiB'
