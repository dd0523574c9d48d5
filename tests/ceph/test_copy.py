# SPDX-License-Identifier: Apache-2.0
"""Raw images of disks that are files, written into Glance's pool."""

from devcloud import compute
from devcloud import shell
from devcloud import wait

from tests.ceph import base
from tests.ceph import test_operations
from tests.ceph import test_states

# A user of Ceph who may not write.
READER = 'reader'

# Seconds that each request to the OSD waits. The guest does not use it.
SLOW_SECONDS = 0.1

# Seconds until a recovery that has failed is tried again, and ends.
RECOVERY_TIMEOUT = 180

# Seconds until a deleted image is noticed, and until its snapshot has ended.
# The image's state is looked at every four seconds.
CANCEL_TIMEOUT = 20


class StatesTest(base.CopyTestCase, test_states.StatesTestCase):
    """A guest with an agent, in each state and by each strategy."""

    SOURCE = base.ELSEWHERE

    def take(self, state, strategy=None):
        self.in_state(state)
        snapshot = self.snapshot(self.server, strategy=strategy,
                                 add_cleanup=self.addCleanup)
        self.assert_nothing_left(self.server)
        return snapshot

    def test_running_guest_is_copied_with_its_filesystems_frozen(self):
        self.assert_copied(self.take('running'), 'backup', 'filesystem')
        self.assert_keeps_writing(self.server)

    def test_overlay_of_running_guest_leaves_its_disk_to_be_copied(self):
        self.assert_copied(
            self.take('running', 'external'), 'external', 'filesystem')
        self.assert_keeps_writing(self.server)

    def test_snapshot_inside_the_disk_of_running_guest_is_copied(self):
        self.assert_copied(
            self.take('running', 'internal'), 'internal', 'filesystem')
        self.assert_keeps_writing(self.server)

    def test_paused_guest_is_copied_without_its_agent(self):
        self.assert_copied(self.take('paused'), 'backup', 'crash')

    def test_copy_of_stopped_guest_equals_its_disk(self):
        snapshot = self.take('stopped')
        self.assert_copied(snapshot, 'cold', 'offline')
        with self.downloaded(snapshot.image) as file:
            shell.run(['qemu-img', 'compare', '-f', 'raw', '-F', 'qcow2',
                       file, self.disk_of(self.server)])


