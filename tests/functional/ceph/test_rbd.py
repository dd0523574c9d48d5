# SPDX-License-Identifier: Apache-2.0

import contextlib
import functools
import random
import time
from unittest import mock

import libvirt
from nova import exception as nova_exception
from nova import objects
from oslo_utils import timeutils
from oslo_utils import units

from nova_snapext import cancel
from nova_snapext import encode
from nova_snapext import exception
from nova_snapext.hypervisor import ceph
from nova_snapext import journal
from nova_snapext import plan as planning
from nova_snapext import read
from nova_snapext.resources import guest_filesystems
from tests.functional import base as functional_base
from tests.functional.ceph import base
from tests.functional.strategies import contract

BEFORE, AFTER = contract.BEFORE, contract.AFTER
DISK_SIZE = functional_base.DISK_SIZE


class RbdTest(contract.FreezeAssertions, base.CephTestCase):

    def read_by_extents(self, frozen):
        """Read a frozen disk as an upload does.

        :returns: its content, and the number of bytes that were read
        """
        content = bytearray(DISK_SIZE)
        with base.DiskOfExtents(frozen) as disk:
            parts = [(extent.offset, extent.length)
                     for extent in disk.extents() if extent.data]
            for offset, chunk in disk.read(parts):
                content[offset:offset + len(chunk)] = chunk
            return bytes(content), disk.bytes_read

    def test_running_guest_keeps_its_writes_and_its_definition(self):
        for disk in (self.rbd(), self.cloned_rbd(0x11)):
            self.fill(disk, BEFORE)
            plan = self.guest(disk)
            self.assertIsNone(self.strategy.unsupported_reason(plan))
            before = self.definitions(plan)
            with self.strategy.freeze(plan) as frozen:
                self.assertEqual(planning.Consistency.CRASH,
                                 frozen.consistency)
                self.write_as_guest(plan, AFTER)
                self.assertEqual({BEFORE}, self.content(frozen))
            self.assert_same(before, self.definitions(plan))
            self.assert_nothing_left(plan)
            plan.guest.poweroff()
            self.assertEqual(
                {AFTER}, set(self.content_of(ceph.image_of(disk))))

    def test_paused_guest_stays_paused(self):
        plan = self.guest(self.cloned_rbd(BEFORE))
        plan.guest.pause()
        with self.strategy.freeze(plan) as frozen:
            self.assertEqual({BEFORE}, self.content(frozen))
        self.assertEqual(libvirt.VIR_DOMAIN_PAUSED,
                         plan.guest._domain.state()[0])
        self.assert_nothing_left(plan)

    def test_shut_off_guest_can_start_while_its_disk_is_read(self):
        disk = self.cloned_rbd(BEFORE)
        plan = self.guest(disk, running=False)
        with self.strategy.freeze(plan) as frozen:
            self.assertEqual(planning.Consistency.OFFLINE,
                             frozen.consistency)
            plan.guest._domain.create()
            self.write_as_guest(plan, AFTER)
            self.assertEqual({BEFORE}, self.content(frozen))
        self.assert_nothing_left(plan)

    def test_suspended_guest_stays_suspended(self):
        plan = self.guest(self.cloned_rbd(BEFORE))
        plan.guest.save_memory_state()
        self.addCleanup(plan.guest._domain.managedSaveRemove)
        plan = self.plan_of(plan.instance, plan.disk)
        with self.strategy.freeze(plan) as frozen:
            self.assertEqual(planning.Consistency.CRASH, frozen.consistency)
            self.assertEqual({BEFORE}, self.content(frozen))
        self.assertTrue(plan.guest._domain.hasManagedSaveImage())
        self.assert_nothing_left(plan)

    def test_required_quiesce_that_is_not_possible_fails_and_leaves_nothing(
            self):
        plan = self.guest(self.rbd())
        plan.instance.image_meta = objects.ImageMeta.from_dict({
            'properties': {'os_require_quiesce': True}})
        self.freeze_fails(plan, nova_exception.InstanceQuiesceFailed)
        self.assert_nothing_left(plan)

    def test_error_during_the_freeze_releases_the_disk(self):
        plan = self.guest(self.rbd())

        def fail():
            with self.strategy.freeze(plan):
                raise ZeroDivisionError()

        self.assertRaises(ZeroDivisionError, fail)
        self.assert_nothing_left(plan)

    def test_snapshot_that_somebody_removes_has_no_end_of_its_stream(self):
        # What librbd reads in its place depends on its release: this one ends
        # qemu-nbd.
        plan = self.guest(self.rbd())
        self.fill(plan.disk, BEFORE)
        with self.strategy.freeze(plan) as frozen, read.Disk(
                frozen.uri, known_extents=functools.partial(
                    frozen.extents, cancel.CancelToken()),
                lost_reason=frozen.lost_reason) as disk:
            encoder = encode.RawEncoder(disk)
            stream = encoder.stream()
            self.assertEqual({BEFORE}, set(next(stream)))
            self.assertIsNone(frozen.lost_reason())
            ceph.remove_snapshot(frozen.snapshot)
            self.assertIn(str(frozen.snapshot), frozen.lost_reason())
            self.assertRaises(exception.DiskReadError, list, stream)
        self.assert_nothing_left(plan)

    def test_missing_disk_fails_with_its_name(self):
        plan = self.guest(self.rbd(), running=False)
        image = ceph.image_of(plan.disk)
        self.cluster.remove(image)
        self.assertIn(str(image),
                      self.freeze_fails(plan, exception.FreezeFailed))
        self.assertEqual([], journal.entries())

    def test_extents_of_a_clone_are_what_it_and_its_parent_hold(self):
        disk = self.cloned_rbd(BEFORE, length=4 * units.Mi)
        plan = self.guest(disk, running=False)
        with self.strategy.freeze(plan) as frozen:
            self.assertEqual(
                [read.Extent(0, 4 * units.Mi, True),
                 read.Extent(4 * units.Mi, DISK_SIZE - 4 * units.Mi, False)],
                list(frozen.extents(cancel.CancelToken())))

    def test_search_for_extents_ends_inside_librbd_when_it_is_cancelled(self):
        count, found = 64, []
        image = ceph.ImageSpec('vms', 'of-many-objects')
        self.cluster.create(image, count * units.Mi, order=20)
        with self.cluster.image(image) as opened:
            for number in range(count):
                opened.write(b'x', number * units.Mi)
            opened.create_snap('frozen')
        token = cancel.CancelToken()
        token.cancel(ZeroDivisionError())

        @contextlib.contextmanager
        def opened_slowly(*_args):
            with self.cluster.image(image, 'frozen') as opened:
                yield mock.Mock(size=opened.size, diff_iterate=(
                    lambda offset, size, start, on_part, **kwargs:
                    opened.diff_iterate(offset, size, start, lambda *part: (
                        time.sleep(0.2), found.append(part),
                        on_part(*part))[-1], **kwargs)))

        with mock.patch.object(ceph, 'opened', opened_slowly):
            self.assertRaises(ZeroDivisionError, ceph.allocated,
                              ceph.SnapSpec(image, 'frozen'), token)
            self.await_calls()
        self.assertLess(len(found), count)

    def test_nothing_outside_of_the_extents_holds_data(self):
        for seed in range(4):
            chance = random.Random(seed)
            disk = self.scattered(chance)
            plan = self.guest(disk, running=False)
            with self.strategy.freeze(plan) as frozen:
                content, read_bytes = self.read_by_extents(frozen)
                expected = self.content_of(frozen.snapshot.image,
                                           frozen.snapshot.name)
            self.assertTrue(expected == content, f'differs: seed {seed}')
            self.assertLess(read_bytes, DISK_SIZE)

    def scattered(self, chance):
        """Create a clone of a clone, each with writes and discards."""
        image = ceph.ImageSpec('images', f'base-{chance.random()}')
        self.cluster.create(image, DISK_SIZE, order=20)
        for depth in range(3):
            for _ in range(3):
                self.change(image, chance)
            if depth == 2:
                break
            child = ceph.ImageSpec(
                'vms', f'child-{depth}-{chance.random()}_disk')
            self.cluster.clone(image, child)
            image = child
            if depth == 0:
                # What the parent has there is not seen again.
                with self.cluster.image(image) as opened:
                    opened.resize(5 * units.Mi)
                    opened.resize(DISK_SIZE)
        return self.disk(image)

    def change(self, image, chance):
        offset = chance.randrange(0, DISK_SIZE, 64 * units.Ki)
        length = min(chance.randrange(512, units.Mi, 512), DISK_SIZE - offset)
        chance.choice([self.discard, self.write_random, self.write_random])(
            image, offset, length)

    def write_random(self, image, offset, length):
        self.write(image, 1 + offset % 251, offset, length)

    def test_qcow2_image_has_what_is_allocated_only(self):
        disk = self.cloned_rbd(BEFORE, length=4 * units.Mi)
        plan = self.guest(disk, running=False)
        with self.strategy.freeze(plan) as frozen, \
                base.DiskOfExtents(frozen) as nbd, \
                encode.encoder('qcow2', nbd) as encoder:
            path = self.images / 'image.qcow2'
            with path.open('wb') as file:
                for chunk in encoder.stream():
                    file.write(chunk)
            self.assertLess(path.stat().st_size, 5 * units.Mi)
            functional_base.run(
                'qemu-img', 'compare', '-f', 'qcow2', '-F', 'raw', str(path),
                f'rbd:{frozen.snapshot}:conf={self.cluster.configuration}')

    def test_key_is_in_no_command_line(self):
        keyring = (self.cluster.directory / 'client.nova.keyring').read_text()
        key = keyring.split('key = ')[1].strip()
        plan = self.guest(self.rbd(), running=False)
        with self.strategy.freeze(plan):
            [pid_file] = self.freezes.rglob('pid')
            with open(f'/proc/{pid_file.read_text().strip()}/cmdline') as file:
                command = file.read()
        self.assertIn('"user": "nova"', command)
        self.assertNotIn(key, command)


