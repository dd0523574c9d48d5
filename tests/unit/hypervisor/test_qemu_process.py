# SPDX-License-Identifier: Apache-2.0

import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time
from unittest import mock

import fixtures
import libvirt
from nova.virt.libvirt import host as libvirt_host
from oslo_concurrency import processutils
import psutil

from nova_snapext import exception
from nova_snapext.hypervisor import qemu_process
from nova_snapext import plan as planning
from tests.unit import base

UUID = '6f2a1ac5-6d39-4c1c-8c0b-a7f2b3f7f5c1'


class QemuProcessTestCase(base.TestCase):

    def setUp(self):
        super().setUp()
        directory = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self.emulator = directory / 'qemu-system-x86_64'
        self.answer('QEMU emulator version 7.2.22 (Debian 1:7.2)')
        self.guest = base.fake_guest()
        self.guest.uuid = UUID
        self.guest.get_xml_desc.return_value = (
            f'<domain><devices><emulator>{self.emulator}</emulator></devices>'
            f'</domain>')
        self.host = mock.create_autospec(libvirt_host.Host, instance=True)
        connection = self.host.get_connection.return_value
        connection.getVersion.return_value = 7002022
        connection.getLibVersion.return_value = 12008001
        self.processes = [self.process()]
        self.useFixture(fixtures.MockPatchObject(
            psutil, 'process_iter', lambda _attributes: self.processes))
        self.hide_file()

    def hide_file(self):
        """Let the file of a process not be seen, as those of other users.

        The emulator is a script, and has no code.
        """
        def stat(path, original=os.stat, **kwargs):
            if str(path).startswith('/proc/'):
                raise PermissionError(path)
            return original(path, **kwargs)

        self.useFixture(fixtures.MockPatchObject(os, 'stat', stat))
        self.code = self.running_code = 7
        for name, value in (('_code_pages', lambda _path: self.code),
                            ('_running_code_pages',
                             lambda _pid: self.running_code)):
            self.useFixture(fixtures.MockPatchObject(
                qemu_process, name, value))

    def answer(self, version):
        self.emulator.write_text(f'#!/bin/sh\necho "{version}"\n')
        self.emulator.chmod(0o755)

    def process(self, *arguments, started=3600, emulator=None):
        """Return a process that was started some seconds from now."""
        process = mock.Mock()
        cmdline = [str(emulator or self.emulator), '-uuid', UUID, *arguments]
        process.info = {'cmdline': cmdline}
        process.cmdline.return_value = cmdline
        process.create_time.return_value = time.time() + started
        return process


