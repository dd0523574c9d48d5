# SPDX-License-Identifier: Apache-2.0
"""Snapshots with a fault, and the checks of the state after it."""

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

# Seconds for everything that ends without help, soon after nova-compute runs
# again.
SETTLE_TIMEOUT = 30

# The parts of a definition that differ after each start of a guest: the
# numbers and names that libvirt assigns (ids, nodes of a chain, devices, and
# paths with the domain's id), the state of the agent, and Nova's metadata. A
# restarted libvirtd also forgets the alias of a device that QEMU does not
# have.
CHANGED_BY_START = re.compile(
    r" (?:id|index|state)='[^']*'|(?<=/domain-)\d+(?=-)|/dev/pts/\d+|"
    r"<alias name='(?!ua-)[^']*'/>|<metadata>.*?</metadata>", re.DOTALL)

# The file in the journal's directory that belongs to no snapshot.
LOCK = 'lock'

# Programs that nova-compute runs on a disk.
DISK_PROGRAMS = ('qemu-nbd', 'qemu-img')


def with_sorted_devices(definition):
    """Return a definition with its devices in a fixed order.

    libvirt lists the controllers of a guest in another order after the guest
    was restored from its saved memory.
    """
    domain = ElementTree.fromstring(re.sub(r'>\s+<', '><', definition))
    devices = domain.find('devices')
    devices[:] = sorted(devices, key=ElementTree.tostring)
    ElementTree.indent(domain)
    return ElementTree.tostring(domain, encoding='unicode')


@dataclasses.dataclass(frozen=True)
class ServerState:
    """The state of a server that no snapshot may change.

    :ivar status: its status in Nova
    :ivar domain: its domain's state in libvirt
    :ivar definitions: the live and the persistent definition
    :ivar files: names of the files in its directory
    :ivar acknowledged: the last record that the guest has acknowledged
    """

    status: str
    domain: str
    definitions: tuple[str, ...]
    files: frozenset[str]
    acknowledged: int