# Seconds that the guest's agent may take.
AGENT_TIMEOUT = 2


class HungCephTest(contract.FreezeAssertions, base.CephTestCase):
    """A Ceph that does not respond, whose monitor still does."""

    def setUp(self):
        super().setUp()
        self.configure('snapext', agent_timeout=AGENT_TIMEOUT,
                       operation_timeout=3)
        self.hanging = self.cluster.osd
        self.calls = []

    @contextlib.contextmanager
    def frozen(self):
        """Hang Ceph as soon as the guest's filesystems are frozen."""
        self.calls.append('frozen')
        self.cluster.suspend(self.hanging)
        try:
            with timeutils.StopWatch() as watch:
                yield planning.Consistency.FILESYSTEM
        finally:
            self.calls.append('thawed')
            self.freeze_seconds = watch.elapsed()

    def test_guest_is_thawed_though_the_osd_does_not_respond(self):
        self.thawed_though_hanging(self.cluster.osd)

    def test_guest_is_thawed_though_the_monitor_does_not_respond(self):
        # It gives each snapshot its number.
        self.thawed_though_hanging(self.cluster.monitor)

    def thawed_though_hanging(self, daemon):
        self.hanging = daemon
        plan = self.guest(self.rbd())
        with mock.patch.object(
                guest_filesystems.GuestFilesystems, 'frozen', self.frozen):
            text = self.freeze_fails(plan, exception.SnapextError)
        self.assertEqual(['frozen', 'thawed'], self.calls)
        self.assertLess(self.freeze_seconds, 2 * AGENT_TIMEOUT)
        if daemon is self.cluster.osd:
            self.assertIn('rbd snap rm', text)
        # It is still in the journal, because it may come into being later.
        [record] = [record for record in
                    journal.find(plan.instance.uuid).records
                    if record.kind == 'RBD snapshot']
        self.cluster.resume()
        self.configure('snapext', operation_timeout=60)
        self.recover(plan)
        self.assert_nothing_left(plan)
        self.assertTrue(record.data['snapshot'].startswith('snapext-'))

    def test_guest_is_not_frozen_if_ceph_does_not_respond(self):
        plan = self.guest(self.rbd())
        self.cluster.suspend_osd()
        with mock.patch.object(
                guest_filesystems.GuestFilesystems, 'frozen', self.frozen):
            self.freeze_fails(plan, exception.ReleaseFailed)
        self.assertEqual([], self.calls)
        self.cluster.resume()
        self.configure('snapext', operation_timeout=60)
        self.recover(plan)
        self.assert_nothing_left(plan)
