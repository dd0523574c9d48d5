# SPDX-License-Identifier: Apache-2.0
"""What a process of QEMU's user can do to a snapshot with a backup job."""

import contextlib
import grp
import os
import pathlib
import pwd
import socket
import stat
import subprocess
import sys
from unittest import mock

from devcloud import libvirtd as devcloud_libvirtd
import fixtures
import libvirt

from nova_snapext import exception
from nova_snapext.hypervisor import domain
from nova_snapext.hypervisor import privsep
from nova_snapext.hypervisor import qemu_img
from nova_snapext import journal
from nova_snapext import plan as planning
from nova_snapext.resources import backup_job
from nova_snapext.resources import work_directory
from nova_snapext.strategies import backup
from tests.functional import base
from tests.functional.recovery import test_recover
from tests.functional.strategies import contract

BEFORE, AFTER = contract.BEFORE, contract.AFTER

#: A user that is neither root nor QEMU's.
NOVA = 64742


def calling(target, name, act):
    """Call a function after another one, with what that was called with."""
    original = getattr(target, name)

    def function(*args, **kwargs):
        original(*args, **kwargs)
        act(*args, **kwargs)

    return mock.patch.object(target, name, function)


class WorkDirectoryTestCase(test_recover.RecoveryTestCase):

    def setUp(self):
        super().setUp()
        self.strategy = backup.BackupStrategy(self.driver)
        self.uid = pwd.getpwnam(devcloud_libvirtd.QEMU_USER).pw_uid
        self.gid = grp.getgrnam(devcloud_libvirtd.QEMU_USER).gr_gid
        self.victims = pathlib.Path(self.useFixture(
            fixtures.TempDir(rootdir=str(self.directory))).path)
        self.victims.chmod(0o777)

    def as_qemu(self, script, *arguments):
        """Run Python as QEMU's user.

        :returns: what it wrote to stderr
        """
        return subprocess.run(
            ['setpriv', f'--reuid={self.uid}', f'--regid={self.gid}',
             '--clear-groups', sys.executable, '-c', script,
             *map(str, arguments)],
            capture_output=True, text=True, cwd='/', timeout=60).stderr

    def files(self):
        """List all files below the work directory, relative to it."""
        return sorted(str(path.relative_to(self.freezes))
                      for path in self.freezes.rglob('*'))

    def guest_before(self):
        disk = self.qcow2()
        self.fill(disk, BEFORE)
        return self.guest(disk)

    @contextlib.contextmanager
    def frozen(self, plan):
        with self.strategy.freeze(plan) as frozen:
            self.write_as_guest(plan, AFTER)
            self.assertEqual({BEFORE}, self.content(frozen))
            yield frozen
        self.assert_nothing_left(plan)


