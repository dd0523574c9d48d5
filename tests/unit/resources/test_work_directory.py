# SPDX-License-Identifier: Apache-2.0

import os
import socket
import stat
from unittest import mock

import fixtures

from nova_snapext import exception
from nova_snapext.hypervisor import privsep
from nova_snapext.resources import backup_job
from nova_snapext.resources import nbd_export
from nova_snapext.resources import work_directory
from tests.unit import base

QEMU, KVM = 64055, 109

SIZE = 1 << 20


class WorkDirectoryTestCase(base.TestCase):

    def setUp(self):
        super().setUp()
        self.parent = self.useFixture(fixtures.TempDir()).path
        self.flags(work_directory=self.parent, group='snapext')
        self.target = self.plan()
        self.instance_ = self.target.instance

    def allocate(self):
        return work_directory.WorkDirectory.allocate(self.instance_)

    def create(self):
        directory = self.allocate()
        directory.create()
        return directory

    @staticmethod
    def mode(path):
        return stat.S_IMODE(os.stat(path).st_mode)

    def listen(self, path):
        # eventlet's closes itself when nothing refers to it.
        self.server = socket.socket(socket.AF_UNIX)
        self.addCleanup(self.server.close)
        self.server.bind(path)
        self.server.listen()


class WorkDirectoryTest(WorkDirectoryTestCase):

    def test_directory_is_named_after_the_guests_apparmor_profile(self):
        directory = self.allocate()
        name = os.path.relpath(directory.path, self.parent)
        self.assertRegex(
            name, f'^libvirt-{self.instance_.uuid}/[0-9a-f]{{8}}$')
        self.assertFalse(os.path.exists(os.path.dirname(directory.path)))

    def test_new_directory_can_be_entered_by_nova_only(self):
        self.assertEqual(0o700, self.mode(self.create().path))

    def test_directory_of_guest_can_be_searched_but_not_listed(self):
        umask = os.umask(0o077)
        self.addCleanup(os.umask, umask)
        directory = self.create()
        self.assertEqual(0o711, self.mode(os.path.dirname(directory.path)))

    def test_directory_of_guest_that_is_somebody_elses_is_refused(self):
        for number, create in enumerate((
                lambda path: os.symlink('/tmp', path),
                lambda path: open(path, 'w').close(),
                lambda path: (os.mkdir(path), os.chmod(path, 0o777)))):
            directory = self.allocate()
            guest = os.path.dirname(directory.path)
            create(guest)
            error = self.assertRaises(
                exception.WorkDirectoryError, directory.create)
            self.assertIn(guest, str(error))
            os.rename(guest, f'{guest}.{number}')

    @mock.patch.object(privsep, 'chown')
    def test_qemu_can_write_in_a_directory_of_its_own_only(self, chown):
        directory = self.create()
        directory.share_with(QEMU, KVM)
        qemu = os.path.dirname(directory.qemu_socket)
        self.assertEqual(0o710, self.mode(directory.path))
        self.assertEqual(0o2770, self.mode(qemu))
        self.assertEqual([], os.listdir(qemu))
        self.assertEqual([mock.call(directory.path, os.geteuid(), KVM),
                          mock.call(qemu, QEMU)], chown.mock_calls)

    @mock.patch.object(privsep, 'chown')
    def test_nothing_is_given_away_if_qemu_runs_as_nova(self, chown):
        directory = self.create()
        directory.create_scratch(SIZE, os.geteuid(), KVM)
        directory.share_with(os.geteuid(), KVM)
        self.assertEqual(0o700, self.mode(directory.path))
        self.assertEqual(
            0o700, self.mode(os.path.dirname(directory.qemu_socket)))
        chown.assert_not_called()

    @mock.patch.object(privsep, 'chown')
    def test_scratch_file_is_qemus_and_nobody_else_can_read_it(self, chown):
        directory = self.create()
        directory.create_scratch(SIZE, QEMU, KVM)
        self.assertEqual(0o600, self.mode(directory.scratch))
        chown.assert_called_once_with(directory.scratch, QEMU, KVM)

    def test_scratch_file_that_exists_is_not_used(self):
        directory = self.create()
        os.symlink('/nonexistent', directory.scratch)
        self.assertRaises(FileExistsError, directory.create_scratch, SIZE,
                          os.geteuid(), KVM)

    def test_socket_is_taken_and_qemus_directory_removed(self):
        directory = self.create()
        directory.share_with(os.geteuid(), KVM)
        self.listen(directory.qemu_socket)
        directory.take_socket()
        self.assertEqual(['nbd'], os.listdir(directory.path))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(directory.socket)

    def test_anything_but_a_socket_is_not_taken_for_one(self):
        other = os.path.join(self.parent, 'other')
        self.listen(other)
        for create in (lambda path: os.symlink(other, path),
                       lambda path: open(path, 'w').close(), os.mkfifo,
                       os.mkdir):
            directory = self.create()
            directory.share_with(os.geteuid(), KVM)
            create(directory.qemu_socket)
            error = self.assertRaises(
                exception.UnexpectedState, directory.take_socket)
            self.assertIn(directory.qemu_socket, str(error))
            directory.remove()
        self.assertEqual(['other'], os.listdir(self.parent))

    def test_missing_socket_is_an_error(self):
        directory = self.create()
        directory.share_with(os.geteuid(), KVM)
        self.assertRaises(FileNotFoundError, directory.take_socket)

    def test_removed_directory_is_removed_with_its_files(self):
        directory = self.create()
        open(directory.scratch, 'w').close()
        directory.share_with(os.geteuid(), KVM)
        open(directory.qemu_socket, 'w').close()
        directory.remove()
        directory.remove()
        self.assertEqual([], os.listdir(self.parent))

    def test_directory_of_guest_stays_for_another_snapshot(self):
        first, second = self.create(), self.create()
        first.remove()
        self.assertTrue(os.path.isdir(second.path))
        second.remove()
        self.assertEqual([], os.listdir(self.parent))

    def test_directory_of_guest_removed_at_the_same_time_comes_back(self):
        first, second = self.create(), self.allocate()
        mkdir = os.mkdir

        def remove_first(path, mode=0o777):
            if path == second.path and os.path.exists(first.path):
                first.remove()
                self.assertFalse(os.path.exists(os.path.dirname(path)))
            mkdir(path, mode)

        with mock.patch('os.mkdir', remove_first):
            second.create()
        self.assertTrue(os.path.isdir(second.path))

    def test_directory_that_can_not_be_created_is_an_error(self):
        os.rmdir(self.parent)
        open(self.parent, 'w').close()
        self.assertRaises(OSError, self.allocate().create)

    def test_symlinks_and_what_they_lead_to_stay_apart(self):
        victim = self.useFixture(fixtures.TempDir()).path
        open(os.path.join(victim, 'file'), 'w').close()
        directory = self.create()
        directory.share_with(os.geteuid(), KVM)
        qemu = os.path.dirname(directory.qemu_socket)
        for path in (directory.path, qemu):
            os.symlink(victim, os.path.join(path, 'link'))
        os.mkdir(os.path.join(qemu, 'below'))
        os.symlink(victim, os.path.join(qemu, 'below', 'link'))
        directory.remove()
        self.assertEqual([], os.listdir(self.parent))
        self.assertEqual(['file'], os.listdir(victim))

    def test_no_depth_is_too_deep(self):
        directory = self.create()
        directory.share_with(os.geteuid(), KVM)
        qemu = os.path.dirname(directory.qemu_socket)
        # Deeper than Python's stack and than the longest path.
        descriptor = os.open(qemu, os.O_RDONLY)
        for _ in range(3000):
            os.mkdir('below', dir_fd=descriptor)
            below = os.open('below', os.O_RDONLY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        os.close(descriptor)
        directory.remove()
        self.assertEqual([], os.listdir(self.parent))

    def test_path_too_long_for_socket_is_refused_and_nothing_created(self):
        long = os.path.join(self.parent, 'x' * 100)
        self.flags(work_directory=long, group='snapext')
        error = self.assertRaises(
            exception.WorkDirectoryError, self.allocate)
        for text in ('[snapext]work_directory', long, 'at most 44 bytes'):
            self.assertIn(text, str(error))
        self.assertFalse(os.path.exists(long))

    def test_longest_path_fits(self):
        for length, fits in ((44, True), (45, False)):
            self.flags(work_directory='/'.ljust(length, 'x'),
                       group='snapext')
            if fits:
                self.assertEqual(107, len(self.allocate().qemu_socket))
            else:
                self.assertRaises(
                    exception.WorkDirectoryError, self.allocate)

    def test_default_path_fits(self):
        self.flags(work_directory='/var/lib/nova/instances/snapshots',
                   group='snapext')
        self.assertEqual(96, len(self.allocate().qemu_socket))

    def test_missing_parent_is_created(self):
        below = os.path.join(self.parent, 'a', 'b')
        self.flags(work_directory=below, group='snapext')
        self.create()
        self.assertEqual(1, len(os.listdir(below)))


class RecordTest(WorkDirectoryTestCase):
    """What a journal may name, and what it may not."""

    def victim(self, *names):
        """Create a directory with a file that must survive."""
        path = os.path.join(self.useFixture(fixtures.TempDir()).path, *names)
        os.makedirs(path, exist_ok=True)
        open(os.path.join(path, 'file'), 'w').close()
        return path

    def restore_all(self, path, action):
        for resource, record in (
                (work_directory.WorkDirectory, {'path': path}),
                (backup_job.BackupJob,
                 {'directory': path, 'may_resume': True}),
                (nbd_export.NbdExport, {'directory': path})):
            action(resource.restore, mock.Mock(), self.target, record)

    def assert_refused(self, path):
        self.assertFalse(work_directory.is_ours(path))
        self.restore_all(path, lambda *call: self.assertRaises(
            exception.JournalRecordError, *call))

    def test_recorded_directory_is_removed_by_its_record(self):
        directory = self.create()
        restored = work_directory.WorkDirectory.restore(
            None, self.target, directory.record())
        restored.release()
        restored.release()
        self.assertEqual([], os.listdir(self.parent))

    def test_directory_in_every_state_is_ours(self):
        directory = self.allocate()
        steps = (lambda: None, directory.create,
                 lambda: directory.create_scratch(SIZE, os.geteuid(), KVM),
                 lambda: directory.share_with(os.geteuid(), KVM),
                 lambda: self.listen(directory.qemu_socket),
                 directory.take_socket,
                 lambda: open(directory.pid_file, 'w').close(),
                 directory.remove)
        for step in steps:
            step()
            self.assertTrue(work_directory.is_ours(directory.path))
            self.restore_all(directory.path,
                             lambda restore, *args: restore(*args))

    def test_directory_is_ours_after_the_option_has_changed(self):
        directory = self.create()
        self.flags(work_directory='/elsewhere', group='snapext')
        self.assertTrue(work_directory.is_ours(directory.path))

    def test_what_is_no_path_is_refused(self):
        path = self.create().path
        for value in (None, 7, True, [path], {'path': path}, '', '/', '.',
                      path.encode(), f'{path}\0', f'/{"x" * 5000}{path}'):
            self.assert_refused(value)

    def test_other_spellings_of_a_path_are_refused(self):
        path = self.create().path
        guest, token = os.path.split(path)
        for value in (f'{path}/', f'{path}/.', f'{guest}//{token}',
                      f'{guest}/./{token}', f'{guest}/../{path}', f'/{path}',
                      f'{path}/../{token}', f'{path}\n', path[1:], guest,
                      f'{path}/qemu', path[:-1], f'{path}0', path.upper()):
            self.assert_refused(value)

    def test_directory_of_another_instance_is_refused(self):
        path = self.create().path.replace(
            self.instance_.uuid, '0' * 8 + self.instance_.uuid[8:])
        self.assertTrue(work_directory.is_ours(path))
        self.assertFalse(
            work_directory.is_ours(path, self.instance_.uuid))
        self.restore_all(path, lambda *call: self.assertRaises(
            exception.JournalRecordError, *call))

    def test_other_directories_are_refused(self):
        for path in (self.victim(), '/etc', self.parent, '/var/lib/nova'):
            self.assert_refused(path)

    def test_directory_of_our_form_with_something_else_in_it_is_refused(self):
        self.assert_refused(self.victim(
            f'libvirt-{self.instance_.uuid}', '01234567'))

    def test_symlinks_are_refused(self):
        guest = f'libvirt-{self.instance_.uuid}'
        os.mkdir(os.path.join(self.parent, guest))
        link = os.path.join(self.parent, guest, '01234567')
        victim = self.victim('empty')
        os.unlink(os.path.join(victim, 'file'))
        os.symlink(victim, link)
        self.assert_refused(link)
        os.unlink(link)
        os.rmdir(os.path.join(self.parent, guest))
        os.mkdir(os.path.join(victim, '01234567'))
        os.symlink(victim, os.path.join(self.parent, guest))
        self.assert_refused(link)

    def test_files_are_refused(self):
        directory = self.allocate()
        os.mkdir(os.path.dirname(directory.path))
        open(directory.path, 'w').close()
        self.assert_refused(directory.path)

    def test_directories_of_others_are_refused(self):
        path = self.create().path
        for changed in (path, os.path.dirname(path)):
            mode = self.mode(changed)
            os.chmod(changed, mode | 0o002)
            self.assert_refused(path)
            os.chmod(changed, mode)
        self.assertTrue(work_directory.is_ours(path))
        self.useFixture(fixtures.MockPatch(
            'os.geteuid', return_value=os.geteuid() + 1))
        self.assert_refused(path)

    def test_work_directories_and_their_sockets_are_found(self):
        self.assertEqual([], list(work_directory.find()))
        directories = [self.create(), self.create()]
        os.mkdir(os.path.join(self.parent, 'other'))
        os.mkdir(os.path.join(os.path.dirname(directories[0].path), 'other'))
        self.assertEqual(sorted(one.path for one in directories),
                         list(work_directory.find()))
        for path in (directories[0].socket, directories[0].qemu_socket):
            self.assertTrue(work_directory.is_socket(path))
        for path in (directories[0].path, directories[0].scratch, '',
                     f'{self.parent}/nbd', f'{directories[0].path}/x/nbd'):
            self.assertFalse(work_directory.is_socket(path))
