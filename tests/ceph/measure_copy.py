# SPDX-License-Identifier: Apache-2.0
"""A raw disk of this host on its way into Glance's pool, in two ways.

One is the best upload that Glance can do: the whole raw disk, read from
memory, in one PUT to a Glance that stores in Ceph. The other one writes what
is data into a new RBD image of the same pool, past Glance. As a program, on a
cloud of `tools/cloud up --ceph`::

    python -m tests.ceph.measure_copy [ROUNDS] > results.json

A table goes to standard error.
"""

import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from devcloud import api
from devcloud import ceph
from devcloud import state as cloud_state
from oslo_utils import units

#: Name, size and data of each disk, in GiB.
DISKS = {'8 GiB, 1 GiB of it data': (8, 1), '2 GiB, all data': (2, 2)}

BLOCK = units.Mi


class Run:
    """One run on one cloud."""

    def __init__(self, rounds, directory):
        self.state = cloud_state.State.default()
        self.client = api.Client.admin(self.state)
        self.cluster = ceph.cluster(self.state)
        self.rounds = rounds
        self.directory = pathlib.Path(directory)

    def run(self):
        """Return the seconds of each copy, by disk and way."""
        found = {}
        for name, (size, data) in DISKS.items():
            disk = self.create(size, data)
            ways = found[name] = {'PUT': [], 'past Glance': []}
            for number in range(self.rounds):
                for way, copy in (('PUT', self.put),
                                  ('past Glance', self.write)):
                    read_all(disk)
                    ways[way].append(copy(disk))
                    print(number, name, way, ways[way][-1],
                          file=sys.stderr, flush=True)
            disk.unlink()
        return found

    def create(self, size, data):
        """Create a disk whose data is spread over all of it, in 4 MiB."""
        disk = self.directory / 'disk'
        with open(disk, 'wb') as file:
            file.truncate(size * units.Gi)
            piece = 4 * units.Mi
            for number in range(data * units.Gi // piece):
                file.seek(number * piece * size // data)
                file.write(os.urandom(piece))
        return disk

    def put(self, disk):
        image = self.client.post('glance', '/images', {
            'name': 'measure', 'disk_format': 'raw',
            'container_format': 'bare'})['id']
        try:
            begin = time.monotonic()
            self.client.open(
                'PUT', 'glance', f'/images/{image}/file', blocks(disk), {
                    'Content-Type': 'application/octet-stream',
                    'Content-Length': str(disk.stat().st_size),
                    'X-Image-Meta-Store': 'ceph'}).close()
            return time.monotonic() - begin
        finally:
            self.client.delete('glance', f'/images/{image}')

    def write(self, disk):
        begin = time.monotonic()
        subprocess.run((
            'qemu-img', 'convert', '-f', 'raw', '-O', 'raw', '-W', '-m', '16',
            '-t', 'none', str(disk),
            f'rbd:images/measure:id=glance:conf={self.cluster.configuration}',
        ), check=True)
        seconds = time.monotonic() - begin
        self.cluster.rbd('rm', 'images/measure')
        return seconds


def blocks(disk):
    with open(disk, 'rb', buffering=0) as file:
        while block := file.read(BLOCK):
            yield block


def read_all(disk):
    for _ in blocks(disk):
        pass


def table(found):
    """Return the medians, and their ratio in each round."""
    lines = [f'{"":28}{"PUT s":>10}{"past s":>10}   ratio of each round']
    for name, ways in found.items():
        ratios = ' '.join(
            f'{past / put:.2f}' for put, past in zip(
                ways['PUT'], ways['past Glance'], strict=True))
        lines.append(f'{name:28}{statistics.median(ways["PUT"]):10.1f}'
                     f'{statistics.median(ways["past Glance"]):10.1f}   '
                     f'{ratios}')
    return '\n'.join(lines)


if __name__ == '__main__':
    with contextlib.ExitStack() as closing:
        results = Run(
            int(sys.argv[1]) if len(sys.argv) > 1 else 3,
            closing.enter_context(tempfile.TemporaryDirectory(
                dir=cloud_state.State.default().root))).run()
    print(table(results), file=sys.stderr)
    json.dump(results, sys.stdout, indent=2)
