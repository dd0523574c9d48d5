# SPDX-License-Identifier: Apache-2.0
"""A guest that discards its free space before its snapshot."""

import json
import os
import re
import subprocess
import time

from devcloud import errors
from devcloud import layout
from devcloud import servers
from devcloud import wait
from testtools import content

from tests.e2e import base
from tests import in_full

# Bytes that the guest writes, and deletes again.
DELETED = 256 * layout.MIB

MOUNT = 'mkdir -p /more && mount -t ext4 /dev/vda4 /more'

# A file system that is mounted again trims all of its free space, here in
# small pieces. The agent is stopped when the first ones are discarded: it can
# not answer, as in the trim of a very large disk.
HANG = """
umount /more
mount -t ext4 /dev/vda4 /more
echo 4096 > /sys/block/vda/queue/discard_max_bytes
discards() {{ set -- $(cat /sys/block/vda/stat); echo ${{12}}; }}
before=$(discards)
(
    while [ $(discards) = $before ]; do usleep 2000; done
    kill -STOP $(pidof qemu-ga)
    sleep {seconds}
    kill -CONT $(pidof qemu-ga)
) > /dev/null 2>&1 &
"""

GAIN = re.compile(r'has trimmed its file systems\. Root disk vda on the host: '
                  r'before=(\d+) after=(\d+) freed=(-?\d+) seconds=([\d.]+)')


class TrimTestCase(base.CloudTestCase):
    """Tests with a guest whose root disk passes discards on.

    :cvar PROPERTIES: further properties of the guest's image
    :cvar MORE: the fourth partition, with a file system of its own
    """

    CONFIGURATION = ('libvirt.hw_disk_discard=unmap',)
    PROPERTIES: tuple[tuple[str, str], ...] = ()
    FLAVOR = 'snap.tiny'
    MORE = layout.Partition(0x83, layout.RECORDS.end, 400 * layout.MIB)

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = cls.boot(cls.make_image(), cls.FLAVOR)
        cls.run_in_guest(MOUNT)

    @classmethod
    def make_image(cls):
        """Create a guest image with one more file system."""
        qcow2, raw = cls.directory / 'qcow2', cls.directory / 'raw'
        servers.download(
            cls.client, servers.image_id(cls.client, 'snap-guest'), qcow2)
        cls.execute('qemu-img', 'convert', '-O', 'raw', qcow2, raw)
        with open(raw, 'r+b') as disk:
            disk.truncate(cls.MORE.end)
            code = disk.read(440)
            disk.seek(0)
            disk.write(layout.boot_record(
                [layout.BOOT, layout.EXT4, layout.RECORDS, cls.MORE], code))
        cls.execute('mke2fs', '-q', '-t', 'ext4', '-E',
                    f'offset={cls.MORE.offset},lazy_itable_init=0,'
                    f'lazy_journal_init=0', raw, f'{cls.MORE.size >> 10}k')
        cls.execute('qemu-img', 'convert', '-O', 'qcow2', raw, qcow2)
        raw.unlink()
        image = cls.client.post('glance', '/images', {
            'name': 'e2e-trim', 'disk_format': 'qcow2',
            'container_format': 'bare', 'hw_qemu_guest_agent': 'yes',
            **dict(cls.PROPERTIES)})['id']
        cls.addClassCleanup(cls.client.delete, 'glance', f'/images/{image}')
        with open(qcow2, 'rb') as data:
            cls.client.open(
                'PUT', 'glance', f'/images/{image}/file', data,
                {'Content-Type': 'application/octet-stream'}).close()
        qcow2.unlink()
        return image

    @staticmethod
    def execute(*command):
        subprocess.run(command, check=True, capture_output=True)

    @classmethod
    def agent_command(cls, command, **arguments):
        return json.loads(cls.host.virsh(
            'qemu-agent-command', '--timeout', '5', cls.server, json.dumps(
                {'execute': command, 'arguments': arguments})))['return']

    @classmethod
    def run_in_guest(cls, script):
        """Run a shell script in the guest, and wait for its end."""
        pid = cls.agent_command('guest-exec', path='/bin/sh',
                                arg=['-c', script])['pid']

        def result():
            found = cls.agent_command('guest-exec-status', pid=pid)
            return found if found['exited'] else None

        found = wait.until(f'the end of {script}', result, 240)
        if found['exitcode'] != 0:
            raise errors.CloudError(f'{script} failed: {found}')

    @classmethod
    def write_and_delete(cls, size=DELETED):
        cls.run_in_guest(
            f'dd if=/dev/urandom of=/more/file bs=1M count={size >> 20} && '
            f'sync && rm /more/file && sync')

    @classmethod
    def agent_responds(cls):
        try:
            cls.agent_command('guest-sync', id=1)
        except errors.CommandFailed:
            return False
        return True

    def gain(self, snapshot):
        """Return the bytes that a trim has freed, by the log."""
        found = GAIN.search(snapshot.log)
        return int(found[3]) if found else None

    @staticmethod
    def sent(snapshot):
        return int(snapshot.figures[4])

    def size_on_host(self):
        disk = self.state.instances / self.server / 'disk'
        return disk.stat().st_blocks * 512