class VersionTest(QemuProcessTestCase):

    def version(self):
        return qemu_process.running_version(self.host, self.guest)

    def test_emulator_that_has_not_changed_tells_the_version(self):
        self.assertEqual((7, 2, 22), self.version())

    def test_emulator_is_asked_once_until_its_file_changes(self):
        with mock.patch.object(
                qemu_process.processutils, 'execute',
                side_effect=processutils.execute) as execute:
            self.assertEqual([(7, 2, 22)] * 2, [
                self.version(), self.version()])
            self.assertEqual(1, execute.call_count)
            self.tick()
            self.answer('QEMU emulator version 9.0.0 (an upgrade)')
            self.assertIsNone(self.version())
            self.assertEqual(2, execute.call_count)

    def tick(self):
        """Wait until the next change of a file has another time."""
        file = pathlib.Path(self.useFixture(fixtures.TempDir()).path, 'file')
        file.touch()
        first = file.stat().st_ctime_ns
        while file.stat().st_ctime_ns == first:
            file.touch()

    def test_emulator_that_was_replaced_since_the_start_is_unknown(self):
        self.processes = [self.process(started=-60)]
        os.utime(self.emulator, (0, 0))     # as a package does
        self.assertIsNone(self.version())

    def test_link_to_another_emulator_since_the_start_is_unknown(self):
        os.rename(self.emulator, f'{self.emulator}-7.2')
        self.emulator.symlink_to(f'{self.emulator}-7.2')
        self.assertEqual((7, 2, 22), self.version())
        self.processes = [self.process(started=-60)]
        self.assertIsNone(self.version())

    def test_second_link_to_another_emulator_is_unknown(self):
        # /usr/bin/qemu-system-x86_64 -> current/qemu -> 7.2/qemu
        directory = self.emulator.parent
        releases = [directory / name for name in ('7.2', '9.2')]
        for release in releases:
            release.mkdir()
            shutil.copy(self.emulator, release / 'qemu')
        (directory / 'current').symlink_to('7.2')
        (directory / 'next').symlink_to('9.2')
        self.emulator.unlink()
        self.emulator.symlink_to('current/../current/./qemu')
        self.tick()
        self.processes = [self.process(
            started=qemu_process.START_PRECISION)]
        self.assertEqual((7, 2, 22), self.version())
        self.tick()
        os.rename(directory / 'next', directory / 'current')
        self.assertIsNone(self.version())

    def test_directory_with_a_new_name_is_unknown(self):
        directory = self.emulator.parent
        emulator = directory / 'current' / 'qemu'
        (directory / 'next').mkdir()
        os.rename(self.emulator, directory / 'next' / 'qemu')
        self.emulator.symlink_to(emulator)
        self.tick()
        before = qemu_process._last_change(str(directory / 'next' / 'qemu'))
        os.rename(directory / 'next', directory / 'current')
        self.assertGreater(
            qemu_process._last_change(str(emulator)), before)

    def test_new_entry_beside_the_emulator_changes_nothing(self):
        before = qemu_process._last_change(str(self.emulator))
        self.tick()
        (self.emulator.parent / 'another').touch()
        self.assertEqual(
            before, qemu_process._last_change(str(self.emulator)))

    def test_links_without_an_end_are_unknown(self):
        self.emulator.unlink()
        self.emulator.symlink_to(self.emulator)
        self.assertIsNone(self.version())

    def test_other_code_is_unknown_whatever_the_clock_says(self):
        self.running_code = 8
        self.assertIsNone(self.version())

    def test_other_version_than_that_of_libvirtd_is_unknown(self):
        self.answer('QEMU emulator version 9.0.0 (another container)')
        self.assertIsNone(self.version())

    def test_missing_emulator_is_unknown(self):
        self.emulator.unlink()
        self.assertIsNone(self.version())

    def test_emulator_that_fails_is_unknown(self):
        self.emulator.write_text('#!/bin/sh\nexit 1\n')
        self.assertIsNone(self.version())

    def test_answer_without_a_version_is_unknown(self):
        self.answer('hello')
        self.assertIsNone(self.version())

    def test_hidden_process_is_unknown(self):
        hidden = mock.Mock(info={'cmdline': None})
        for processes in ([], [hidden]):
            self.processes = processes
            self.assertIsNone(self.version())

    def test_two_processes_are_unknown(self):
        self.processes = [self.process(), self.process()]
        self.assertIsNone(self.version())

    def test_process_that_ends_is_unknown(self):
        self.processes[0].create_time.side_effect = psutil.NoSuchProcess(1)
        self.assertIsNone(self.version())

    def test_other_program_behind_a_wrapper_is_unknown(self):
        self.processes = [self.process(emulator='/usr/bin/qemu-real')]
        self.assertIsNone(self.version())

    def test_other_programs_that_name_the_guest_are_ignored(self):
        virsh = mock.Mock(info={'cmdline': ['virsh', 'console', UUID]})
        self.processes.append(virsh)
        self.assertEqual((7, 2, 22), self.version())

    def test_version_of_libvirtd_is_that_of_the_daemon(self):
        self.assertEqual((12, 8, 1), qemu_process.libvirt_version(self.host))

    def test_restored_guest_is_told_from_one_that_was_started(self):
        self.assertIs(False, qemu_process.is_incoming(self.guest))
        self.processes = [self.process('-incoming', 'defer')]
        self.assertIs(True, qemu_process.is_incoming(self.guest))
        self.processes = []
        self.assertIsNone(qemu_process.is_incoming(self.guest))


