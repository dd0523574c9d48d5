# SPDX-License-Identifier: Apache-2.0
"""Guests and their snapshots, as a plain user of the cloud meets them."""

import contextlib
import dataclasses
import pathlib
import re
import shutil
import subprocess
import tempfile
import time

from devcloud import api
from devcloud import cloud
from devcloud import compute
from devcloud import errors
from devcloud import records
from devcloud import servers
from devcloud import state as cloud_state
from devcloud import wait
from devcloud import watch
from oslotest import base

# Seconds for a guest to boot without KVM, and for a snapshot.
BOOT_TIMEOUT = 240
SNAPSHOT_TIMEOUT = 300

# Records that a guest writes before it is of use.
WARM_UP_RECORDS = 20

FINISHED = re.compile(
    r'Snapshot of root disk \S+ finished: strategy=(\w+) consistency=(\w+) '
    r'freeze=([\d.]+)s read=(\d+) sent=(\d+)')


@dataclasses.dataclass
class Snapshot:
    """A snapshot, as seen from outside.

    :ivar task_states: that the server went through, without repetition
    :ivar acknowledged: the last record acknowledged before it was asked for
    :ivar host_space: bytes in the snapshots directory, at the most
    :ivar log: what nova-compute logged meanwhile
    """

    image: str
    task_states: list
    acknowledged: int
    host_space: int
    log: str

    @property
    def strategy(self):
        return self.figures[0]

    @property
    def consistency(self):
        return self.figures[1]

    @property
    def figures(self):
        finished = FINISHED.search(self.log)
        return finished.groups() if finished else (None,) * 5


class CloudTestCase(base.BaseTestCase):
    """Tests on a configuration of nova-compute.

    :cvar CONFIGURATION: its settings, as `tools/cloud configure` takes them
    """

    CONFIGURATION: tuple[str, ...] = ()

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.state = cloud_state.State.default()
        cls.client = api.Client.demo(cls.state)
        cls.host = cloud.hypervisor(cls.state)
        cls.enterClassContext(configuration(*cls.CONFIGURATION))
        cls.place = pathlib.Path(tempfile.mkdtemp(dir=cls.state.root))
        cls.addClassCleanup(shutil.rmtree, cls.place)

    @classmethod
    def boot(cls, image='snap-guest', flavor='snap.tiny', add_cleanup=None):
        """Boot a guest, and wait until it writes records."""
        if image.startswith('snap-'):
            image = servers.image_id(cls.client, image)
        server = servers.create(cls.client, 'e2e', image, flavor)
        (add_cleanup or cls.addClassCleanup)(
            servers.delete, cls.client, server)
        cls.await_records(server, WARM_UP_RECORDS)
        return server

    @classmethod
    def console(cls, server):
        console = watch.Console(cls.state.instances / server / 'console.log')
        console.look()
        return console

    @classmethod
    def last_record(cls, server):
        return cls.console(server).last()

    @classmethod
    def await_records(cls, server, more):
        """Wait until a guest has written more records than it has now."""
        goal = cls.last_record(server) + more
        wait.until(f'record {goal} of server {server}',
                   lambda: cls.last_record(server) >= goal, BOOT_TIMEOUT)

    def action(self, server, name, status, arguments=None):
        servers.action(self.client, server, name, arguments)
        servers.await_status(self.client, server, status)

    def watched(self, server, request):
        """Note the task states of a server until a request is done with.

        :param request: called to ask for it
        :returns: the task states, and what request returned
        """
        seen = []
        answer = request()
        deadline = time.monotonic() + SNAPSHOT_TIMEOUT
        while True:
            task = servers.show(self.client, server)['OS-EXT-STS:task_state']
            if task not in seen[-1:]:
                seen.append(task)
            if task is None:
                return seen[:-1], answer
            self.assertLess(time.monotonic(), deadline, seen)

    def snapshot(self, server):
        """Ask for an image of a server, and wait until its task is over."""
        log = self.state.log('nova-compute')
        offset = log.stat().st_size
        acknowledged = self.last_record(server)
        with watch.DiskUsage(self.state.snapshots) as usage:
            task_states, answer = self.watched(
                server, lambda: servers.action(
                    self.client, server, 'createImage', {'name': 'e2e'}))
        usage.check()
        image = answer['image_id']
        self.addCleanup(self.client.delete, 'glance', f'/images/{image}',
                        missing_ok=True)
        with open(log, errors='replace') as lines:
            lines.seek(offset)
            return Snapshot(image, task_states, acknowledged, usage.peak,
                            lines.read())

    def image(self, image):
        return self.client.get('glance', f'/images/{image}')

    def image_exists(self, image):
        try:
            self.image(image)
        except errors.ApiError as error:
            if error.code == 404:
                return False
            raise
        return True

    def assert_image_whole(self, image, image_format='qcow2'):
        """Prove an image by what is in Glance.

        :returns: what records.verify() found in it
        """
        shown = self.image(image)
        self.assertEqual(('active', image_format),
                         (shown['status'], shown['disk_format']))
        file = self.place / image
        digest = servers.download(self.client, image, file,
                                  shown['os_hash_algo'])
        try:
            self.assertEqual(shown['os_hash_value'], digest)
            if image_format == 'qcow2':
                subprocess.run(['qemu-img', 'check', '-q', file], check=True)
            report = records.verify(file, image_format, self.place)
        finally:
            file.unlink()
        self.assertTrue(report.records.complete, report.records)
        self.assertIsNone(report.filesystem.first_gap)
        return report

    def assert_snapshot_right(self, shot, image_format='qcow2'):
        """Prove that an image holds all up to its instant, and no gap."""
        report = self.assert_image_whole(shot.image, image_format)
        self.assertGreaterEqual(report.records.last, shot.acknowledged)
        return report

    def assert_nothing_left(self, server):
        self.assertEqual([], list(self.state.snapshots.iterdir()))
        domain = self.host.virsh('domname', server).strip()
        self.assertRegex(self.host.virsh('dominfo', domain),
                         r'Persistent:\s+yes')
        if 'running' in self.host.virsh('domstate', domain):
            self.assertRegex(self.host.virsh('domjobinfo', domain),
                             r'Job type:\s+None')
        self.assertEqual([], qemu_nbds(str(self.state.nova)))

    def assert_writes_on(self, server):
        """Prove that a guest lives, and has skipped no record."""
        self.await_records(server, 3)
        numbers = [seen.number for seen in self.console(server).seen]
        self.assertIsNone(records.first_gap(numbers))


def qemu_nbds(path):
    """The command lines of qemu-nbd processes that name a path."""
    found = []
    for process in pathlib.Path('/proc').glob('[0-9]*/cmdline'):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            words = process.read_bytes().decode(errors='replace').split('\0')
            if words[0].endswith('qemu-nbd') and any(
                    path in word for word in words):
                found.append(words)
    return found


@contextlib.contextmanager
def configuration(*settings):
    """Give nova-compute other settings for a while, on top of those it has."""
    state = cloud_state.State.default()
    before = [f'{section}.{name}={value}'
              for section, options in compute.overrides(state).items()
              for name, value in options.items()]
    if settings:
        compute.configure(state, settings, reset=False)
    try:
        yield
    finally:
        if settings:
            compute.configure(state, before, reset=True)