class FaultsTest(base.CopyTestCase, base.OneGuestTestCase):
    """What gets in the way of a copy."""

    def assert_next_is_copied(self):
        self.assert_copied(
            self.snapshot(self.server, add_cleanup=self.addCleanup),
            'backup', 'filesystem')

    def test_image_deleted_during_the_copy_cancels_at_once(self):
        with self.slow_ceph(SLOW_SECONDS):
            image, log = self.begin_copy(self.server)
            self.client.delete('glance', f'/images/{image}')
            self.await_log(log, f'Ending the snapshot: Image {image} could '
                                f'not be found', CANCEL_TIMEOUT)
        self.await_log(log, f'Snapshot cancelled: Image {image} could not be '
                            f'found', CANCEL_TIMEOUT)
        self.await_end(self.server, CANCEL_TIMEOUT)
        self.assertNotIn('is written and verified', log())
        self.assertNotIn('Traceback', log())
        self.assertFalse(self.image_exists(image))
        self.assert_as_before()

    def test_kill_during_the_copy_is_recovered(self):
        with self.slow_ceph(SLOW_SECONDS):
            image, _log = self.begin_copy(self.server)
            self.kill_compute()
        self.addCleanup(compute.start, self.state)
        self.assertIn(image, self.volumes('images'))
        self.assertNotEqual([], self.journal_files())
        compute.start(self.state)
        self.await_end(self.server)
        self.await_image_gone(image)
        self.await_recovered()
        self.assert_as_before()
        self.assert_next_is_copied()

    @base.configured('snapext.read_timeout=10', 'snapext.operation_timeout=20')
    def test_osd_that_hangs_fails_the_snapshot_and_is_cleaned_up_later(self):
        with self.slow_ceph(SLOW_SECONDS):
            image, log = self.begin_copy(self.server)
            self.suspend_osd()
            try:
                self.await_end(self.server)
                self.await_image_gone(image)
                self.assert_not_frozen(self.server)
                self.assert_keeps_writing(self.server)
                self.assertIn('Ceph did not respond within 10 seconds, to '
                              f'write images/{image}', log())
                self.assertNotIn('finished: strategy=', log())
                self.assertIn('operator', self.refusal_text(self.server))
                self.assertNotEqual([], self.journal_files())
            finally:
                self.resume_osd()
        self.await_recovered()
        self.assert_as_before()
        self.assert_next_is_copied()

    @base.configured(f'snapext.rbd_image_user={READER}')
    def test_user_without_the_right_leaves_the_disk_to_be_streamed(self):
        self.addCleanup(self.ceph.keyring(READER).unlink)
        self.addCleanup(self.ceph.ceph, 'auth', 'rm', f'client.{READER}')
        self.ceph.allow(READER, 'profile rbd-read-only pool=images')
        self.assertRegex(self.streamed(),
                         r'write to the pool images: .*[Pp]ermi')

    def test_full_pool_leaves_the_disk_to_be_streamed(self):
        self.addCleanup(self.set_quota, 0)
        # Less than the images of guests take.
        self.set_quota(1)
        self.assertIn('quota', self.streamed())

    @base.configured('snapext.rbd_image_user=nobody')
    def test_user_without_a_key_leaves_the_disk_to_be_streamed(self):
        self.assertIn('write to the pool images', self.streamed())

    @base.configured(*base.QCOW2)
    def test_qcow2_image_is_streamed(self):
        self.assertIn('format qcow2', self.streamed('qcow2'))

    def set_quota(self, size):
        """Limit Glance's pool, and wait until Ceph says that it is full.

        :param size: in bytes; 0: no limit, and it is no longer full
        """
        self.ceph.ceph('osd', 'pool', 'set-quota', 'images', 'max_bytes',
                       str(size))
        wait.until('what the quota makes of the pool', lambda: (
            'POOL_FULL' in self.ceph.ceph('health')['checks']) == bool(size),
            RECOVERY_TIMEOUT)

    def streamed(self, image_format='raw'):
        """Check that the next snapshot is streamed, and return the reason."""
        snapshot = self.snapshot(self.server, add_cleanup=self.addCleanup)
        _, reason = self.assert_streamed(
            snapshot, 'filesystem', image_format, 'backup')
        self.assertNotIn(snapshot.image, self.volumes('images'))
        self.assert_as_before()
        return reason

    def await_recovered(self):
        wait.until('the journal to be empty',
                   lambda: not self.journal_files(), RECOVERY_TIMEOUT)


class OperationsTest(base.CopyTestCase, test_operations.OperationsTestCase):

    SHELVED_BY = 'cold'

    def test_second_backup_deletes_the_first_with_its_data(self):
        first, _ = self.backup()
        self.assertIn(first, self.volumes('images'))
        self.await_next_second(first)
        second, acknowledged = self.backup()
        self.await_image_gone(first)
        self.assertEqual({second}, self.assert_all_images_have_their_data())
        report = self.assert_image_complete(second, 'raw', acknowledged)
        self.assertTrue(report.filesystem.clean, report.filesystem.check)
        self.assert_nothing_left(self.server)
        self.assertIn(second, self.volumes('images'))
        self.assertNotIn(first, self.volumes('images'))
        self.assert_keeps_writing(self.server)

    # By its name, it runs after all others: it is another disk then.
    def test_then_shelved_guest_is_unshelved_from_its_image(self):
        image, last, log = self.shelve()
        self.assertIsNotNone(base.DIRECT.search(log), log[-4000:])
        self.unshelve(image, last)
        self.assert_nothing_left(self.server)
        self.assert_copied(
            self.snapshot(self.server), 'backup', 'filesystem')
        self.assert_nothing_left(self.server)
