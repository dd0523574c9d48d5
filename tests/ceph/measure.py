# SPDX-License-Identifier: Apache-2.0
"""Snapshots of one guest in Ceph, ours and Nova's own in turns.

As a program, on a cloud of `tools/cloud up --ceph`::

    python -m tests.ceph.measure [ROUNDS] > results.json

A table goes to standard error. The guest writes all the time, about 60 records
a second, and shows each on its console: its longest stall is the longest time
between two of them, by its own clock. It is compared with a period of the same
run in which no snapshot is taken.
"""

import contextlib
import itertools
import json
import pathlib
import shutil
import statistics
import sys
import tempfile
import time

from devcloud import api
from devcloud import compute
from devcloud import records
from devcloud import servers
from devcloud import state as cloud_state
from devcloud import wait
from devcloud import watch

from tests.ceph import base
from tests.e2e import base as e2e

#: Seconds without a snapshot, in each round.
BASELINE = 10

#: Names of the contestants: the strategy to request, and the format. Each
#: change of the format restarts nova-compute, so those of one are together.
CONTESTANTS = {
    'rbd, direct': ('rbd', 'raw'),
    'Nova, direct': ('native', 'raw'),
    'rbd, streamed qcow2': ('rbd', 'qcow2'),
    'backup, qcow2': ('backup', 'qcow2'),
    'Nova, not direct': ('native', 'qcow2'),
}

FORMATS = {'raw': base.RAW, 'qcow2': base.QCOW2}


class Run:
    """One run with one guest."""

    def __init__(self, rounds):
        self.state = cloud_state.State.default()
        self.client = api.Client.demo(self.state)
        self.rounds = rounds
        self.server = ''

    def run(self):
        """Return the measurements, by contestant."""
        found = {name: [] for name in ('no snapshot', *CONTESTANTS)}
        with contextlib.ExitStack() as stack:
            stack.callback(compute.configure, self.state, (), reset=True)
            self.configure('raw')
            self.server = servers.create(
                self.client, 'measure',
                servers.image_id(self.client, base.IN_CEPH), 'snap.tiny')
            stack.callback(servers.delete, self.client, self.server)
            self.directory = pathlib.Path(
                tempfile.mkdtemp(dir=self.state.root))
            stack.callback(shutil.rmtree, self.directory)
            with self.console() as console:
                wait.until('the guest to write', lambda: (
                    console.last() > e2e.WARM_UP_RECORDS), e2e.BOOT_TIMEOUT)
            for number in range(self.rounds):
                for image_format in FORMATS:
                    self.configure(image_format)
                    found['no snapshot'].append(self.baseline())
                    for name, (strategy, of) in CONTESTANTS.items():
                        if of == image_format:
                            found[name].append(self.measure(strategy))
                            print(number, name, found[name][-1],
                                  file=sys.stderr, flush=True)
        return found

    def configure(self, image_format):
        compute.configure(self.state, (*base.RBD, *FORMATS[image_format]),
                          reset=True)

    def console(self):
        return watch.Console(
            self.state.instances / self.server / 'console.log')

    def baseline(self):
        with self.console() as console:
            console.poll()
            begin = time.monotonic()
            time.sleep(BASELINE)
            return {'stall': console.stall(begin, time.monotonic())}

    def measure(self, strategy):
        """Take a snapshot, and return what was measured."""
        with self.console() as console, \
                watch.DiskUsage(self.state.snapshots) as usage, \
                watch.TaskStates(self.state, self.server) as tasks:
            # The records before are no part of it.
            time.sleep(1)
            image = servers.action(
                self.client, self.server, 'createImage', {
                    'name': 'measure', 'metadata': {
                        'snapext_strategy': strategy}})['image_id']
            try:
                end = wait.until('the end of the snapshot', tasks.ended,
                                 e2e.SNAPSHOT_TIMEOUT)
                # The guest, if it was suspended, writes again.
                last = console.last()
                wait.until('the guest to write', lambda: (
                    console.last() > last), e2e.BOOT_TIMEOUT)
                begin = tasks.began()
                stall = console.stall(begin - 1, time.monotonic())
                return {'wall': end - begin, 'stall': stall,
                        'gap': self.gap(console, begin),
                        'staged': usage.peak, **self.content(image)}
            finally:
                self.client.delete('glance', f'/images/{image}',
                                   missing_ok=True)

    @staticmethod
    def gap(console, begin):
        """Return the longest time between two records by our clock.

        The clock of a guest that is suspended stands still too.
        """
        times = [one.when for one in console.records if one.when >= begin - 1]
        return max((later - earlier for earlier, later
                    in itertools.pairwise(times)), default=0.0)

    def content(self, image):
        """Return what an image has, and what it tells of itself."""
        shown = wait.until(f'image {image}', lambda: (
            (found := self.client.get('glance', f'/images/{image}'))
            ['status'] == 'active' and found), e2e.SNAPSHOT_TIMEOUT)
        file = self.directory / image
        servers.download(self.client, image, file)
        report = records.verify(file, shown['disk_format'], self.directory)
        file.unlink()
        return {'consistency': shown.get('snapext_consistency'),
                'clean': (report.filesystem.clean and
                          not report.filesystem.needs_recovery),
                'complete': report.records.complete}


def table(found):
    """Return a table of the medians, with the lowest and highest values."""
    lines = [f'{"":22}{"wall s":>20}{"stall s":>20}{"gap s":>20}'
             f'{"staged MiB":>12}  consistency, file system']
    for name, runs in found.items():
        cells = ''.join(f'{_spread(runs, key):>20}'
                        for key in ('wall', 'stall', 'gap'))
        staged = max((run.get('staged', 0) for run in runs), default=0)
        kinds = {(run['consistency'], 'clean' if run['clean'] else
                  'needs recovery') for run in runs if 'clean' in run}
        told = '; '.join(f'{consistency}, {files}' for consistency, files
                         in sorted(kinds, key=str))
        lines.append(
            f'{name:22}{cells}{staged / 1024 ** 2:12.0f}  {told}')
    return '\n'.join(lines)


def _spread(runs, key):
    values = [run[key] for run in runs if key in run]
    if not values:
        return ''
    return (f'{statistics.median(values):.2f} '
            f'({min(values):.2f}-{max(values):.2f})')


if __name__ == '__main__':
    results = Run(int(sys.argv[1]) if len(sys.argv) > 1 else 3).run()
    print(table(results), file=sys.stderr)
    json.dump(results, sys.stdout, indent=2)
