# SPDX-License-Identifier: Apache-2.0

from unittest import mock

import libvirt_qemu
from oslo_serialization import jsonutils
from oslo_utils import units

from nova_snapext import exception
from nova_snapext.hypervisor import ceph
from nova_snapext import journal
from nova_snapext.resources import backup_job
from nova_snapext.strategies import backup
from tests.functional import base as functional_base
from tests.functional.ceph import base
from tests.functional.strategies import contract

BEFORE, AFTER = contract.BEFORE, contract.AFTER
DISK_SIZE = functional_base.DISK_SIZE


class BackupTest(contract.FreezeAssertions, base.CephTestCase):
    """The extents of a backup job of a disk that is a clone."""

    def setUp(self):
        super().setUp()
        self.strategy = backup.BackupStrategy(self.driver)
        self.useFixture(functional_base.fixtures.MockPatchObject(
            self.driver, 'strategies', {'backup': self.strategy}))

    def io(self, plan, command):
        """Have the guest's disk device carry out a command of qemu-io."""
        libvirt_qemu.qemuMonitorCommand(
            plan.guest._domain, jsonutils.dumps({
                'execute': 'human-monitor-command',
                'arguments': {'command-line': (
                    'qemu-io -d /machine/peripheral/virtio-disk0/'
                    f'virtio-backend "{command}"')}}), 0)

    def at_the_begin(self, plan, command):
        """Have the guest do something directly after the job has begun."""
        begin = backup_job.BackupJob.begin

        def begin_and_act(job, guest):
            begin(job, guest)
            self.io(plan, command)

        return mock.patch.object(backup_job.BackupJob, 'begin', begin_and_act)

    def frozen_content(self, frozen):
        """Read a frozen disk as an upload does, by its extents.

        :returns: content, and the number of bytes that were read
        """
        content = bytearray(DISK_SIZE)
        with base.DiskOfExtents(frozen) as disk:
            parts = [(extent.offset, extent.length)
                     for extent in disk.extents() if extent.data]
            for offset, chunk in disk.read(parts):
                content[offset:offset + len(chunk)] = chunk
            return bytes(content), disk.bytes_read

    def test_clone_is_read_sparsely(self):
        plan = self.guest(self.cloned_rbd(BEFORE, length=4 * units.Mi))
        with self.strategy.freeze(plan) as frozen:
            content, read_bytes = self.frozen_content(frozen)
        self.assertEqual(4 * units.Mi, read_bytes)
        self.assertEqual(bytes([BEFORE]) * 4 * units.Mi,
                         content[:4 * units.Mi])
        self.assertEqual({0}, set(content[4 * units.Mi:]))
        self.assert_nothing_left(plan)

    def test_what_the_guest_does_afterwards_hides_no_data(self):
        for command in (f'write -q -P {AFTER} 0 2M', 'write -q -z 0 2M',
                        'write -q -z -u 0 4M', 'discard -q 0 4M'):
            plan = self.guest(self.cloned_rbd(BEFORE, length=4 * units.Mi))
            with self.at_the_begin(plan, command), \
                    self.strategy.freeze(plan) as frozen:
                content, _read = self.frozen_content(frozen)
            self.assertTrue(
                content == bytes([BEFORE]) * 4 * units.Mi + bytes(
                    DISK_SIZE - 4 * units.Mi), command)
            self.assert_nothing_left(plan)

    def test_what_the_guest_has_just_written_is_read(self):
        # QEMU's librbd may still have it in its cache.
        plan = self.guest(self.cloned_rbd(BEFORE, length=units.Mi))
        self.io(plan, f'write -q -P {AFTER} 6M 1M')
        with self.strategy.freeze(plan) as frozen:
            content, _read = self.frozen_content(frozen)
        self.assertEqual({AFTER}, set(content[6 * units.Mi:7 * units.Mi]))

    def test_guest_that_can_discard_is_read_as_qemu_says(self):
        plan = self.guest(self.cloned_rbd(BEFORE), discard='unmap')
        with self.strategy.freeze(plan) as frozen:
            self.assertIsNone(frozen.extents)
            self.assertEqual({BEFORE}, self.content(frozen))

    def test_image_without_an_exclusive_lock_is_read_as_qemu_says(self):
        image = ceph.ImageSpec('vms', 'without-lock_disk')
        self.cluster.create(image, DISK_SIZE, features=1)  # layering alone
        plan = self.guest(self.disk(image))
        with self.strategy.freeze(plan) as frozen:
            self.assertIsNone(frozen.extents)

    def test_ceph_that_refuses_the_snapshot_does_not_fail_the_backup(self):
        plan = self.guest(self.cloned_rbd(BEFORE))
        with mock.patch.object(ceph.SnapshotCreation, 'create',
                               side_effect=exception.CephError(
                                   action='create', reason='quota')), \
                self.strategy.freeze(plan) as frozen:
            self.assertIsNone(frozen.extents)
            self.assertEqual({BEFORE}, self.content(frozen))
        self.assert_nothing_left(plan)

    def test_crash_leaves_no_snapshot_after_the_recovery(self):
        plan = self.guest(self.cloned_rbd(BEFORE))

        class CrashError(BaseException):
            pass

        with mock.patch.object(ceph, 'allocated', side_effect=CrashError), \
                mock.patch.object(ceph, 'remove_snapshot'), \
                mock.patch.object(journal.ReleaseStack, '_release'), \
                mock.patch.object(journal.ReleaseStack, 'mark_released'):
            self.assertRaises(CrashError, self.freeze, plan)
        self.assertEqual(1, len(self.snapshots(ceph.image_of(plan.disk))))
        self.recover(plan)
        self.assert_nothing_left(plan)

    def freeze(self, plan):
        with self.strategy.freeze(plan):
            pass
