# SPDX-License-Identifier: Apache-2.0
"""Snapshots that something happens to, and what has to be true afterwards."""

import contextlib
import dataclasses
import difflib
import functools
import pathlib
import re
import shutil
from xml.etree import ElementTree

from devcloud import compute
from devcloud import errors
from devcloud import process
from devcloud import servers
from devcloud import services
from devcloud import shell
from devcloud import state as cloud_state
from devcloud import wait

from tests.e2e import base as e2e
from tests.e2e import matrix
from tests.faults import faults
from tests.faults import points
from tests.faults import table

# Seconds for what goes by itself, soon after nova-compute is back.
SETTLE_TIMEOUT = 30

# What libvirt numbers and names anew at each start of a guest: ids, nodes of
# a chain, devices, and paths that the domain's id is part of. (It forgets the
# name of a device that QEMU has not when it is itself started anew.) What an
# agent is at the moment. Nova's notes on the instance, which it writes anew
# when it starts one.
OF_ONE_START = re.compile(
    r" (?:id|index|state)='[^']*'|(?<=/domain-)\d+(?=-)|/dev/pts/\d+|"
    r"<alias name='(?!ua-)[^']*'/>|<metadata>.*?</metadata>", re.DOTALL)

# The file of the journal's directory that is no snapshot's.
LOCK = 'lock'

# Programs that nova-compute starts on a disk.
DISK_PROGRAMS = ('qemu-nbd', 'qemu-img')


def in_order(definition):
    """Give a definition with its devices in an order that does not change.

    libvirt lists the controllers of a guest that was restored from its saved
    memory in another one than before.
    """
    domain = ElementTree.fromstring(re.sub(r'>\s+<', '><', definition))
    devices = domain.find('devices')
    devices[:] = sorted(devices, key=ElementTree.tostring)
    ElementTree.indent(domain)
    return ElementTree.tostring(domain, encoding='unicode')


@dataclasses.dataclass(frozen=True)
class Standing:
    """How a server stands, which no snapshot may change.

    :ivar definitions: what it runs by, and what it is started by
    :ivar files: in its directory
    :ivar acknowledged: the last record by then
    """

    status: str
    domain: str
    definitions: tuple[str, ...]
    files: frozenset[str]
    acknowledged: int