class QemusUserTest(WorkDirectoryTestCase):

    def test_rights_during_a_snapshot(self):
        plan = self.guest_before()
        with self.frozen(plan):
            guest = self.freezes / f'libvirt-{plan.instance.uuid}'
            [token] = guest.iterdir()
            self.assertEqual(['nbd', 'scratch'], sorted(os.listdir(token)))
            for path, mode, uid, gid in (
                    (guest, 0o711, 0, 0),
                    (token, 0o700, 0, self.gid),
                    (token / 'scratch', 0o600, self.uid, self.gid)):
                found = path.stat()
                self.assertEqual(
                    (mode, uid, gid),
                    (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid))
            errors = self.as_qemu(
                'import os, sys\n'
                'guest, token = sys.argv[1:]\n'
                'def fails(function, *arguments):\n'
                '    try:\n'
                '        function(*arguments)\n'
                '    except PermissionError:\n'
                '        return\n'
                '    print(function, arguments, file=sys.stderr)\n'
                'for path in (guest, token):\n'
                '    fails(os.listdir, path)\n'
                '    fails(os.mkdir, f"{path}/new")\n'
                '    fails(os.symlink, "/x", f"{path}/link")\n'
                'for name in ("nbd", "scratch"):\n'
                '    fails(os.stat, f"{token}/{name}")\n'
                '    fails(os.unlink, f"{token}/{name}")\n'
                '    fails(os.rename, f"{token}/{name}", f"{token}/away")\n',
                guest, token)
            self.assertEqual('', errors)

    def test_planted_symlinks_lead_nothing_privileged_anywhere(self):
        plan = self.guest_before()
        planted = []

        def plant(directory, *_owner):
            self.as_qemu(
                'import contextlib, os, sys\n'
                'target, path = sys.argv[1:]\n'
                'for below in (path, f"{path}/qemu"):\n'
                '    for name in ("scratch", "nbd", "pid", "x"):\n'
                '        with contextlib.suppress(OSError):\n'
                '            os.symlink(f"{target}/{name}",\n'
                '                       f"{below}/{name}")\n',
                self.victims, directory.path)
            planted.extend(path for path in self.files()
                           if (self.freezes / path).is_symlink())

        with calling(work_directory.WorkDirectory, 'share_with', plant), \
                self.frozen(plan):
            pass
        # Not in vain: QEMU's user can write in one directory.
        self.assertEqual({'nbd', 'pid', 'scratch', 'x'},
                         {os.path.basename(path) for path in planted})
        self.assertEqual({'qemu'}, {path.split('/')[2] for path in planted})
        self.assertEqual([], os.listdir(self.victims))

    def assert_refused(self, plan, script, *arguments):
        """Check that a socket that QEMU's user has replaced is refused."""
        def replace(job, _guest):
            path = job._directory.qemu_socket
            self.assertEqual('', self.as_qemu(
                f'import os, sys\npath = sys.argv[1]\n{script}', path,
                *arguments))

        with calling(backup_job.BackupJob, 'begin', replace):
            text = self.freeze_fails(plan, exception.FreezeFailed)
        self.assertIn(plan.instance.uuid, text)
        self.assert_nothing_left(plan)
        with self.frozen(plan):
            pass
        return text

    def test_replaced_socket_is_refused(self):
        (self.victims / 'file').touch()
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(self.victims / 'socket'))
            server.listen()
            for script in (
                    'os.unlink(path); os.symlink(sys.argv[2] + "/new", path)',
                    'os.unlink(path); os.symlink(sys.argv[2] + "/file", path)',
                    'os.unlink(path);'
                    'os.symlink(sys.argv[2] + "/socket", path)',
                    'os.unlink(path); open(path, "w").close()',
                    'os.unlink(path); os.mkfifo(path)',
                    'os.unlink(path); os.mkdir(path); '
                    'os.chmod(path, 0o777)'):
                with self.subTest(script):
                    text = self.assert_refused(
                        self.guest_before(), script, self.victims)
                    self.assertIn('is not the socket of QEMU', text)
        self.assertEqual(['file', 'socket'],
                         sorted(os.listdir(self.victims)))

    def test_missing_socket_is_refused(self):
        text = self.assert_refused(self.guest_before(), 'os.unlink(path)')
        self.assertIn('No such file', text)

    def test_socket_of_another_process_is_refused(self):
        path = self.victims / 'server'
        os.chown(self.victims, self.uid, self.gid)
        with subprocess.Popen(
                ['setpriv', f'--reuid={self.uid}', f'--regid={self.gid}',
                 '--clear-groups', sys.executable, '-c',
                 'import socket, sys\n'
                 'server = socket.socket(socket.AF_UNIX)\n'
                 'server.bind(sys.argv[1])\n'
                 'server.listen()\n'
                 'print(flush=True)\n'
                 'sys.stdin.read()', path],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
            server.stdout.readline()
            text = self.assert_refused(
                self.guest_before(),
                'os.unlink(path); os.link(sys.argv[2], path)', path)
            server.stdin.close()
        self.assertIn('not the QEMU of the guest listens', text)

    def test_socket_of_another_guest_is_refused(self):
        # Of an operator's backup: QEMU's user can't reach those of snapshots.
        other = self.guest_before()
        other.guest._domain.backupBegin(
            f'<domainbackup mode="pull"><server transport="unix" '
            f'socket="{self.victims}/nbd"/><disks><disk name="vda" '
            f'type="file" backup="yes"><driver type="qcow2"/><scratch '
            f'file="{self.victims}/scratch"/></disk></disks></domainbackup>',
            None, 0)
        self.addCleanup(other.guest.abort_job)
        text = self.assert_refused(
            self.guest_before(),
            'os.unlink(path); os.link(sys.argv[2], path)',
            self.victims / 'nbd')
        self.assertIn('not the QEMU of the guest listens', text)

    def test_socket_without_a_server_is_refused(self):
        self.assertIn('refused', self.assert_refused(
            self.guest_before(),
            'import socket; os.unlink(path); '
            'socket.socket(socket.AF_UNIX).bind(path)'))


class NovasUserTest(WorkDirectoryTestCase):
    """Nova's user is neither root nor QEMU's.

    The threads of the tests run as Nova's user, and as root where privsep
    would.
    """

    def setUp(self):
        super().setUp()
        self.freezes.mkdir()
        os.chown(self.freezes, NOVA, NOVA)
        self.give_journal_to(NOVA)
        for name in ('read_qcow2', 'chown'):
            self.useFixture(fixtures.MockPatchObject(
                privsep, name, self.as_root(getattr(privsep, name))))

    def become(self, user):
        if user == 0:
            os.setresuid(0, 0, 0)
        os.setresgid(user, user, 0)
        os.setresuid(user, user, 0)

    def as_root(self, function):
        def call(*args, **kwargs):
            self.become(0)
            try:
                return function(*args, **kwargs)
            finally:
                self.become(NOVA)
        return call

    @contextlib.contextmanager
    def as_nova(self):
        groups = os.getgroups()
        os.setgroups([])
        self.become(NOVA)
        try:
            yield
        finally:
            self.become(0)
            os.setgroups(groups)

    def test_nova_reads_the_disk_and_removes_everything(self):
        plan = self.guest_before()
        with self.as_nova(), self.frozen(plan):
            [scratch] = self.freezes.glob(
                f'libvirt-{plan.instance.uuid}/*/scratch')
            self.assertEqual(self.uid, scratch.stat().st_uid)

    def planting(self, script=''):
        """Fill QEMU's directory as its user, with what Nova can't enter.

        :param script: for more of it
        """
        (self.victims / 'file').touch()

        def plant(directory, *_owner):
            self.assertEqual('', self.as_root(self.as_qemu)(
                'import os, sys\n'
                'path, victims = sys.argv[1:]\n'
                'os.chdir(path)\n'
                'os.mkfifo("pipe")\n'
                'directories = []\n'
                'for number in range(30):\n'
                '    open("file", "w").close()\n'
                '    os.symlink(victims, "link")\n'
                '    directories.append(os.open(".", os.O_RDONLY))\n'
                '    os.mkdir("x" * 200)\n'
                '    os.chdir("x" * 200)\n'
                'for directory in reversed(directories[1:]):\n'
                f'    os.fchmod(directory, 0)\n{script}',
                os.path.dirname(directory.qemu_socket), self.victims))

        return calling(work_directory.WorkDirectory, 'share_with', plant)

    def test_whatever_qemus_user_plants_is_removed(self):
        plan = self.guest_before()
        with self.planting(), self.as_nova(), self.frozen(plan):
            pass
        self.assertEqual(['file'], os.listdir(self.victims))

    def test_directory_that_qemus_user_closes_is_removed(self):
        plan = self.guest_before()
        with self.planting('os.chmod(path, 0o700)'), self.as_nova():
            # Without the setgid bit, Nova can't connect to the socket.
            self.freeze_fails(plan, exception.FreezeFailed)
        self.assert_nothing_left(plan)
        self.assertEqual(['file'], os.listdir(self.victims))

    def test_recovery_removes_everything_at_each_step(self):
        for target, name in STEPS:
            with self.subTest(name):
                plan = self.guest_before()
                with self.as_nova():
                    with test_recover.killed(), \
                            test_recover.killed_after(target, name), \
                            self.strategy.freeze(plan):
                        pass
                    self.recover(plan)
                self.assert_nothing_left(plan)


STEPS = ((work_directory.WorkDirectory, 'create'),
         (qemu_img, 'create_scratch'),
         (work_directory.WorkDirectory, 'create_scratch'),
         (work_directory.WorkDirectory, 'share_with'),
         (domain.Domain, 'begin_backup'),
         (work_directory.WorkDirectory, 'take_socket'))


class RecoveryTest(WorkDirectoryTestCase):

    def test_each_step_is_recovered(self):
        for target, name in STEPS:
            with self.subTest(name):
                plan = self.guest_before()
                before = self.definitions(plan)
                with test_recover.killed(), \
                        test_recover.killed_after(target, name), \
                        self.strategy.freeze(plan):
                    pass
                self.assertEqual(
                    1, len(list(work_directory.find())))
                self.write_as_guest(plan, AFTER)
                self.assert_recovers_running(plan, before)

    def test_snapshot_is_recovered_after_the_option_has_changed(self):
        plan = self.guest_before()
        self.leave(backup.BackupStrategy, plan)
        work_directory.CONF.set_override(
            'work_directory', '/nonexistent', 'snapext')
        self.recover(plan)
        self.assert_nothing_left(plan)

    def test_hostile_record_removes_nothing(self):
        plan = self.guest_before()
        victim = self.victims / f'libvirt-{plan.instance.uuid}' / '01234567'
        victim.mkdir(parents=True)
        (victim / 'file').touch()
        self.leave(backup.BackupStrategy, plan)
        entry = pathlib.Path(journal.find(plan.instance.uuid).path)
        content = entry.read_text()
        [path] = work_directory.find()
        for hostile in (victim, self.victims, f'{path}/../../..', '/'):
            entry.write_text(content.replace(
                f'"directory": "{path}"', f'"directory": "{hostile}"'))
            self.assertNotEqual(content, entry.read_text())
            self.fails(plan, f"'{hostile}'", 'not touched')
            self.assertTrue((victim / 'file').exists())
            self.assertEqual(libvirt.VIR_DOMAIN_JOB_UNBOUNDED,
                             plan.guest._domain.jobInfo()[0])
        entry.write_text(content)
        self.recover(plan)
        self.assert_nothing_left(plan)


class ScratchTest(WorkDirectoryTestCase):

    def test_disk_whose_size_is_no_multiple_of_a_sector_is_frozen(self):
        path = self.images / 'odd.raw'
        path.write_bytes(bytes([BEFORE]) * (base.DISK_SIZE - 100))
        plan = self.guest(planning.RootDisk('vda', 'file', str(path), 'raw'))
        with self.strategy.freeze(plan) as frozen:
            self.assertEqual({BEFORE, 0}, self.content(frozen))
        self.assert_nothing_left(plan)

    def test_disk_with_other_clusters_is_frozen(self):
        for size in ('512', '2M'):
            with self.subTest(size):
                path = self.images / f'disk-{size}.qcow2'
                base.run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o',
                         f'cluster_size={size}', str(path),
                         str(base.DISK_SIZE))
                disk = planning.RootDisk('vda', 'file', str(path), 'qcow2')
                self.fill(disk, BEFORE)
                with self.frozen(self.guest(disk)):
                    pass

    def test_growth_is_reported_by_libvirt(self):
        plan = self.guest_before()
        with self.strategy.freeze(plan):
            before = plan.guest.job_stats()['disk_temp_used']
            self.write_as_guest(plan, AFTER)
            after = plan.guest.job_stats()['disk_temp_used']
        self.assertGreaterEqual(after - before, base.DISK_SIZE)

    def test_scratch_file_of_a_job_that_somebody_ended_is_not_left(self):
        plan = self.guest_before()
        with self.frozen(plan):
            plan.guest.abort_job()


class OwnerStaysTest(WorkDirectoryTestCase):
    """libvirt changes the owner of no file (dynamic_ownership=0)."""

    @classmethod
    def setUpClass(cls):
        patcher = mock.patch.object(
            devcloud_libvirtd, 'QEMU_CONF',
            devcloud_libvirtd.QEMU_CONF.replace(
                'dynamic_ownership = 1', 'dynamic_ownership = 0'))
        patcher.start()
        cls.addClassCleanup(patcher.stop)
        super().setUpClass()

    def test_scratch_file_belongs_to_qemus_user_all_the_same(self):
        self.assertIn('dynamic_ownership = 0', (
            self.directory / 'etc' / 'qemu.conf').read_text())
        disk = self.qcow2()
        self.fill(disk, BEFORE)
        plan = self.guest(disk, running=False)
        for path in (disk.path, *self.images.glob('*.other')):
            os.chown(path, self.uid, self.gid)
        plan.guest.launch()
        with self.frozen(self.plan_of(plan.instance, disk)):
            [scratch] = self.freezes.glob('*/*/scratch')
            self.assertEqual(self.uid, scratch.stat().st_uid)
