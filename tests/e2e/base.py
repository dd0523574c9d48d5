# SPDX-License-Identifier: Apache-2.0
"""Guests and their snapshots, for tests that act as a user of the cloud."""

import atexit
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

# Seconds that a guest may take to boot without KVM, and that a snapshot may
# take.
BOOT_TIMEOUT = 240
SNAPSHOT_TIMEOUT = 300

# Records that a guest writes before a test uses it.
WARM_UP_RECORDS = 20

# The task states of an image create in the documentation of Nova, in order.
IMAGE_STATES = ('image_snapshot_pending', 'image_snapshot',
                'image_pending_upload', 'image_uploading')

# The servers of shared_guest(). The last one is in use.
SHARED: list[str] = []

FINISHED = re.compile(
    r'Snapshot of root disk \S+ finished: strategy=(\w+) consistency=(\w+) '
    r'freeze=([\d.]+)s read=(\d+) sent=(\d+)')


@dataclasses.dataclass
class Snapshot:
    """A snapshot, as its user and an operator see it.

    :ivar image: id of its image
    :ivar task_states: task states of the server, in order
    :ivar acknowledged: number of the last record that the guest had
        acknowledged before the request
    :ivar host_space: maximum size of the snapshots directory, in bytes
    :ivar log: log of nova-compute during the snapshot
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
        """Return the values in the log line of a finished snapshot."""
        finished = FINISHED.search(self.log)
        return finished.groups() if finished else (None,) * 5


class CloudTestCase(base.BaseTestCase):
    """Tests with one configuration of nova-compute.

    :cvar CONFIGURATION: settings, in the form of `tools/cloud configure`
    :cvar lost_lines: numbers of records that the guest's file may lack
    """

    CONFIGURATION: tuple[str, ...] = ()
    lost_lines: frozenset[int] = frozenset()

    @classmethod
    def configure(cls, *more):
        """Configure nova-compute with the settings of the class.

        If its settings change, it is restarted, which takes some seconds.

        :param more: further settings
        """
        compute.configure(cls.state, (*cls.CONFIGURATION, *more), reset=True)

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.state = cloud_state.State.default()
        cls.client = api.Client.demo(cls.state)
        cls.host = cloud.hypervisor(cls.state)
        cls.configure()
        cls.directory = pathlib.Path(tempfile.mkdtemp(dir=cls.state.root))
        cls.addClassCleanup(shutil.rmtree, cls.directory)

    @classmethod
    def use_glance_proxy(cls):
        """Place a proxy between Nova and Glance. Call it before configure().

        :returns: the proxy
        """
        glance_proxy = cls.enterClassContext(
            proxy.GlanceProxy(cloud_state.url('glance')))
        cls.CONFIGURATION = (*cls.CONFIGURATION,
                             f'glance.endpoint_override={glance_proxy.url}')
        return glance_proxy

    def setUp(self):
        super().setUp()
        # The previous test may have configured other settings.
        self.configure()

    @classmethod
    def boot(cls, image='snap-guest', flavor='snap.tiny', add_cleanup=None,
             name='e2e', **properties):
        """Boot a guest, and wait until it writes records.

        :param image: id of an image, or name of a guest image of the cloud
        :param add_cleanup: function that registers the deletion of the
            server; None: at the end of the class
        :param properties: further properties of the server
        :returns: id of the server
        """
        if image.startswith('snap-'):
            image = servers.image_id(cls.client, image)
        server = servers.create(cls.client, name, image, flavor,
                                **properties)
        (add_cleanup or cls.addClassCleanup)(
            servers.delete, cls.client, server)
        cls.await_records(server, WARM_UP_RECORDS)
        return server

    @classmethod
    def shared_guest(cls):
        """Return a guest that several classes use, and that none stops.

        A boot takes longer than most tests.

        :returns: id of the server
        """
        if SHARED:
            shown = servers.show(cls.client, SHARED[-1])
            if (shown['status'] == 'ACTIVE' and
                    not shown['OS-EXT-STS:task_state']):
                cls.await_records(SHARED[-1], 1)
                return SHARED[-1]
        SHARED.append(cls.boot(add_cleanup=atexit.register))
        return SHARED[-1]

    @classmethod
    def console(cls, server):
        console = watch.Console(cls.state.instances / server / 'console.log')
        console.poll()
        return console

    @classmethod
    def last_record(cls, server):
        return cls.console(server).last()

    @classmethod
    def await_records(cls, server, more):
        """Wait until a guest has written some more records.

        :param more: number of records
        """
        goal = cls.last_record(server) + more
        wait.until(f'record {goal} of server {server}',
                   lambda: cls.last_record(server) >= goal, BOOT_TIMEOUT)

    @classmethod
    def expect_lost_line(cls, server):
        """Let the file of a guest that lost its power lack a line.

        The guest first writes a record to its partition, where it finds the
        record when it boots, and then a line to a file.

        :param server: id of a server that is off
        """
        cls.lost_lines |= {cls.last_record(server) + 1}

    def action(self, server, name, status, arguments=None):
        """Request an action, and wait until the server has a status."""
        servers.action(self.client, server, name, arguments)
        servers.await_status(self.client, server, status)

    @classmethod
    def run_action(cls, server, name, arguments=None, client=None):
        """Request an action, and wait until the server's task ends.

        :param client: client that makes the request; None: the user's
        :returns: the task states, the response, and the log of nova-compute
            during the action
        """
        log = cls.state.log('nova-compute')
        offset = log.stat().st_size
        with watch.TaskStates(cls.state, server) as tasks:
            response = servers.action(
                client or cls.client, server, name, arguments)
            wait.until(f'the end of {name} of server {server}',
                       tasks.ended, SNAPSHOT_TIMEOUT)
        with open(log, errors='replace') as lines:
            lines.seek(offset)
            return tasks.names(), response, lines.read()

    @classmethod
    def snapshot(cls, server, add_cleanup=None, strategy=None, **properties):
        """Take a snapshot of a server, and wait until its task ends.

        :param add_cleanup: function that registers the deletion of the
            image; None: at the end of the class
        :param strategy: name of the strategy to request; None: request none
        :param properties: further properties of the image
        """
        acknowledged = cls.last_record(server)
        with watch.DiskUsage(cls.state.snapshots) as usage:
            task_states, response, log = cls.run_action(
                server, 'createImage', {
                    'name': 'e2e',
                    'metadata': properties | (
                        {'snapext_strategy': strategy} if strategy else {})})
        usage.check()
        image = response['image_id']
        (add_cleanup or cls.addClassCleanup)(
            cls.client.delete, 'glance', f'/images/{image}', missing_ok=True)
        return Snapshot(image, task_states, acknowledged, usage.peak, log)

    @classmethod
    def refusal_text(cls, server, name=None):
        """Return the error that the user sees of the last, refused snapshot.

        It is the name of an event of the server's last action.

        :param name: of the action, if others may have followed it
        """
        path = f'/servers/{server}/os-instance-actions'
        action = max((action for action in cls.client.get(
            'nova-api', path)['instanceActions']
            if name in (None, action['action'])),
            key=lambda action: action['start_time'])
        shown = cls.client.get('nova-api', f'{path}/{action["request_id"]}')
        failed = [event['event'] for event in shown['instanceAction']['events']
                  if event['result'] == 'Error']
        [text] = {name for name in failed if not name.startswith('compute_')}
        return text

    @classmethod
    def image(cls, image):
        return cls.client.get('glance', f'/images/{image}')

    @classmethod
    def copy_image(cls, name):
        """Create another image with the same content and properties.

        :param name: name of the original
        :returns: id of the copy
        """
        original = cls.image(servers.image_id(cls.client, name))
        copy = cls.client.post('glance', '/images', {
            key: original[key] for key in original
            if key in ('disk_format', 'container_format', 'min_disk')
            or key.startswith(('hw_', 'os_type'))} | {'name': 'e2e-copy'})
        cls.addClassCleanup(cls.client.delete, 'glance',
                            f'/images/{copy["id"]}')
        file = cls.directory / 'copy'
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
        """Download an image, check its digest, and yield the file."""
        shown = self.image(image)
        file = self.directory / image
        try:
            digest = servers.download(self.client, image, file,
                                      shown['os_hash_algo'])
            self.assertEqual(shown['os_hash_value'], digest)
            yield file
        finally:
            file.unlink()

    def assert_image_complete(self, image, image_format='qcow2',
                              acknowledged=WARM_UP_RECORDS):
        """Check that an image in Glance has all records up to a number.

        :param acknowledged: number of the last record that the guest had
            acknowledged before its disk was frozen
        :returns: the report of records.verify()
        """
        shown = self.image(image)
        self.assertEqual(('active', image_format),
                         (shown['status'], shown['disk_format']))
        with self.downloaded(image) as file:
            if image_format == 'qcow2':
                subprocess.run(['qemu-img', 'check', '-q', file], check=True)
            report = records.verify(file, image_format, self.directory)
        self.assertTrue(report.records.complete, report.records)
        self.assertGreaterEqual(report.records.last, acknowledged)
        self.assertEqual([], [number for number in report.filesystem.missing
                              if number not in self.lost_lines])
        return report

    def assert_snapshot_complete(self, snapshot, image_format='qcow2'):
        """Check that the image of a snapshot has all acknowledged records."""
        return self.assert_image_complete(
            snapshot.image, image_format, snapshot.acknowledged)

    def hang_libvirtd(self):
        """Stop libvirtd with SIGSTOP. It continues at the end of the test.

        :returns: the daemon; its process may be another one by then
        """
        _virtlogd, libvirtd = self.host.daemons
        self.addCleanup(lambda: libvirtd.identity().signal(signal.SIGCONT))
        libvirtd.identity().signal(signal.SIGSTOP)
        return libvirtd

    def assert_nothing_left(self, server):
        """Check that nothing of a snapshot is left on the host."""
        self.assertEqual([], list(self.state.snapshots.glob('*')))
        domain = self.host.virsh('domname', server).strip()
        self.assertRegex(self.host.virsh('dominfo', domain),
                         r'Persistent:\s+yes')
        if 'running' in self.host.virsh('domstate', domain):
            self.assertRegex(self.host.virsh('domjobinfo', domain),
                             r'Job type:\s+None')
        self.assertEqual([], qemu_nbds(str(self.state.nova)))

    def assert_boots_with_records(self, server, last):
        """Check that a booting guest finds all records up to the last one.

        :param last: number of that record
        """
        found = wait.until(
            f'server {server} to verify its records',
            lambda: self.console(server).find(
                r'^FOUND (\d+) LAST (\d+) GAPS (\d+) BAD (\d+)'),
            BOOT_TIMEOUT)
        self.assertEqual([last, last, 0, 0],
                         [int(word) for word in found.groups()])
        # The image may be of an instant between this record and its line.
        type(self).lost_lines |= {last}

    def assert_keeps_writing(self, server):
        """Check that a guest writes further records, without a gap."""
        self.await_records(server, 3)
        # Since its last boot: the console's log begins again at each boot.
        numbers = [record.number for record in self.console(server).records]
        self.assertEqual(
            list(range(numbers[0], numbers[0] + len(numbers))), numbers)


def qemu_nbds(path):
    """Return the command lines of qemu-nbd processes that contain a path."""
    found = []
    for process in pathlib.Path('/proc').glob('[0-9]*/cmdline'):
        with contextlib.suppress(OSError):  # The process has ended.
            words = process.read_bytes().decode(errors='replace').split('\0')
            if words[0].endswith('qemu-nbd') and any(
                    path in word for word in words):
                found.append(words)
    return found