class FaultTestCase(e2e.CloudTestCase):
    """One guest after another, each until a fault was too much for it.

    :cvar CASE: whose snapshots are taken
    :cvar FAULT: what happens, in a few words
    """

    CASE: points.Case | None = None
    FAULT = ''
    CONFIGURATION = (matrix.PASSED_OVER,)

    def __init_subclass__(cls):
        """Make a test of each point, named so that they are run in order."""
        super().__init_subclass__()
        for number, point in enumerate(cls.points(), start=1):
            name = f'test_at_{number:02}_{point.identifier}'
            setattr(cls, name, functools.partialmethod(cls.fault_at, point))

    @classmethod
    def points(cls):
        """The points at which something happens, each a test."""
        return ()

    def fault_at(self, point):
        """Have it happen at a point, and prove what has to be true then."""
        raise NotImplementedError

    @classmethod
    def setUpClass(cls):
        cls.server = None
        # Before nova-compute is started with the class's configuration.
        cls.faults = cls.enterClassContext(
            faults.Faults(cloud_state.State.default()))
        super().setUpClass()
        cls.journal = cls.state.nova / 'snapext'
        cls.addClassCleanup(cls.end_guest)

    def setUp(self):
        super().setUp()
        self.faults.disarm()
        if self.server is None:
            self.begin_guest()

    @classmethod
    def begin_guest(cls):
        """Boot a guest, and bring it into the state that the case asks for."""
        cls.server = cls.boot(add_cleanup=lambda *_: None)
        if not cls.CASE.running:
            servers.action(cls.client, cls.server, 'os-stop')
            servers.await_status(cls.client, cls.server, 'SHUTOFF')

    @classmethod
    def end_guest(cls):
        """Delete the guest, and by force what its snapshots have left."""
        server, cls.server = cls.server, None
        cls.faults.disarm()
        compute.start(cls.state)
        if server is not None:
            servers.delete(cls.client, server)
        process.end(cls.disk_programs())
        for left in (*cls.state.snapshots.glob('*'), *cls.journaled()):
            shutil.rmtree(left) if left.is_dir() else left.unlink()

    @contextlib.contextmanager
    def recorded(self, point):
        """Write what comes of the fault to the results.

        A guest that it was too much for is not used again.
        """
        result = {'fault': self.FAULT, 'point': point.name,
                  'strategy': self.CASE.strategy, 'guest': self.CASE.guest}
        try:
            yield result
        except Exception as failure:
            result['failure'] = str(failure).strip()
            self.addCleanup(self.end_guest)
            raise
        finally:
            table.record(result)

    # What happens.

    def ask(self):
        """Ask for a snapshot of the guest.

        :returns: its image
        """
        image = servers.action(self.client, self.server, 'createImage', {
            'name': 'faults',
            'metadata': {'snapext_strategy': self.CASE.strategy},
        })['image_id']
        self.addCleanup(self.client.delete, 'glance', f'/images/{image}',
                        missing_ok=True)
        return image

    def ask_and_await_death(self, point):
        """Have nova-compute killed at a point of a snapshot.

        :returns: the snapshot's image, and the process
        """
        compute_process = self.compute_process()
        self.faults.arm(point)
        image = self.ask()
        wait.until(f'the death of nova-compute, when {point.name}',
                   lambda: self.is_dead(compute_process),
                   e2e.SNAPSHOT_TIMEOUT)
        return image, compute_process

    def is_dead(self, compute_process):
        """Whether nova-compute is; if not, the snapshot has to go on."""
        if not compute_process.is_alive():
            return True
        if (self.task_state() is None and not self.faults.has_acted() and
                compute_process.is_alive()):
            self.fail('The snapshot is over, and has not come to the point')
        return False

    def await_writes(self, point):
        """Have the guest write on, if it can at a point.

        :returns: the last record that it has acknowledged
        """
        if self.CASE.running and point.guest == points.WRITES:
            self.await_records(self.server, 3)
        return self.last_record(self.server)

    def compute_process(self):
        return services.nova_compute(self.state).daemon(self.state).identity()

    # What has to be true.

    def assert_session_ended(self, compute_process):
        """Prove that all that a nova-compute has started ended with it."""
        wait.until(f'the end of the session of process {compute_process.pid}',
                   lambda: not compute_process.session(), SETTLE_TIMEOUT)

    def standing(self):
        status = servers.show(self.client, self.server)['status']
        return Standing(
            status=status,
            domain=self.host.virsh('domstate', self.server),
            definitions=tuple(
                in_order(OF_ONE_START.sub(
                    '', self.host.virsh(*words, self.server)))
                for words in (('dumpxml',), ('dumpxml', '--inactive'))),
            files=frozenset(path.name for path in (
                self.state.instances / self.server).iterdir()),
            acknowledged=self.last_record(self.server))

    def task_state(self):
        shown = servers.show(self.client, self.server)
        return shown['OS-EXT-STS:task_state']

    def image_status(self, image):
        try:
            return self.image(image)['status']
        except errors.ApiError as error:
            if error.code == 404:
                return 'gone'
            raise

    def assert_healed(self, before, image, acknowledged):
        """Prove that all is as before a snapshot, and goes on.

        :param before: how the server stood before
        :param image: of the snapshot
        :param acknowledged: the last record that the guest has acknowledged
        """
        self.assert_all(
            lambda: wait.until('the end of the task',
                               lambda: self.task_state() is None,
                               SETTLE_TIMEOUT),
            lambda: self.assert_stands(before),
            self.assert_no_trace,
            self.assert_alive,
            lambda: self.assert_image_settled(image, before.acknowledged))
        self.assert_all(
            lambda: self.assert_snapshot_works(acknowledged),
            lambda: self.assert_stands(before),
            self.assert_no_trace)

    def assert_all(self, *checks):
        """Make all checks, that all of what is wrong is told."""
        failures = []
        for check in checks:
            try:
                check()
            except (AssertionError, errors.CloudError) as failure:
                failures.append(failure)
        if failures:
            raise AssertionError('\n'.join(map(str, failures))
                                 ) from failures[0]

    def assert_alive(self):
        if self.CASE.running:
            self.assert_writes_on(self.server)

    def assert_stands(self, before):
        now = self.standing()
        self.assertEqual((before.status, before.domain),
                         (now.status, now.domain))
        for old, new in zip(before.definitions, now.definitions, strict=True):
            self.assertEqual([], [
                line for line in difflib.ndiff(old.splitlines(),
                                               new.splitlines())
                if not line.startswith(' ')])
        self.assertEqual(before.files, now.files)

    def assert_no_trace(self):
        """Prove that no job, no file and no process of a snapshot is left."""
        wait.until(f'the end of {DISK_PROGRAMS}',
                   lambda: not self.disk_programs(), SETTLE_TIMEOUT)
        self.assert_nothing_left(self.server)
        self.assertEqual([], self.journaled())
        self.assertEqual('', self.host.virsh(
            'snapshot-list', '--name', self.server).strip())
        disk = self.state.instances / self.server / 'disk'
        self.assertNotIn('snapext', shell.run(
            ['qemu-img', 'snapshot', '-l', '-U', disk]))

    def assert_image_settled(self, image, acknowledged):
        """Prove that an image is gone, or whole.

        :param acknowledged: the last record before it was asked for
        """
        status = wait.until(
            f'image {image} active or gone',
            lambda: {'active': 'active', 'gone': 'gone'}.get(
                self.image_status(image)), SETTLE_TIMEOUT)
        if status == 'active':
            self.assert_image_whole(image, acknowledged=acknowledged)

    def assert_snapshot_works(self, acknowledged):
        """Prove that the next snapshot holds all that the guest has written.

        :param acknowledged: the last record that is known to be
        """
        shot = self.snapshot(self.server, strategy=self.CASE.strategy,
                             add_cleanup=self.addCleanup)
        shown = self.image(shot.image)
        self.assertEqual(self.CASE.strategy, shown['snapshot_strategy'])
        self.assert_image_whole(
            shot.image, acknowledged=max(acknowledged, shot.acknowledged))
        self.client.delete('glance', f'/images/{shot.image}')

    @classmethod
    def journaled(cls):
        """The files of the journal."""
        return [path for path in cls.journal.glob('*') if path.name != LOCK]

    @classmethod
    def disk_programs(cls):
        """The processes of DISK_PROGRAMS that work on Nova's disks."""
        found = []
        for place in pathlib.Path('/proc').glob('[0-9]*'):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                words = (place / 'cmdline').read_text(errors='replace').split(
                    '\0')
                if pathlib.Path(words[0]).name in DISK_PROGRAMS and any(
                        str(cls.state.nova) in word for word in words):
                    found.append(process.Identity.of(int(place.name)))
        return [identity for identity in found if identity]

    def assert_usable(self):
        """Prove that the guest can be stopped, started and rebooted.

        And that it finds each time all that it has written.
        """
        self.assert_alive()
        if self.CASE.running:
            self.action(self.server, 'os-stop', 'SHUTOFF')
        self.action(self.server, 'os-start', 'ACTIVE')
        self.assert_boots_with_all()
        self.action(self.server, 'reboot', 'ACTIVE', {'type': 'HARD'})
        self.assert_boots_with_all()
        self.assert_no_trace()

    def assert_boots_with_all(self, acknowledged=0):
        """Prove that the guest, which boots, finds no gap in its records.

        :param acknowledged: the last record that is known to be
        """
        found = wait.until(
            f'server {self.server} to verify its records',
            lambda: self.console(self.server).find(
                r'^FOUND (\d+) LAST (\d+) GAPS (\d+) BAD (\d+)'),
            e2e.BOOT_TIMEOUT)
        count, last, gaps, bad = (int(word) for word in found.groups())
        self.assertEqual([count, 0, 0], [last, gaps, bad])
        self.assertGreaterEqual(last, acknowledged)
        self.await_records(self.server, 3)
