# SPDX-License-Identifier: Apache-2.0

import contextlib
import os
import select
import signal

from nova_snapext import exception
from nova_snapext.freeze import base as freeze_base
from nova_snapext.freeze import cold
from nova_snapext import read
from tests.functional import base

CONTENT = 0x44


class ColdTest(base.GuestTestCase):

    def setUp(self):
        super().setUp()
        self.strategy = cold.ColdStrategy(self.driver)

    def server(self):
        """The process that serves the only frozen disk."""
        [pid_file] = self.freezes.glob('*/pid')
        pidfd = os.pidfd_open(int(pid_file.read_text()))
        self.addCleanup(os.close, pidfd)
        return pidfd

    def assert_ends(self, pidfd):
        self.assertTrue(select.select([pidfd], [], [], 30)[0])

    def read_as_it_is(self, disk):
        self.fill(disk, CONTENT)
        plan = self.guest(disk, running=False)
        with self.strategy.freeze(plan) as frozen:
            self.assertEqual(freeze_base.Consistency.OFFLINE,
                             frozen.consistency)
            server = self.server()
            with read.Disk(frozen.uri) as nbd:
                self.assertEqual({CONTENT}, {
                    byte for _, piece in nbd.read([(0, nbd.size)])
                    for byte in set(bytes(piece))})
        self.assert_ends(server)
        self.assert_nothing_left(plan)

    def test_a_qcow2_is_read_as_it_is(self):
        self.read_as_it_is(self.qcow2())

    def test_a_backing_chain_is_read_as_it_is(self):
        self.read_as_it_is(self.chained_qcow2())

    def test_a_raw_file_is_read_as_it_is(self):
        self.read_as_it_is(self.raw())

    def test_a_block_device_is_read_as_it_is(self):
        self.read_as_it_is(self.block())

    def test_a_path_full_of_special_characters_is_taken_as_it_is(self):
        disk = self.raw()
        path = self.images / 'a,b:c "d" $(e).raw'
        os.rename(disk.path, path)
        plan = self.guest(self.raw(), running=False)
        self.fill(disk.__class__('vda', 'file', str(path), 'raw'), 1)
        object.__setattr__(plan.disk, 'path', str(path))
        with self.strategy.freeze(plan) as frozen, \
                read.Disk(frozen.uri) as nbd:
            [(_, piece), *_] = nbd.read([(0, 4096)])
        self.assertEqual(b'\1' * 4096, bytes(piece))

    def test_the_server_ends_when_nobody_has_read(self):
        plan = self.guest(self.qcow2(), running=False)
        with self.strategy.freeze(plan):
            server = self.server()
        self.assert_ends(server)
        self.assert_nothing_left(plan)

    def test_the_server_ends_by_itself_when_its_reader_dies(self):
        plan = self.guest(self.qcow2(), running=False)
        with self.strategy.freeze(plan) as frozen:
            server = self.server()
            with read.Disk(frozen.uri):
                pass
            self.assert_ends(server)

    def test_a_server_that_is_killed_is_an_error_and_leaves_nothing(self):
        plan = self.guest(self.qcow2(), running=False)
        self.fill(plan.disk, CONTENT)
        with self.strategy.freeze(plan) as frozen, \
                read.Disk(frozen.uri) as nbd:
            server = self.server()
            signal.pidfd_send_signal(server, signal.SIGKILL)
            self.assert_ends(server)
            self.assertRaises(exception.DiskReadError, list,
                              nbd.read([(0, nbd.size)]))
        self.assert_nothing_left(plan)

    def test_a_disk_that_a_running_guest_has_is_refused(self):
        for disk in (self.qcow2(), self.raw()):
            plan = self.guest(disk)
            with contextlib.ExitStack() as stack:
                error = self.assertRaises(
                    exception.FreezeFailed, stack.enter_context,
                    self.strategy.freeze(plan))
            self.assertIn('lock', str(error))
            self.assert_nothing_left(plan)

    def test_a_guest_can_not_start_while_its_disk_is_read(self):
        plan = self.guest(self.qcow2(), running=False)
        with self.strategy.freeze(plan):
            self.assertRaisesRegex(
                Exception, 'lock', plan.guest._domain.create)
        plan.guest._domain.create()

    def test_a_suspended_guest_s_disk_is_crash_consistent(self):
        plan = self.guest(self.qcow2())
        plan.guest.save_memory_state()
        self.addCleanup(plan.guest._domain.managedSaveRemove)
        with self.strategy.freeze(plan) as frozen:
            self.assertEqual(freeze_base.Consistency.CRASH,
                             frozen.consistency)
        self.assertTrue(plan.guest._domain.hasManagedSaveImage())

    def test_a_missing_disk_is_an_error_that_names_it(self):
        plan = self.guest(self.qcow2(), running=False)
        os.unlink(plan.disk.path)
        with contextlib.ExitStack() as stack:
            error = self.assertRaises(
                exception.FreezeFailed, stack.enter_context,
                self.strategy.freeze(plan))
        self.assertIn(plan.disk.path, str(error))
        self.assert_nothing_left(plan)