class StartedTest(base.TestCase):
    """Real processes that have the guest's uuid as an argument."""

    def run_with(self, *arguments):
        """Return the id of a process that ends when its stdin is closed."""
        process = subprocess.Popen(
            [sys.executable, '-c', 'import sys; sys.stdin.read()',
             *arguments], stdin=subprocess.PIPE)
        self.addCleanup(process.wait)
        self.addCleanup(process.stdin.close)
        return process.pid

    def test_only_processes_that_run_as_the_guest_count(self):
        guest = base.fake_guest()
        guest.uuid = UUID
        self.run_with('console', UUID)
        self.assertEqual([], qemu_process.started(guest))
        pid = self.run_with('-uuid', UUID, '-S')
        [(found, ticks)] = qemu_process.started(guest)
        self.assertEqual(pid, found)
        self.assertAlmostEqual(
            psutil.Process(pid).create_time(), psutil.boot_time() +
            ticks / os.sysconf('SC_CLK_TCK'), delta=2)


class EmulatorFileTest(base.TestCase):
    """Real processes, whose file their user sees and others do not."""

    def setUp(self):
        super().setUp()
        self.directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path)
        self.program = self.directory / 'program'
        self.install(self.program)

    @staticmethod
    def install(path, program='sleep'):
        shutil.copy2(shutil.which(program), path)

    def start(self, *command):
        process = subprocess.Popen([*command, '600'])
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        # Popen returns before the kernel has loaded the code of the program.
        while not qemu_process._running_code_pages(process.pid):
            os.sched_yield()
        return psutil.Process(process.pid)

    def runs(self, process, path):
        return qemu_process._runs_file(process, str(path))

    def test_process_runs_the_file_that_its_path_leads_to(self):
        link = self.directory / 'link'
        link.symlink_to('program')
        process = self.start(link)
        self.assertTrue(self.runs(process, link))
        self.install(self.directory / 'new')
        (self.directory / 'next').symlink_to('new')
        os.rename(self.directory / 'next', link)
        self.assertFalse(self.runs(process, link))

    def test_process_does_not_run_the_file_that_replaced_its_own(self):
        process = self.start(self.program)
        self.program.unlink()
        self.install(self.program)
        self.assertFalse(self.runs(process, self.program))

    def test_process_behind_a_wrapper_does_not_run_it(self):
        wrapper = self.directory / 'wrapper'
        wrapper.write_text(f'#!/bin/bash\n'
                           f'exec -a "$0" {self.program} "$@"\n')
        wrapper.chmod(0o755)
        process = self.start(wrapper)
        while os.readlink(f'/proc/{process.pid}/exe') != str(self.program):
            time.sleep(0.01)
        self.assertEqual(str(wrapper), process.cmdline()[0])
        self.assertFalse(self.runs(process, wrapper))
        self.assertIsNone(qemu_process._code_pages(str(wrapper)))

    def test_code_of_a_process_is_as_large_as_that_of_its_file(self):
        process = self.start(self.program)
        own = qemu_process._code_pages(sys.executable)
        self.assertEqual(
            own, qemu_process._running_code_pages(os.getpid()))
        found = qemu_process._code_pages(str(self.program))
        self.assertEqual(
            found, qemu_process._running_code_pages(process.pid))
        self.assertNotEqual(own, found)

    def test_file_without_code_has_no_pages(self):
        for content in (b'', b'\x7fELF', b'#!/bin/sh\n' + 99 * b' ',
                        b'\x7fELF\x02\x01' + bytes(58)):
            self.program.unlink(missing_ok=True)
            self.program.write_bytes(content)
            self.assertIsNone(qemu_process._code_pages(str(self.program)))