class FaultTestCase(e2e.CloudTestCase):
    """Snapshots with one fault each, of a guest that all tests share.

    After a fault that was not recovered, the next test boots a new guest.

    :cvar CASE: the strategy and the kind of guest
    :cvar FAULT: the kind of fault, as in the table of results
    """

    CASE: points.Case | None = None
    FAULT = ''
    CONFIGURATION = (matrix.ALLOW_ALL,)

    def __init_subclass__(cls):
        """Create a test of each point. The names sort in the same order."""
        super().__init_subclass__()
        for number, point in enumerate(cls.points(), start=1):
            name = f'test_at_{number:02}_{point.identifier}'
            setattr(cls, name, functools.partialmethod(cls.fault_at, point))

    @classmethod
    def points(cls):
        """Return the points of the faults. Each becomes a test."""
        return ()

    def fault_at(self, point):
        """Cause the fault at a point, and check the state after it."""
        raise NotImplementedError

    @classmethod
    def setUpClass(cls):
        cls.server = None
        # Before nova-compute starts with the configuration of this class.
        cls.faults = cls.enterClassContext(
            faults.Faults(cloud_state.State.default()))
        super().setUpClass()
        cls.journal = cls.state.nova / 'snapext'
        cls.addClassCleanup(cls.end_case)

    def setUp(self):
        super().setUp()
        self.faults.disarm()
        if self.server is None:
            self.start_case()

    @classmethod
    def start_case(cls):
        """Boot a guest, and bring it into the state of the case."""
        cls.server = cls.boot(add_cleanup=lambda *_: None)
        if not cls.CASE.running:
            servers.action(cls.client, cls.server, 'os-stop')
            servers.await_status(cls.client, cls.server, 'SHUTOFF')

    @classmethod
    def end_case(cls):
        """Delete the guest, and remove by force all that is left of it."""
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
        """Record the result of a fault.

        After a fault that was not recovered, the guest is not used again.
        """
        result = {'fault': self.FAULT, 'point': point.name,
                  'strategy': self.CASE.strategy, 'guest': self.CASE.guest}
        try:
            yield result
        except Exception as failure:
            result['failure'] = str(failure).strip()
            self.addCleanup(self.end_case)
            raise
        finally:
            table.record(result)

    # The snapshot and its fault.

    def request_snapshot(self):
        """Request a snapshot of the guest.

        :returns: id of its image
        """
        image = servers.action(self.client, self.server, 'createImage', {
            'name': 'faults',
            'metadata': {'snapext_strategy': self.CASE.strategy},
        })['image_id']
        self.addCleanup(self.client.delete, 'glance', f'/images/{image}',
                        missing_ok=True)
        return image

    def snapshot_until_killed(self, point):
        """Request a snapshot, and wait until nova-compute is killed.

        :param point: the point at which it is killed
        :returns: id of the snapshot's image, and the killed process
        """
        compute_process = self.compute_process()
        self.faults.arm(point)
        image = self.request_snapshot()
        wait.until(f'the death of nova-compute at "{point.name}"',
                   lambda: self.has_ended(compute_process),
                   e2e.SNAPSHOT_TIMEOUT)
        return image, compute_process

    def has_ended(self, compute_process):
        """Return whether nova-compute has ended.

        If it has not, its snapshot must still be in progress.
        """
        if not compute_process.is_alive():
            return True
        if (self.task_state() is None and not self.faults.has_occurred() and
                compute_process.is_alive()):
            self.fail('The snapshot has ended without reaching the point')
        return False

    def await_writes(self, point):
        """Wait until the guest has written more, if it can at a point.

        :returns: the last record that it has acknowledged
        """
        if self.CASE.running and point.guest == points.WRITES:
            self.await_records(self.server, 3)
        return self.last_record(self.server)

    def compute_process(self):
        return services.nova_compute(self.state).daemon(self.state).identity()

    # The state after the fault.

    def assert_session_ended(self, compute_process):
        """Check that all processes of a killed nova-compute have ended."""
        wait.until(f'the end of the session of process {compute_process.pid}',
                   lambda: not compute_process.session(), SETTLE_TIMEOUT)

    def server_state(self):
        status = servers.show(self.client, self.server)['status']
        return ServerState(
            status=status,
            domain=self.host.virsh('domstate', self.server),
            definitions=tuple(
                with_sorted_devices(CHANGED_BY_START.sub(
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
                return 'deleted'
            raise

    def assert_recovered(self, before, image, acknowledged):
        """Check that the server is as before, and that snapshots still work.

        :param before: state of the server before the snapshot
        :param image: id of the snapshot's image
        :param acknowledged: the last record that the guest has acknowledged
        """
        self.assert_all(
            lambda: wait.until('the end of the task',
                               lambda: self.task_state() is None,
                               SETTLE_TIMEOUT),
            lambda: self.assert_unchanged(before),
            self.assert_no_trace,
            self.assert_alive,
            lambda: self.assert_image_complete_or_deleted(
                image, before.acknowledged))
        self.assert_all(
            lambda: self.assert_snapshot_works(acknowledged),
            lambda: self.assert_unchanged(before),
            self.assert_no_trace)

    def assert_all(self, *checks):
        """Run all checks, and report all failures together."""
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
            self.assert_keeps_writing(self.server)

    def assert_unchanged(self, before):
        now = self.server_state()
        self.assertEqual((before.status, before.domain),
                         (now.status, now.domain))
        for old, new in zip(before.definitions, now.definitions, strict=True):
            self.assertEqual([], [
                line for line in difflib.ndiff(old.splitlines(),
                                               new.splitlines())
                if not line.startswith(' ')])
        self.assertEqual(before.files, now.files)

    def assert_no_trace(self):
        """Check that no job, file or process of a snapshot is left."""
        wait.until(f"the end of {' and '.join(DISK_PROGRAMS)}",
                   lambda: not self.disk_programs(), SETTLE_TIMEOUT)
        self.assert_nothing_left(self.server)
        wait.until('the journal to be empty', lambda: not self.journaled(),
                   SETTLE_TIMEOUT)
        self.assertEqual('', self.host.virsh(
            'snapshot-list', '--name', self.server).strip())
        self.assert_no_snapshot_in_disk()

    def assert_no_snapshot_in_disk(self):
        disk = self.state.instances / self.server / 'disk'
        self.assertNotIn('snapext', shell.run(
            ['qemu-img', 'snapshot', '-l', '-U', disk]))

    def assert_image_complete_or_deleted(self, image, acknowledged):
        """Check that an image is deleted, or complete.

        :param acknowledged: the last record before it was requested
        """
        status = wait.until(
            f'image {image} to be active or deleted',
            lambda: {'active': 'active', 'deleted': 'deleted'}.get(
                self.image_status(image)), SETTLE_TIMEOUT)
        if status == 'active':
            self.assert_image_complete(image, acknowledged=acknowledged)

    def assert_snapshot_works(self, acknowledged):
        """Check that the next snapshot has all data of the guest.

        :param acknowledged: the last record that the guest has acknowledged
        """
        shot = self.snapshot(self.server, strategy=self.CASE.strategy,
                             add_cleanup=self.addCleanup)
        shown = self.image(shot.image)
        self.assertEqual(self.CASE.strategy, shown['snapext_strategy_used'])
        self.assert_image_complete(
            shot.image, acknowledged=max(acknowledged, shot.acknowledged))
        self.client.delete('glance', f'/images/{shot.image}')

    @classmethod
    def journaled(cls):
        """Return the files of the journal's entries."""
        return [path for path in cls.journal.glob('*') if path.name != LOCK]

    @classmethod
    def disk_programs(cls):
        """Return the processes of DISK_PROGRAMS that use Nova's disks."""
        found = []
        for path in pathlib.Path('/proc').glob('[0-9]*'):
            with contextlib.suppress(OSError):  # it has just ended
                words = (path / 'cmdline').read_text(errors='replace').split(
                    '\0')
                # Another cloud, in a tree of another Debian, has the same
                # paths.
                if (pathlib.Path(words[0]).name in DISK_PROGRAMS and
                        any(str(cls.state.nova) in word for word in words) and
                        (path / 'root').samefile('/')):
                    found.append(process.Identity.of(int(path.name)))
        return [identity for identity in found if identity]

    def assert_usable(self):
        """Check that the guest can be stopped, started and rebooted.

        Each time it has to find all its records.
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
        """Check that the booting guest finds all its records.

        :param acknowledged: the last record that the guest has acknowledged
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
