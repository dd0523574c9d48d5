# SPDX-License-Identifier: Apache-2.0

from concurrent import futures
import contextlib
import os
import pathlib
import random
import shutil
import subprocess
import tempfile
import threading

from devcloud import wait
import fixtures
import libvirt
import libvirt_qemu
from oslo_config import fixture as config_fixture
from oslo_serialization import jsonutils
from oslo_utils import units

from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.hypervisor import block_commit
from nova_snapext.hypervisor import chain
from nova_snapext.hypervisor import convergence
from nova_snapext.hypervisor import domain
from nova_snapext.hypervisor import write_limit
from nova_snapext import plan as planning
from tests.functional import base
from tests import in_full

# Bytes a second that the disk takes: 4 pieces of 64 KiB. Even a guest without
# KVM on a busy host writes more than 4 times a second.
DISK_SPEED = 256 * units.Ki

# KiB a second that the guest may always write: once a second, to two pieces.
MIN_WRITE = 64

# Writes a second, to one piece each, that the disk takes.
FEW_WRITES = 2

# Seconds: far more than any step takes, for a busy host.
TIMEOUT = 120

# Sectors that the guest rewrites, a power of two: 4 MiB.
REWRITTEN = 0x2000

# Writes 63.5 KiB at random places of the disk, without an end. The BIOS loads
# it at 0x7c00; variables are at 0x7de0 and above.
BOOT_SECTOR = bytes.fromhex(
    # 16-bit: data and stack segments, a stack; keep the BIOS's disk number
    '31c0 8ed8 8ed0 bc007c 8816f07d'
    # loop: seed = seed * 0x19660d + 0x3c6ef35f
    '66a1f47d 6669c00d661900 66055ff36e3c 66a3f47d'
    # sector = (seed >> 8) & mask, a multiple of eight, behind this sector
    '66c1e808 6625' + (REWRITTEN - 8).to_bytes(4, 'little').hex() +
    '660580000000 66a3e87d'
    # INT 13h, function 43h: write the packet at 0x7de0; again
    'bee07d b80043 8a16f07d cd13 ebc9'
).ljust(0x1e0, b'\0') + (
    # the packet: its size, 127 sectors from 0000:8000, the sector
    bytes.fromhex('1000 7f00 0080 0000').ljust(30, b'\0') + b'\x55\xaa')

# The last write may begin at the last of these sectors.
DISK_BYTES = (REWRITTEN + 0x100) * 512

SNAPSHOT = """
<domainsnapshot>
  <disks>
    <disk name='vda' snapshot='external'><source file='{path}'/></disk>
    <disk name='vdb' snapshot='no'/>
  </disks>
</domainsnapshot>
"""

WITH_WRITES = {'write_bytes_sec': 90 * units.Mi, 'write_iops_sec': 9000,
               'write_bytes_sec_max': 99 * units.Mi,
               'write_bytes_sec_max_length': 3}
WITH_SUMS = {'total_bytes_sec': 90 * units.Mi, 'total_iops_sec': 9000,
             'total_iops_sec_max': 9900, 'total_iops_sec_max_length': 3,
             'size_iops_sec': 64 * units.Ki, 'group_name': 'disks'}


class Killed(BaseException):
    """The process ends in this moment, and nothing of it is executed."""


