# SPDX-License-Identifier: Apache-2.0
"""Guests and their snapshots, as a plain user of the cloud meets them."""

import contextlib
import dataclasses
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile

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

from tests.e2e import proxy

# Seconds for a guest to boot without KVM, and for a snapshot.
BOOT_TIMEOUT = 240
SNAPSHOT_TIMEOUT = 300

# Records that a guest writes before it is of use.
WARM_UP_RECORDS = 20

# The task states that Nova documents of an image create, in order.
IMAGE_STATES = ('image_snapshot_pending', 'image_snapshot',
                'image_pending_upload', 'image_uploading')

FINISHED = re.compile(
    r'Snapshot of root disk \S+ finished: strategy=(\w+) consistency=(\w+) '
    r'freeze=([\d.]+)s read=(\d+) sent=(\d+)')


@dataclasses.dataclass
class Snapshot:
    """A snapshot, as seen from outside.

    :ivar task_states: that the server went through
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
    :cvar lost_lines: numbers of records that the guest's file may be without
    """

    CONFIGURATION: tuple[str, ...] = ()
    lost_lines: frozenset[int] = frozenset()

    @classmethod
    def configure(cls, *more):
        """Give nova-compute the settings of the class, and some more.

        It is restarted if it had others, which takes some seconds.
        """
        compute.configure(cls.state, (*cls.CONFIGURATION, *more), reset=True)

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.state = cloud_state.State.default()
        cls.client = api.Client.demo(cls.state)
        cls.host = cloud.hypervisor(cls.state)
        cls.configure()
        cls.place = pathlib.Path(tempfile.mkdtemp(dir=cls.state.root))
        cls.addClassCleanup(shutil.rmtree, cls.place)

    @classmethod
    def use_glance_proxy(cls):
        """Put a proxy between Nova and Glance; before configure()."""
        between = cls.enterClassContext(
            proxy.GlanceProxy(cloud_state.url('glance')))
        cls.CONFIGURATION = (*cls.CONFIGURATION,
                             f'glance.endpoint_override={between.url}')
        return between

    def setUp(self):
        super().setUp()
        # Where the test before this one had others.
        self.configure()

    @classmethod
    def boot(cls, image='snap-guest', flavor='snap.tiny', add_cleanup=None,
             **properties):
        """Boot a guest, and wait until it writes records."""
        if image.startswith('snap-'):
            image = servers.image_id(cls.client, image)
        server = servers.create(cls.client, 'e2e', image, flavor,
                                **properties)
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

    @classmethod
    def watched(cls, server, name, arguments=None, client=None):
        """Ask for an action, and watch a server until its task is over.

        :param client: who asks, if not the plain user
        :returns: the task states, what was answered, and what nova-compute
            logged meanwhile
        """
        log = cls.state.log('nova-compute')
        offset = log.stat().st_size
        with watch.TaskStates(cls.state, server) as tasks:
            answer = servers.action(client or cls.client, server, name,
                                    arguments)
            wait.until(f'the end of {name} of server {server}',
                       tasks.ended, SNAPSHOT_TIMEOUT)
        with open(log, errors='replace') as lines:
            lines.seek(offset)
            return tasks.names(), answer, lines.read()

    @classmethod
    def snapshot(cls, server, add_cleanup=None, strategy=None):
        """Ask for an image of a server, and wait until its task is over.

        :param strategy: to ask for; None: none
        """
        acknowledged = cls.last_record(server)
        with watch.DiskUsage(cls.state.snapshots) as usage:
            task_states, answer, log = cls.watched(
                server, 'createImage', {
                    'name': 'e2e',
                    'metadata': ({'snapext_strategy': strategy}
                                 if strategy else {})})
        usage.check()
        image = answer['image_id']
        (add_cleanup or cls.addClassCleanup)(
            cls.client.delete, 'glance', f'/images/{image}', missing_ok=True)
        return Snapshot(image, task_states, acknowledged, usage.peak, log)

    @classmethod
    def failure(cls, server):
        """Give what the user is told of a server's last, refused snapshot."""
        path = f'/servers/{server}/os-instance-actions'
        action = max(cls.client.get('nova-api', path)['instanceActions'],
                     key=lambda action: action['start_time'])
        shown = cls.client.get('nova-api', f'{path}/{action["request_id"]}')
        failed = [event['event'] for event in shown['instanceAction']['events']
                  if event['result'] == 'Error']
        [told] = set(failed) - {'compute_snapext_snapshot'}
        return told

    @classmethod
    def image(cls, image):
        return cls.client.get('glance', f'/images/{image}')

    @classmethod
    def copy_image(cls, name):
        """Make another image with the same content and properties.

        :returns: its id
        """
        original = cls.image(servers.image_id(cls.client, name))
        copy = cls.client.post('glance', '/images', {
            key: original[key] for key in original
            if key in ('disk_format', 'container_format', 'min_disk')
            or key.startswith(('hw_', 'os_type'))} | {'name': 'e2e-copy'})
        cls.addClassCleanup(cls.client.delete, 'glance',
                            f'/images/{copy["id"]}')
        file = cls.place / 'copy'
        servers.download(cls.client, original['id'], file)
        with open(file, 'rb') as content:
            cls.client.open(
                'PUT', 'glance', f'/images/{copy["id"]}/file', content,
                {'Content-Type': 'application/octet-stream'}).close()
        file.unlink()
        return copy['id']

    @classmethod
    def image_exists(cls, image):
        try:
            cls.image(image)
        except errors.ApiError as error:
            if error.code == 404:
                return False
            raise
        return True

    @contextlib.contextmanager
    def downloaded(self, image):
        """Give what Glance holds of an image, as a file."""
        shown = self.image(image)
        file = self.place / image
        try:
            digest = servers.download(self.client, image, file,
                                      shown['os_hash_algo'])
            self.assertEqual(shown['os_hash_value'], digest)
            yield file
        finally:
            file.unlink()

    def assert_image_whole(self, image, image_format='qcow2',
                           acknowledged=WARM_UP_RECORDS):
        """Prove that an image in Glance holds all up to some record, no gap.

        :param acknowledged: by the guest, before its disk was frozen
        :returns: what records.verify() found in it
        """
        shown = self.image(image)
        self.assertEqual(('active', image_format),
                         (shown['status'], shown['disk_format']))
        with self.downloaded(image) as file:
            if image_format == 'qcow2':
                subprocess.run(['qemu-img', 'check', '-q', file], check=True)
            report = records.verify(file, image_format, self.place)
        self.assertTrue(report.records.complete, report.records)
        self.assertGreaterEqual(report.records.last, acknowledged)
        self.assertEqual([], [number for number in report.filesystem.missing
                              if number not in self.lost_lines])
        return report

    def assert_snapshot_right(self, shot, image_format='qcow2'):
        """Prove that an image holds all up to its instant, and no gap."""
        return self.assert_image_whole(shot.image, image_format,
                                       shot.acknowledged)

    def hang_libvirtd(self):
        """Have libvirtd answer nothing, until the end of the test at most.

        :returns: the daemon; it may be another process by then
        """
        _virtlogd, libvirtd = self.host.daemons
        self.addCleanup(lambda: libvirtd.identity().signal(signal.SIGCONT))
        libvirtd.identity().signal(signal.SIGSTOP)
        return libvirtd

    def assert_nothing_left(self, server):
        self.assertEqual([], list(self.state.snapshots.glob('*')))
        domain = self.host.virsh('domname', server).strip()
        self.assertRegex(self.host.virsh('dominfo', domain),
                         r'Persistent:\s+yes')
        if 'running' in self.host.virsh('domstate', domain):
            self.assertRegex(self.host.virsh('domjobinfo', domain),
                             r'Job type:\s+None')
        self.assertEqual([], qemu_nbds(str(self.state.nova)))

    def assert_boots_with_records(self, server, last):
        """Prove that a guest that boots finds all records up to the last."""
        found = wait.until(
            f'server {server} to verify its records',
            lambda: self.console(server).find(
                r'^FOUND (\d+) LAST (\d+) GAPS (\d+) BAD (\d+)'),
            BOOT_TIMEOUT)
        self.assertEqual([last, last, 0, 0],
                         [int(word) for word in found.groups()])

    def assert_writes_on(self, server):
        """Prove that a guest lives, and has skipped no record."""
        self.await_records(server, 3)
        # Since its last boot: each begins the console's log anew.
        numbers = [seen.number for seen in self.console(server).seen]
        self.assertEqual(
            list(range(numbers[0], numbers[0] + len(numbers))), numbers)


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
