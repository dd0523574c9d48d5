# SPDX-License-Identifier: Apache-2.0
"""A file system of the scratch file that fills up while an image is sent."""

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
    """With a file system of its own for the scratch file.

    :cvar ROOM: its size, in KiB
    :cvar HEADROOM: that is kept free in it, in MiB
    """

    ROOM: int
    HEADROOM: int

    @classmethod
    def setUpClass(cls):
        cls.small = cls.make_file_system()
        cls.CONFIGURATION = (*cls.CONFIGURATION,
                             f'snapext.freeze_directory={cls.small}',
                             f'snapext.space_headroom={cls.HEADROOM}')
        super().setUpClass()
        cls.mount_for_qemu()

    @classmethod
    def make_file_system(cls):
        cls.small = pathlib.Path(tempfile.mkdtemp())
        cls.addClassCleanup(cls.small.rmdir)
        with tempfile.NamedTemporaryFile() as image:
            run('mke2fs', '-q', '-t', 'ext4', '-O', '^has_journal', '-m', '0',
                '-N', '16', image.name, str(cls.ROOM))
            cls.device = run('losetup', '--find', '--show', image.name)
        cls.addClassCleanup(run, 'losetup', '--detach', cls.device)
        run('mount', cls.device, cls.small)
        cls.addClassCleanup(run, 'umount', cls.small)
        (cls.small / 'lost+found').rmdir()
        shutil.chown(cls.small, 'nova', 'nova')
        return cls.small

    @classmethod
    def mount_for_qemu(cls):
        """Mount it where QEMU runs too: libvirtd's own mount namespace."""
        _virtlogd, libvirtd = cls.host.daemons
        inside = ('nsenter', '--mount', '--target',
                  str(libvirtd.identity().pid))
        run(*inside, 'mount', cls.device, cls.small)
        cls.addClassCleanup(run, *inside, 'umount', cls.small)


class FullScratchTest(SmallScratchTestCase):
    """Where space is not watched."""

    # For an empty scratch file and some clusters.
    ROOM = 448
    HEADROOM = 0

    def snapshot_until_paused(self, image):
        """Snapshot a guest, with Glance's answer held until it is paused."""
        server = self.boot(image, add_cleanup=self.addCleanup)
        self.proxy.faults = proxy.Faults(before_end=lambda: wait.until(
            'QEMU to pause the guest',
            lambda: 'paused' in self.host.virsh('domstate', server), 120))
        return server, self.snapshot(server, add_cleanup=self.addCleanup)

    def assert_lives_on(self, server, shot):
        self.assertIn('the guest is resumed', shot.log)
        self.assertIn('running', self.host.virsh('domstate', server))
        self.assertEqual('ACTIVE', servers.show(self.client, server)['status'])
        self.assertEqual([], list(self.small.iterdir()))
        self.assert_nothing_left(server)
        # A record is acknowledged when it is in the filesystem too.
        self.assert_writes_on(server)

    def test_a_guest_that_is_paused_meanwhile_goes_on_and_loses_nothing(self):
        server, shot = self.snapshot_until_paused('snap-guest-noagent')
        self.assert_lives_on(server, shot)
        # What was frozen before is right all the same.
        self.assert_snapshot_right(shot)

    def test_a_guest_that_is_paused_while_frozen_is_thawed_all_the_same(self):
        server, shot = self.snapshot_until_paused('snap-guest')
        self.assert_lives_on(server, shot)
        if shot.strategy is None:
            self.assertIn('ThawFailed', shot.log)
            self.assertFalse(self.image_exists(shot.image))
        else:
            self.assert_snapshot_right(shot)


class WatchedScratchTest(SmallScratchTestCase):

    ROOM = 2048
    HEADROOM = 1

    def test_a_snapshot_is_given_up_before_the_guest_is_paused(self):
        server = self.boot(add_cleanup=self.addCleanup)
        with watch.DomainEvents(self.host, server) as events:
            running = self.begin(server)
            # What somebody else takes; the headroom is left in part.
            other = self.small / 'other'
            other.write_bytes(bytes(640 * units.Ki))
            self.assert_given_up(running, 'Space runs short')
            self.await_end(running)
            self.assertEqual([], events.lines())
        other.unlink()
        self.assertIn(str(self.small), running.log)
        self.assertEqual([], list(self.small.iterdir()))
        self.assert_nothing_left(server)
        self.assert_writes_on(server)
        # Nor is one begun where there is too little from the beginning.
        self.configure('snapext.space_headroom=2')
        shot = self.snapshot(server, add_cleanup=self.addCleanup)
        self.assertIn('Space runs short', shot.log)
        self.assertNotIn('is frozen', shot.log)
        self.assertFalse(self.image_exists(shot.image))
        self.assert_writes_on(server)


def run(*command):
    return subprocess.run(command, check=True, capture_output=True,
                          text=True).stdout.strip()