class FreeSpaceTest(TrimTestCase):

    CONFIGURATION = (*TrimTestCase.CONFIGURATION,
                     'snapext.allowed_image_strategies=auto,native')

    def timed_snapshot(self, name, **properties):
        """Take a snapshot; if the test fails, its figures are shown."""
        began = time.monotonic()
        snapshot = self.snapshot(self.server, **properties)
        size = self.image(snapshot.image)['size']
        self.addDetail(name, content.text_content(
            f'{size} bytes, {time.monotonic() - began:.1f} s'))
        self.assert_snapshot_complete(snapshot)
        return snapshot, size

    def assert_more_is_clean(self, image):
        """Check the file system that the guest has written to."""
        with self.downloaded(image) as file:
            raw = self.directory / 'check'
            self.execute('qemu-img', 'convert', '-O', 'raw', file, raw)
            try:
                self.execute('e2fsck', '-fn',
                             f'{raw}?offset={self.MORE.offset}')
            finally:
                os.unlink(raw)

    def test_deleted_data_is_not_sent_if_the_request_asks_for_a_trim(self):
        self.write_and_delete()
        size_before = self.size_on_host()
        without, size = self.timed_snapshot('without a trim')
        self.assertIsNone(self.gain(without))
        self.assertGreater(self.sent(without), DELETED)
        _native, native_size = self.timed_snapshot(
            'of Nova', strategy='native')
        self.assertGreater(native_size, DELETED)
        trimmed, trimmed_size = self.timed_snapshot(
            'with a trim', snapext_trim='yes')
        most = DELETED * 9 // 10
        self.assertLess(trimmed_size, size - most)
        self.assertLess(trimmed_size, native_size - most)
        self.assertEqual(trimmed_size, self.sent(trimmed))
        self.assertGreater(self.gain(trimmed), most)
        self.assertLess(self.size_on_host(), size_before - most)
        self.assertEqual(('backup', 'filesystem'),
                         (trimmed.strategy, trimmed.consistency))
        self.assertNotIn('snapext_trim', self.image(trimmed.image))
        self.assert_more_is_clean(trimmed.image)
        self.assert_nothing_left(self.server)
        self.assert_keeps_writing(self.server)
        last = self.assert_snapshot_complete(trimmed).records.last
        second = self.boot(trimmed.image, add_cleanup=self.addCleanup)
        self.assert_boots_with_records(second, last)

    @in_full.only
    def test_request_declines_what_the_host_does_always(self):
        self.configure('snapext.guest_trim=always')
        declined = self.snapshot(self.server, snapext_trim='no')
        self.assertIsNone(self.gain(declined))
        self.assertNotIn('snapext_trim', self.image(declined.image))
        self.assertIsNotNone(self.gain(self.snapshot(self.server)))

    @in_full.only
    def test_host_forbids_it(self):
        self.configure('snapext.guest_trim=never')
        snapshot = self.snapshot(self.server, snapext_trim='yes')
        self.assertIsNone(self.gain(snapshot))
        self.assertIn('[snapext]guest_trim is never', snapshot.log)
        self.assert_snapshot_complete(snapshot)

    def test_paused_guest_does_not_trim(self):
        self.action(self.server, 'pause', 'PAUSED')
        try:
            snapshot = self.snapshot(self.server, snapext_trim='yes')
        finally:
            self.action(self.server, 'unpause', 'ACTIVE')
        self.assertIn('for the snapshot: it does not run', snapshot.log)
        self.assert_snapshot_complete(snapshot)

    def test_guest_on_a_disk_that_ignores_discards_does_not_trim(self):
        self.configure('libvirt.hw_disk_discard=ignore')
        server = self.boot(add_cleanup=self.addCleanup)
        snapshot = self.snapshot(server, snapext_trim='yes')
        self.assertIn('does not pass discards on', snapshot.log)
        self.assert_snapshot_complete(snapshot)