class SubjectTest(QemuProcessTestCase):

    def setUp(self):
        super().setUp()
        self.path = pathlib.Path(self.useFixture(
            fixtures.TempDir()).path) / 'disk'
        self.path.write_text('')
        self.disk = planning.RootDisk('vda', 'file', str(self.path), 'qcow2')
        self.locks = self.path.with_name('locks')
        self.lock()
        self.useFixture(fixtures.MockPatchObject(
            qemu_process, 'LOCKS', self.locks))

    def lock(self, *ranges):
        file = self.path.stat()
        identity = (f'{os.major(file.st_dev):02x}:'
                    f'{os.minor(file.st_dev):02x}:{file.st_ino}')
        self.locks.write_text(
            '1: POSIX  ADVISORY  WRITE 1 fe:00:1 0 EOF\n'
            '1: -> FLOCK  ADVISORY  WRITE 1 fe:00:1 0 EOF\n' + ''.join(
                f'2: OFDLCK ADVISORY  READ -1 {identity} {part}\n'
                for part in ranges))

    def subject(self, paused=True):
        if paused:
            self.guest.state.return_value = (
                libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER)
        return qemu_process.subject(self.guest, self.disk)

    def test_running_guest_is_active(self):
        subject = self.subject(paused=False)
        self.assertFalse(subject.paused or subject.inactive)

    def test_paused_guest_that_was_started_is_active(self):
        subject = self.subject()
        self.assertTrue(subject.paused)
        self.assertFalse(subject.inactive)

    def test_paused_guest_that_was_restored_is_inactive(self):
        self.processes = [self.process('-incoming', 'defer')]
        self.assertTrue(self.subject().inactive)

    def test_restored_guest_that_has_run_is_active(self):
        self.processes = [self.process('-incoming', 'defer')]
        for part in ('100 101', '101 101', '0 EOF'):
            self.lock('201 201', part)
            self.assertFalse(self.subject().inactive)

    def test_disk_that_is_only_read_is_inactive(self):
        self.processes = [self.process('-incoming', 'defer')]
        self.lock('100 100', '201 201', '203 203')
        self.assertTrue(self.subject().inactive)

    def test_paused_guest_of_a_hidden_process_may_be_inactive(self):
        self.processes = []
        self.assertTrue(self.subject().inactive)
        self.lock('100 101')
        self.assertFalse(self.subject().inactive)

    def test_disk_that_can_not_be_seen_may_be_inactive(self):
        self.processes = [self.process('-incoming', 'defer')]
        self.path.unlink()
        self.assertTrue(self.subject().inactive)


class ServerTest(base.TestCase):
    """Whether the guest's QEMU listens on its socket."""

    def setUp(self):
        super().setUp()
        self.guest = base.fake_guest()
        self.guest.uuid = UUID
        self.path = os.path.join(
            self.useFixture(fixtures.TempDir()).path, 'nbd')
        # eventlet's closes itself when nothing refers to it.
        self.server = socket.socket(socket.AF_UNIX)
        self.addCleanup(self.server.close)
        self.server.bind(self.path)
        self.server.listen()
        self.process = self.useFixture(fixtures.MockPatchObject(
            psutil, 'Process')).mock

    def check(self, uid=None, **process):
        self.process.return_value.cmdline.configure_mock(**process)
        qemu_process.check_server(
            self.path, self.guest, os.geteuid() if uid is None else uid)
        self.process.assert_called_once_with(os.getpid())

    def refusal(self, **kwargs):
        return str(self.assertRaises(
            exception.UnexpectedState, self.check, **kwargs))

    def test_guests_own_process_may_listen(self):
        self.check(return_value=['qemu', '-uuid', UUID])

    def test_qemu_of_another_guest_may_not_listen(self):
        text = self.refusal(return_value=['qemu', '-uuid', f'{UUID[:-1]}0'])
        self.assertIn(f'process {os.getpid()} of user {os.geteuid()}', text)

    def test_process_of_another_user_may_not_listen(self):
        self.refusal(uid=os.geteuid() + 1,
                     return_value=['qemu', '-uuid', UUID])

    def test_process_that_nova_may_not_see_is_told_by_its_user_alone(self):
        for error in (psutil.NoSuchProcess(1), psutil.AccessDenied(1)):
            self.process.reset_mock()
            self.check(side_effect=error)
        self.process.reset_mock()
        self.refusal(uid=os.geteuid() + 1, side_effect=error)

    def test_process_of_another_pid_namespace_has_no_id(self):
        self.assertFalse(qemu_process._is_other(0, self.guest))
        self.process.assert_not_called()

    def test_socket_without_a_server_is_an_error(self):
        os.unlink(self.path)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(self.path)
        self.assertRaises(OSError, self.check)
