# SPDX-License-Identifier: Apache-2.0

import contextlib
import os
import subprocess
import sys

import libvirt
from oslo_utils import units

from nova_snapext import exception
from nova_snapext import plan as planning
from nova_snapext.strategies import backup
from tests.functional import base
from tests.functional.strategies import contract

BEFORE, AFTER = contract.BEFORE, contract.AFTER


class BackupTest(contract.RunningGuestContract, contract.RawDiskContract,
                 base.GuestTestCase):

    def setUp(self):
        super().setUp()
        self.strategy = backup.BackupStrategy(self.driver)

    def test_guest_without_agent_is_crash_consistent(self):
        with self.strategy.freeze(self.guest(self.qcow2())) as frozen:
            self.assertEqual(planning.Consistency.CRASH,
                             frozen.consistency)

    def test_only_root_disk_is_exported(self):
        plan = self.guest(self.qcow2())
        with self.strategy.freeze(plan) as frozen:
            exports = base.run('nbdinfo', '--list', frozen.uri)
        self.assertIn('export="vda"', exports)
        self.assertNotIn('vdb', exports)

    def test_guest_with_job_is_refused_and_its_job_continues(self):
        disk = self.qcow2()
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        with self.strategy.freeze(plan) as frozen:
            self.forget_journal(plan)
            self.assertIn("'backup'",
                          self.freeze_fails(plan, exception.GuestBusy))
            self.assertEqual({BEFORE}, self.content(frozen))
        self.assert_nothing_left(plan)

    def test_guest_powered_off_during_snapshot_leaves_nothing(self):
        plan = self.guest(self.qcow2())
        with self.strategy.freeze(plan):
            plan.guest.poweroff()
        self.assert_nothing_left(plan)

    def test_guest_undefined_during_snapshot_leaves_nothing(self):
        plan = self.guest(self.qcow2())
        with self.strategy.freeze(plan):
            plan.guest.poweroff()
            xml = plan.guest.get_xml_desc()
            plan.guest._domain.undefine()
        self.assertEqual([], list(self.freezes.glob('*')))
        self.host.get_connection().defineXML(xml)  # for the clean-up

    def test_guest_undefined_before_snapshot_raises_its_error(self):
        plan = self.guest(self.qcow2())
        plan.guest.poweroff()
        xml = plan.guest.get_xml_desc()
        plan.guest._domain.undefine()
        with contextlib.ExitStack() as stack:
            error = self.assertRaises(
                libvirt.libvirtError, stack.enter_context,
                self.strategy.freeze(plan))
        self.assertEqual(libvirt.VIR_ERR_NO_DOMAIN, error.get_error_code())
        self.assertEqual([], list(self.freezes.glob('*')))
        self.host.get_connection().defineXML(xml)  # for the clean-up

    def test_job_that_can_not_begin_leaves_nothing(self):
        plan = self.guest(self.qcow2())
        self.freezes.mkdir(mode=0o700)  # QEMU's user can't enter it
        with contextlib.ExitStack() as stack:
            error = self.assertRaises(
                exception.FreezeFailed, stack.enter_context,
                self.strategy.freeze(plan))
        self.assertIn(plan.instance.uuid, str(error))
        self.assertIn('ermission denied', str(error))
        self.assert_nothing_left(plan)

    def test_disk_is_released_after_restart_of_libvirtd(self):
        disk = self.qcow2()
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        with self.strategy.freeze(plan) as frozen:
            self.libvirtd.kill()
            self.libvirtd.start()
            self.assertEqual({BEFORE}, self.content(frozen))
        self.assertEqual([], list(self.freezes.glob('*')))
        self.assertEqual(
            libvirt.VIR_DOMAIN_JOB_NONE,
            self.host.get_guest(plan.instance)._domain.jobInfo()[0])

    def test_other_users_of_host_can_not_read_disk(self):
        plan = self.guest(self.qcow2())
        with self.strategy.freeze(plan) as frozen:
            socket = frozen.uri.partition('socket=')[2]
            attempt = subprocess.run(
                ['setpriv', '--reuid=65534', '--regid=65534',
                 '--clear-groups', sys.executable, '-c', 'import socket, sys;'
                 'socket.socket(socket.AF_UNIX).connect(sys.argv[1])',
                 socket], capture_output=True, text=True)
            self.assertIn('PermissionError', attempt.stderr)
            self.assertEqual(0, os.stat(
                f'{os.path.dirname(socket)}/scratch').st_mode & 0o077)

    def test_scratch_file_contains_only_what_guest_overwrites(self):
        disk = self.qcow2()
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        with self.strategy.freeze(plan):
            [scratch] = self.freezes.glob('*/*/scratch')
            before = scratch.stat().st_blocks * 512
            self.write_as_guest(plan, AFTER)
            after = scratch.stat().st_blocks * 512
        self.assertLess(before, units.Mi)
        self.assertGreaterEqual(after, base.DISK_SIZE)