class HangingTrimTestCase(TrimTestCase):

    def hang_in_trim(self, seconds):
        """Let the agent hang in the next trim."""
        self.addCleanup(
            wait.until, 'the agent to respond', self.agent_responds, 120)
        self.run_in_guest(HANG.format(seconds=seconds))


@in_full.only
class SlowTrimTest(HangingTrimTestCase):
    """A trim that takes longer than snapshots wait."""

    CONFIGURATION = (*TrimTestCase.CONFIGURATION,
                     'snapext.guest_trim_timeout=4',
                     'snapext.agent_timeout=4')

    def test_snapshot_goes_on_and_nothing_is_frozen_afterwards(self):
        self.hang_in_trim(25)
        snapshot = self.snapshot(self.server, snapext_trim='yes')
        self.assertEqual('crash', snapshot.consistency)
        self.assertEqual(1, snapshot.log.count('[snapext]guest_trim_timeout'))
        self.assert_snapshot_complete(snapshot)
        wait.until('the agent to respond', self.agent_responds, 120)
        self.assertEqual('thawed', self.agent_command('guest-fsfreeze-status'))
        self.assert_nothing_left(self.server)
        self.assert_keeps_writing(self.server)

    def test_deleted_image_ends_the_wait(self):
        self.hang_in_trim(60)
        self.configure('snapext.guest_trim_timeout=300')
        image = servers.action(self.client, self.server, 'createImage', {
            'name': 'e2e', 'metadata': {'snapext_trim': 'yes'}})['image_id']
        wait.until('the trim', lambda: not self.agent_responds(), 60)
        self.client.delete('glance', f'/images/{image}')
        wait.until('the end of the snapshot', lambda: not servers.show(
            self.client, self.server)['OS-EXT-STS:task_state'], 60)
        # It still trims.
        self.assertFalse(self.agent_responds())
        self.assert_nothing_left(self.server)


class RequiredQuiesceTest(HangingTrimTestCase):

    # The trim is longer than this, and shorter than twice this.
    CONFIGURATION = (*TrimTestCase.CONFIGURATION,
                     'snapext.guest_trim_timeout=15',
                     'snapext.agent_timeout=4')
    PROPERTIES = (('os_require_quiesce', 'yes'),)

    def test_snapshot_goes_on_and_nothing_is_frozen_afterwards(self):
        """The snapshot waits until the filesystems can be frozen."""
        self.hang_in_trim(25)
        snapshot = self.snapshot(self.server, snapext_trim='yes')
        self.assertEqual('filesystem', snapshot.consistency)
        self.assertIn('waits until its agent can freeze', snapshot.log)
        self.assert_snapshot_complete(snapshot)
        self.assert_nothing_left(self.server)
        self.assert_keeps_writing(self.server)
