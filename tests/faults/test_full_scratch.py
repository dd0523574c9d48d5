# SPDX-License-Identifier: Apache-2.0
"""A file system that fills with the scratch file during an upload."""

import pathlib
import shutil
import subprocess
import tempfile

from devcloud import servers
from devcloud import wait
from devcloud import watch
from oslo_utils import units

from tests.e2e import held
from tests.e2e import proxy


class SmallScratchTestCase(held.HeldUploadTestCase):
    """Tests with a small file system for the scratch file alone.

    :cvar FILE_SYSTEM_KB: its size, in KiB
    :cvar MIN_FREE_MB: free space that a snapshot leaves there, in MiB
    """

    FILE_SYSTEM_KB: int
    MIN_FREE_MB: int

    @classmethod
    def setUpClass(cls):
        cls.small = cls.make_file_system()
        cls.CONFIGURATION = (*cls.CONFIGURATION,
                             f'snapext.work_directory={cls.small}',
                             f'snapext.min_free_disk_mb={cls.MIN_FREE_MB}')
        super().setUpClass()
        cls.mount_for_qemu()

    @classmethod
    def make_file_system(cls):
        cls.small = pathlib.Path(tempfile.mkdtemp())
        cls.addClassCleanup(cls.small.rmdir)
        with tempfile.NamedTemporaryFile() as image:
            run('mke2fs', '-q', '-t', 'ext4', '-O', '^has_journal', '-m', '0',
                '-N', '16', image.name, str(cls.FILE_SYSTEM_KB))
            cls.device = run('losetup', '--find', '--show', image.name)
        cls.addClassCleanup(run, 'losetup', '--detach', cls.device)
        run('mount', cls.device, cls.small)
        cls.addClassCleanup(run, 'umount', cls.small)
        (cls.small / 'lost+found').rmdir()
        shutil.chown(cls.small, 'nova', 'nova')
        return cls.small

    @classmethod
    def mount_for_qemu(cls):
        """Mount the file system in libvirtd's mount namespace too.

        QEMU runs in that namespace.
        """
        _virtlogd, libvirtd = cls.host.daemons
        inside = ('nsenter', '--mount', '--target',
                  str(libvirtd.identity().pid))
        run(*inside, 'mount', cls.device, cls.small)
        cls.addClassCleanup(run, *inside, 'umount', cls.small)


class FullScratchTest(SmallScratchTestCase):
    """The free space is not checked."""

    # Enough for an empty scratch file and some clusters.
    FILE_SYSTEM_KB = 448
    MIN_FREE_MB = 0

    def snapshot_until_paused(self, image):
        """Take a snapshot, whose upload ends when QEMU has paused the guest.

        :param image: name of the guest's image
        :returns: the server, and the snapshot
        """
        server = self.boot(image, add_cleanup=self.addCleanup)
        self.proxy.faults = proxy.Faults(before_end=lambda: wait.until(
            'QEMU to pause the guest',
            lambda: 'paused' in self.host.virsh('domstate', server), 120))
        return server, self.snapshot(server, add_cleanup=self.addCleanup)

    def assert_resumed(self, server, snapshot):
        self.assertIn('The guest is resumed', snapshot.log)
        self.assertIn('running', self.host.virsh('domstate', server))
        self.assertEqual('ACTIVE', servers.show(self.client, server)['status'])
        self.assertEqual([], list(self.small.iterdir()))
        self.assert_nothing_left(server)
        # The guest acknowledges a record when it is in the filesystem too.
        self.assert_keeps_writing(server)

    def test_guest_paused_by_full_scratch_is_resumed_and_loses_nothing(self):
        server, snapshot = self.snapshot_until_paused('snap-guest-noagent')
        self.assert_resumed(server, snapshot)
        # The disk was frozen before the pause.
        self.assert_snapshot_complete(snapshot)

    def test_guest_paused_with_frozen_filesystems_is_resumed_and_thawed(self):
        server, snapshot = self.snapshot_until_paused('snap-guest')
        self.assert_resumed(server, snapshot)
        if snapshot.strategy is None:
            self.assertIn('ThawFailed', snapshot.log)
            self.assertFalse(self.image_exists(snapshot.image))
        else:
            self.assert_snapshot_complete(snapshot)


class CheckedScratchTest(SmallScratchTestCase):
    """The free space is checked."""

    FILE_SYSTEM_KB = 2048
    MIN_FREE_MB = 1

    def test_shortage_of_space_aborts_snapshot_before_guest_is_paused(self):
        server = self.boot(add_cleanup=self.addCleanup)
        with watch.DomainEvents(self.host, server) as events:
            running = self.begin(server)
            # Another file takes space; a part of the minimum is still free.
            other = self.small / 'other'
            other.write_bytes(bytes(640 * units.Ki))
            self.assert_cancelled(
                running, 'Snapshot aborted: There is not enough free space')
            self.await_end(running)
            self.assertEqual([], events.lines())
        other.unlink()
        self.assertIn(str(self.small), running.log)
        self.assertEqual([], list(self.small.iterdir()))
        self.assert_nothing_left(server)
        self.assert_keeps_writing(server)
        # With too little space at the beginning, the disk is not frozen.
        self.configure('snapext.min_free_disk_mb=2')
        snapshot = self.snapshot(server, strategy='backup',
                                 add_cleanup=self.addCleanup)
        self.assertIn('[snapext]min_free_disk_mb keeps 2 MiB', snapshot.log)
        self.assertNotIn('is frozen', snapshot.log)
        self.assertFalse(self.image_exists(snapshot.image))
        self.assert_keeps_writing(server)


def run(*command):
    return subprocess.run(command, check=True, capture_output=True,
                          text=True).stdout.strip()