class BusyGuestTest(base.GuestTestCase):
    """A guest that writes faster than its disk takes it."""

    @classmethod
    def setUpClass(cls):
        # libvirtd inherits this mount: it has to be there first.
        cls.storage = pathlib.Path(tempfile.mkdtemp(prefix='snapext-slow-'))
        cls.addClassCleanup(shutil.rmtree, cls.storage)
        os.chmod(cls.storage, 0o755)
        cls.content = cls.storage / 'content'
        cls.content.touch()
        os.truncate(cls.content, DISK_BYTES)
        cls.slow = cls.storage / 'disk'
        cls.slow.touch()
        daemon = subprocess.Popen([
            'qemu-storage-daemon',
            '--object', f'throttle-group,id=speed,x-bps-write={DISK_SPEED}',
            '--blockdev', f'file,node-name=file,filename={cls.content}',
            '--blockdev', 'throttle,node-name=slow,file=file,'
                          'throttle-group=speed',
            '--export', f'fuse,id=export,node-name=slow,writable=on,'
                        f'mountpoint={cls.slow}'])
        cls.addClassCleanup(cls.end, daemon)
        wait.until('the slow disk', lambda: os.path.ismount(cls.slow),
                   TIMEOUT)
        super().setUpClass()

    @staticmethod
    def end(daemon):
        daemon.terminate()
        daemon.wait(TIMEOUT)

    def setUp(self):
        super().setUp()
        with open(self.content, 'r+b') as disk:
            disk.write(BOOT_SECTOR)
        for name, seconds in (('PATIENCE', 10), ('WINDOW', 6)):
            self.useFixture(fixtures.MockPatchObject(
                convergence, name, seconds))
        self.config = self.useFixture(config_fixture.Config(conf.CONF)).config
        self.config(operation_timeout=20, merge_min_write_kbps=MIN_WRITE,
                    group='snapext')
        self.saved = None
        self.plan = self.guest(planning.RootDisk(
            'vda', 'file', str(self.slow), 'raw'))
        self.overlay = str(
            self.images / self.plan.instance.uuid / 'disk.snapext')
        self.domain = self.plan.guest._domain

    def switch_to_overlay(self):
        self.domain.snapshotCreateXML(
            SNAPSHOT.format(path=self.overlay),
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY |
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA)

    def await_writes(self, number):
        """Wait for a number of further writes of the guest."""
        enough = self.plan.guest.disk_writes('vda')[1] + number
        wait.until(
            'writes of the guest',
            lambda: self.plan.guest.disk_writes('vda')[1] >= enough, TIMEOUT)

    def begin(self):
        self.switch_to_overlay()
        self.await_writes(100)

    def limit(self):
        limit = write_limit.WriteLimit(self.plan, self.save)
        self.current = limit
        if self.saved is not None:
            limit.restore(jsonutils.loads(self.saved))
        return limit

    def save(self):
        self.saved = jsonutils.dumps(self.current.record())

    def merge(self, misses_writes=False):
        commit = block_commit.ActiveCommit(
            self.plan, self.overlay, write_limit=self.limit(),
            misses_writes=lambda _guest: misses_writes)
        guest = domain.get(self.host, self.plan.instance)
        state = commit.run(guest)
        commit.remove_limit(guest)
        return state

    def tuning(self, disk='vda'):
        return self.plan.guest.block_tuning(disk)

    def path(self):
        return chain.path_of(chain.find_disk(self.domain.XMLDesc(), 'vda'))

    @contextlib.contextmanager
    def tunings_set(self):
        """Note every tuning that is set."""
        found = []

        def set_and_note(guest, disk, tuning,
                         original=domain.Domain.set_block_tuning):
            original(guest, disk, tuning)
            found.append(self.tuning(disk))

        with fixtures.MockPatchObject(
                domain.Domain, 'set_block_tuning', set_and_note):
            yield found

    def assert_merged_as(self, before):
        with self.tunings_set() as tunings:
            self.assertIs(block_commit.CommitState.MERGED, self.merge())
        self.assertEqual(str(self.slow), self.path())
        self.assertEqual(before, self.tuning())
        self.assertEqual(libvirt.VIR_DOMAIN_RUNNING, self.domain.state()[0])
        self.assertGreater(len(tunings), 1, 'the guest was never limited')
        return tunings[:-1]

    @in_full.only
    def test_overtaken_commit_is_aborted_if_no_guest_may_be_slowed(self):
        self.config(merge_min_write_kbps=0, group='snapext')
        self.begin()
        error = self.assertRaises(exception.CommitFailed, self.merge)
        self.assertIn('writes faster than the disk takes it', str(error))
        self.assertEqual(self.overlay, self.path())
        self.assertEqual({}, self.plan.guest.block_job_info('vda'))
        self.assertFalse(any(self.tuning().values()))

    def test_guest_without_tuning_is_slowed_until_it_is_merged(self):
        before = self.tuning()
        self.begin()
        for tuning in self.assert_merged_as(before):
            self.assertGreaterEqual(
                tuning['write_bytes_sec'], MIN_WRITE * units.Ki)
            self.assertGreaterEqual(tuning['write_iops_sec'], 1)
        self.assertNotIn('iotune', self.domain.XMLDesc())

    @in_full.only
    def test_guest_with_write_limits_never_gets_more(self):
        self.domain.setBlockIoTune('vda', WITH_WRITES)
        before = self.tuning()
        self.begin()
        for tuning in self.assert_merged_as(before):
            self.assertLess(tuning['write_iops_sec'], 9000)
            self.assertLess(tuning['write_bytes_sec'], 90 * units.Mi)
            self.assertEqual(0, tuning['write_bytes_sec_max'])

    @in_full.only
    def test_guest_with_limited_sums_in_a_group_never_gets_more(self):
        for disk in ('vda', 'vdb'):
            self.domain.setBlockIoTune(disk, WITH_SUMS)
        before = self.tuning()
        self.assertEqual(before, self.tuning('vdb'))
        self.begin()
        for tuning in self.assert_merged_as(before):
            self.assertEqual('disks', tuning['group_name'])
            for unit, most in (('bytes_sec', 90 * units.Mi),
                               ('iops_sec', 9000), ('iops_sec_max', 9900)):
                read, write = (tuning[f'{kind}_{unit}']
                               for kind in ('read', 'write'))
                self.assertTrue(0 < read <= most - write, tuning)
        self.assertEqual(before, self.tuning('vdb'))

    def assert_merged_with_many_waiting_writes(self):
        # QEMU lets all waiting writes through when it pivots, and then has to
        # go on copying.
        before = self.tuning()
        self.switch_to_overlay()
        with self.many_writes():
            self.assertIs(block_commit.CommitState.MERGED, self.merge())
        self.assertEqual(libvirt.VIR_DOMAIN_RUNNING, self.domain.state()[0])
        return before

    def test_guest_whose_own_limit_holds_many_writes_back_is_merged(self):
        self.domain.setBlockIoTune('vda', {'write_iops_sec': FEW_WRITES})
        before = self.assert_merged_with_many_waiting_writes()
        self.assertEqual(before, self.tuning())

    def test_guest_whose_many_writes_the_merge_holds_back_is_merged(self):
        self.limit().lower(self.plan.guest, write_limit.WriteRate(
            units.Mi, FEW_WRITES))
        self.assert_merged_with_many_waiting_writes()
        self.assertFalse(any(self.tuning().values()))

    @contextlib.contextmanager
    def many_writes(self, number=16):
        """Always have some writes of the guest wait, unless it is paused."""
        connection = libvirt.open(self.libvirtd.uri)
        self.addCleanup(connection.close)
        guest = connection.lookupByUUIDString(self.domain.UUIDString())
        ended = threading.Event()

        def write():
            issued = guest.blockStats('vda')[2]
            while not ended.wait(0.02):
                waiting = issued - guest.blockStats('vda')[2]
                if guest.state()[0] != libvirt.VIR_DOMAIN_RUNNING:
                    continue
                for _ in range(number - waiting):
                    place = write_limit.GRANULARITY * random.randrange(1, 64)
                    self.qemu_io(guest, f'aio_write -q {place} 4096')
                    issued += 1

        with futures.ThreadPoolExecutor(1) as executor:
            writer = executor.submit(write)
            try:
                yield
            finally:
                ended.set()
            writer.result(TIMEOUT)

    @staticmethod
    def qemu_io(guest, command):
        libvirt_qemu.qemuMonitorCommand(guest, jsonutils.dumps({
            'execute': 'human-monitor-command',
            'arguments': {'command-line': (
                'qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend '
                f'"{command}"')}}), 0)

    @contextlib.contextmanager
    def steps_noted(self):
        """Note each pause and resumption, and the start of the commit."""
        found = []

        def noted(name):
            original = getattr(domain.Domain, name)

            def note(guest, *args):
                original(guest, *args)
                found.append((name, self.domain.state()[0]))

            return fixtures.MockPatchObject(domain.Domain, name, note)

        with noted('pause'), noted('resume'), noted('commit_block'):
            yield found

    def test_guest_of_a_qemu_that_misses_writes_is_paused_for_the_start(self):
        self.begin()
        with self.steps_noted() as steps:
            self.assertIs(block_commit.CommitState.MERGED,
                          self.merge(misses_writes=True))
        self.assertEqual([
            ('pause', libvirt.VIR_DOMAIN_PAUSED),
            ('commit_block', libvirt.VIR_DOMAIN_PAUSED),
            ('resume', libvirt.VIR_DOMAIN_RUNNING),
            ('pause', libvirt.VIR_DOMAIN_PAUSED),
            ('resume', libvirt.VIR_DOMAIN_RUNNING)], steps)
        self.assertEqual(str(self.slow), self.path())

    def test_next_process_resumes_guest_that_the_killed_one_has_paused(self):
        self.switch_to_overlay()
        self.limit().lower(self.plan.guest, write_limit.WriteRate(1, 1))
        self.limit().pause(self.plan.guest)
        self.assertEqual(libvirt.VIR_DOMAIN_PAUSED, self.domain.state()[0])
        self.assertIs(block_commit.CommitState.MERGED, self.merge())
        self.assertEqual(libvirt.VIR_DOMAIN_RUNNING, self.domain.state()[0])
        self.assertFalse(any(self.tuning().values()))

    def test_next_process_restores_tuning_of_killed_one(self):
        self.domain.setBlockIoTune('vda', WITH_WRITES)
        before = self.tuning()
        self.begin()

        def set_and_die(guest, disk, tuning,
                        original=domain.Domain.set_block_tuning):
            original(guest, disk, tuning)
            raise Killed

        with fixtures.MockPatchObject(
                domain.Domain, 'set_block_tuning', set_and_die):
            self.assertRaises(Killed, self.merge)
        self.assertNotEqual(before, self.tuning())
        self.assertIs(block_commit.CommitState.MERGED, self.merge())
        self.assertEqual(str(self.slow), self.path())
        self.assertEqual(before, self.tuning())

    def test_limit_is_removed_from_guest_that_has_left_its_overlay(self):
        self.limit().lower(self.plan.guest, write_limit.WriteRate(1, 1))
        self.assertTrue(any(self.tuning().values()))
        self.assertIs(block_commit.CommitState.NOT_THERE, self.merge())
        self.assertFalse(any(self.tuning().values()))
        self.assertFalse(self.current.is_set)

    def test_limit_is_removed_from_guest_resumed_from_saved_memory(self):
        self.limit().lower(self.plan.guest, write_limit.WriteRate(1, 1))
        self.domain.managedSave()
        self.domain.create()
        self.assertEqual(1, self.tuning()['write_iops_sec'])
        self.limit().remove(self.plan.guest)
        self.assertFalse(any(self.tuning().values()))

    def test_tuning_that_an_operator_sets_during_merge_is_kept(self):
        self.limit().lower(self.plan.guest, write_limit.WriteRate(1, 1))
        self.domain.setBlockIoTune('vda', {'write_iops_sec': 77})
        self.limit().lower(self.plan.guest, write_limit.WriteRate(9, 9))
        self.limit().remove(self.plan.guest)
        self.assertEqual(77, self.tuning()['write_iops_sec'])
        self.limit().lower(self.plan.guest, write_limit.WriteRate(1, 1))
        self.domain.setBlockIoTune('vda', {'write_iops_sec': 78})
        self.limit().remove(self.plan.guest)
        self.assertEqual(78, self.tuning()['write_iops_sec'])

    def test_guest_is_slowed_at_once_if_space_for_its_overlay_is_short(self):
        self.begin()
        before = self.tuning()
        self.config(min_free_disk_mb=1 << 40, group='snapext')
        self.useFixture(fixtures.MockPatchObject(
            convergence, 'PATIENCE', 10 * TIMEOUT))
        [tuning] = self.assert_merged_as(before)
        self.assertEqual(MIN_WRITE * units.Ki, tuning['write_bytes_sec'])
        self.assertEqual(1, tuning['write_iops_sec'])
