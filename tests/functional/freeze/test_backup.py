# SPDX-License-Identifier: Apache-2.0

import contextlib
import os
import subprocess
import sys

import libvirt
from oslo_utils import units

from nova_snapext import exception
from nova_snapext.freeze import backup
from nova_snapext.freeze import base as freeze_base
from nova_snapext import journal
from tests.functional import base
from tests.functional.freeze import contract

BEFORE, AFTER = contract.BEFORE, contract.AFTER


class BackupTest(contract.RunningGuestContract, contract.RawDiskContract,
                 base.GuestTestCase):

    def setUp(self):
        super().setUp()
        self.strategy = backup.BackupStrategy(self.driver)

    def test_without_an_agent_it_is_crash_consistent(self):
        with self.strategy.freeze(self.guest(self.qcow2())) as frozen:
            self.assertEqual(freeze_base.Consistency.CRASH,
                             frozen.consistency)

    def test_only_the_root_disk_is_served(self):
        plan = self.guest(self.qcow2())
        with self.strategy.freeze(plan) as frozen:
            exports = base.run('nbdinfo', '--list', frozen.uri)
        self.assertIn('export="vda"', exports)
        self.assertNotIn('vdb', exports)

    def test_a_guest_with_a_job_is_refused_and_its_job_goes_on(self):
        disk = self.qcow2()
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        with self.strategy.freeze(plan) as frozen:
            os.unlink(journal.find(plan.instance.uuid).path)
            self.assertIn("'backup'",
                          self.freeze_fails(plan, exception.GuestBusy))
            self.assertEqual({BEFORE}, self.content(frozen))
        self.assert_nothing_left(plan)

    def test_a_guest_that_is_powered_off_meanwhile_leaves_nothing(self):
        plan = self.guest(self.qcow2())
        with self.strategy.freeze(plan):
            plan.guest.poweroff()
        self.assert_nothing_left(plan)

    def test_a_guest_that_vanishes_meanwhile_leaves_nothing(self):
        plan = self.guest(self.qcow2())
        with self.strategy.freeze(plan):
            plan.guest.poweroff()
            xml = plan.guest.get_xml_desc()
            plan.guest._domain.undefine()
        self.assertEqual([], list(self.freezes.glob('*')))
        self.host.get_connection().defineXML(xml)  # for the clean-up

    def test_a_guest_that_has_vanished_before_is_told_apart(self):
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

    def test_a_job_that_can_not_begin_leaves_nothing(self):
        plan = self.guest(self.qcow2())
        self.freezes.mkdir(mode=0o700)  # QEMU's user has no way through it
        with contextlib.ExitStack() as stack:
            error = self.assertRaises(
                exception.FreezeFailed, stack.enter_context,
                self.strategy.freeze(plan))
        self.assertIn(plan.instance.uuid, str(error))
        self.assertIn('ermission denied', str(error))
        self.assert_nothing_left(plan)

    def test_a_libvirtd_that_was_restarted_still_releases_it(self):
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

    def test_nobody_else_on_the_host_can_read_it(self):
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

    def test_the_scratch_file_holds_only_what_the_guest_overwrites(self):
        disk = self.qcow2()
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        with self.strategy.freeze(plan):
            [scratch] = self.freezes.glob('*/scratch')
            before = scratch.stat().st_blocks * 512
            self.write_as_guest(plan, AFTER)
            after = scratch.stat().st_blocks * 512
        self.assertLess(before, units.Mi)
        self.assertGreaterEqual(after, base.DISK_SIZE)
