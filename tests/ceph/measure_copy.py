# SPDX-License-Identifier: Apache-2.0
"""A raw disk of this host on its way into Glance's pool, in three ways.

One is the best upload that Glance can do: the whole raw disk, read from
memory, in one PUT to a Glance that stores in Ceph. The others write what is
data into a new RBD image of the same pool, past Glance: qemu-img, and ours,
which also reads it back and compares. As a program, on a cloud of `tools/cloud
up --ceph`::

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
from devcloud import wait
from oslo_utils import units

#: Name, size and data of each disk, in GiB.
DISKS = {'8 GiB, 1 GiB of it data': (8, 1), '2 GiB, all data': (2, 2)}

BLOCK = units.Mi

# Runs in nova-compute's Python: socket of the disk's server, user and
# ceph.conf.
COPY = """
import sys
from unittest import mock
from nova_snapext import cancel, conf, read
from nova_snapext.hypervisor import ceph
from nova_snapext.resources import rbd_copy
socket, user, configuration = sys.argv[1:]
conf.CONF([], project='nova', default_config_files=[])
conf.CONF.set_override('images_rbd_ceph_conf', configuration, 'libvirt')
copy = rbd_copy.RbdCopy(mock.Mock(), ceph.ImageSpec('images', 'measure', user),
                        True)
with read.Disk(read.unix_uri(socket, '')) as disk:
    copy.fill(disk, cancel.CancelToken(), lambda *_: None)
with open('/proc/self/status') as status:
    print(next(line for line in status if line.startswith('VmHWM')).split()[1])
"""


WAYS = ('PUT', 'qemu-img', 'nova-snapext')


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
            ways = found[name] = {way: [] for way in WAYS}
            for number in range(self.rounds):
                for way, copy in zip(WAYS, (self.put, self.write, self.copy),
                                     strict=True):
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

    def copy(self, disk):
        socket = self.directory / 'nbd'
        server = subprocess.Popen((
            'qemu-nbd', '--read-only', '-f', 'raw', '--socket', str(socket),
            str(disk)))
        try:
            wait.until('the socket of qemu-nbd', socket.exists, 10)
            begin = time.monotonic()
            peak = subprocess.run(
                (self.state.venv / 'bin/python', '-c', COPY, socket, 'nova',
                 self.cluster.configuration), check=True, text=True,
                stdout=subprocess.PIPE).stdout
            seconds = time.monotonic() - begin
        finally:
            server.terminate()
            server.wait()
        print(f'peak memory {int(peak) // 1024} MiB', file=sys.stderr)
        self.cluster.rbd('snap', 'unprotect', 'images/measure@snap')
        self.cluster.rbd('snap', 'purge', '--no-progress', 'images/measure')
        self.cluster.rbd('rm', '--no-progress', 'images/measure')
        return seconds


def blocks(disk):
    with open(disk, 'rb', buffering=0) as file:
        while block := file.read(BLOCK):
            yield block


def read_all(disk):
    for _ in blocks(disk):
        pass


def table(found):
    """Return the medians, and their ratio to the PUT in each round."""
    lines = [f'{"":28}{"seconds":>10}   ratio of each round']
    for name, ways in found.items():
        for way, seconds in ways.items():
            ratios = ' '.join(f'{one / put:.2f}' for one, put in zip(
                seconds, ways['PUT'], strict=True))
            lines.append(f'{name + ": " + way:40}'
                         f'{statistics.median(seconds):10.1f}   {ratios}')
    return '\n'.join(lines)


if __name__ == '__main__':
    with contextlib.ExitStack() as closing:
        results = Run(
            int(sys.argv[1]) if len(sys.argv) > 1 else 3,
            closing.enter_context(tempfile.TemporaryDirectory(
                dir=cloud_state.State.default().root))).run()
    print(table(results), file=sys.stderr)
    json.dump(results, sys.stdout, indent=2)
