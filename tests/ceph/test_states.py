# SPDX-License-Identifier: Apache-2.0
"""Guests in each state, from each kind of image, in both ways."""

import re

from tests.ceph import base
from tests.e2e import matrix

# Of a guest without an agent, or that can't run it.
CONSISTENCY = {'running': 'crash', 'paused': 'crash', 'suspended': 'crash',
               'stopped': 'offline'}


class StatesTestCase(base.CephTestCase):
    """Snapshots of one guest in each state.

    :cvar SOURCE: image of the guest
    """

    SOURCE = base.IN_CEPH

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = cls.boot(cls.SOURCE)

    def in_state(self, state):
        """Bring the guest into a state until the end of the test."""
        if matrix.STATES[state]:
            enter, status, leave = matrix.STATES[state]
            self.action(self.server, enter, status)
            self.addCleanup(self.await_records, self.server, 1)
            self.addCleanup(self.action, self.server, leave, 'ACTIVE')
        definition = self.host.virsh('dumpxml', '--inactive', self.server)
        self.addCleanup(lambda: self.assertEqual(
            definition, self.host.virsh(
                'dumpxml', '--inactive', self.server)))

    def take(self, state):
        """Take a snapshot of the guest in a state."""
        self.in_state(state)
        status = self.server_shown()['status']
        snapshot = self.snapshot(self.server, add_cleanup=self.addCleanup)
        self.assert_nothing_left(self.server)
        self.assertEqual(status, self.server_shown()['status'])
        return snapshot


class DirectTest(StatesTestCase):
    """A guest with an agent, cloned from its image; raw images."""

    MORE = base.RAW

    def test_running_guest_is_frozen_with_its_filesystems(self):
        taken = self.assert_direct(self.take('running'), 'filesystem')
        self.assertIsNotNone(taken.image['os_hash_value'])
        # Milliseconds: no more than a moment of the guest's.
        self.assertIn('freeze=', taken.snapshot.log)
        self.assert_keeps_writing(self.server)

    def test_paused_guest_is_taken_without_its_agent(self):
        self.assert_direct(self.take('paused'), 'crash')

    def test_suspended_guest_is_taken_and_keeps_its_memory(self):
        self.assert_direct(self.take('suspended'), 'crash')
        self.assertRegex(self.host.virsh('dominfo', self.server),
                         r'Managed save:\s+yes')

    def test_stopped_guest_is_taken(self):
        self.assert_direct(self.take('stopped'), 'offline')

    def test_disk_without_object_map_is_taken(self):
        disk = f'vms/{self.server}_disk'
        self.ceph.rbd('feature', 'disable', disk, 'fast-diff', 'object-map')
        self.addCleanup(self.ceph.rbd, 'feature', 'enable', disk,
                        'object-map', 'fast-diff')
        self.assert_direct(self.take('running'), 'filesystem')
        self.assert_keeps_writing(self.server)


class StreamedTest(StatesTestCase):
    """The same guest with qcow2 images."""

    MORE = base.QCOW2

    def streamed(self, state, consistency):
        snapshot = self.take(state)
        _, reason = self.assert_streamed(snapshot, consistency, 'qcow2')
        self.assertIn('format qcow2', reason)
        self.assert_reads_sparsely(snapshot, self.server)

    def test_running_guest_is_frozen_with_its_filesystems(self):
        self.streamed('running', 'filesystem')
        self.assert_keeps_writing(self.server)

    def test_paused_guest_is_taken_without_its_agent(self):
        self.streamed('paused', 'crash')

    def test_suspended_guest_is_taken_and_keeps_its_memory(self):
        self.streamed('suspended', 'crash')
        self.assertRegex(self.host.virsh('dominfo', self.server),
                         r'Managed save:\s+yes')

    def test_stopped_guest_is_taken_without_a_copy_on_the_host(self):
        self.streamed('stopped', 'offline')

    def test_disk_without_object_map_is_read_sparsely(self):
        disk = f'vms/{self.server}_disk'
        self.ceph.rbd('feature', 'disable', disk, 'fast-diff', 'object-map')
        self.addCleanup(self.ceph.rbd, 'feature', 'enable', disk,
                        'object-map', 'fast-diff')
        self.streamed('running', 'filesystem')

    def test_backup_reads_as_sparsely(self):
        snapshot = self.snapshot(self.server, add_cleanup=self.addCleanup,
                                 strategy='backup')
        self.assertEqual('backup', snapshot.strategy)
        self.assert_snapshot_complete(snapshot)
        self.assert_reads_sparsely(snapshot, self.server)
        self.assert_nothing_left(self.server)

    @base.configured('libvirt.snapshot_compression=True')
    def test_then_compressed_image_is_complete(self):
        self.streamed('running', 'filesystem')


class ElsewhereTest(StatesTestCase):
    """A guest without an agent, from an image that is not in Ceph."""

    SOURCE = base.ELSEWHERE_WITHOUT_AGENT
    MORE = base.RAW

    def test_1_disk_is_no_clone_and_streamed_as_raw(self):
        self.assertIsNone(self.parent(f'vms/{self.server}_disk'))
        snapshot = self.take('running')
        _, reason = self.assert_streamed(snapshot, 'crash')
        self.assertIn('rbd_image_pool', reason)
        self.assert_reads_sparsely(snapshot, self.server)
        self.assert_keeps_writing(self.server)

    def test_1_stopped_guest_is_streamed_as_raw(self):
        self.assert_streamed(self.take('stopped'), 'offline')

    @base.configured('snapext.rbd_image_pool=images',
                     'snapext.rbd_image_store=ceph')
    def test_2_option_names_the_pool_of_a_direct_image(self):
        self.assert_direct(self.take('running'), 'crash')
        self.assert_keeps_writing(self.server)

    @base.configured('snapext.rbd_image_pool=images',
                     'snapext.rbd_image_store=nowhere')
    def test_3_store_that_glance_does_not_have_is_streamed(self):
        _, reason = self.assert_streamed(self.take('running'), 'crash')
        self.assertIn('nowhere', reason)

    @base.configured('glance:glance_store.default_backend=ceph')
    def test_4_streamed_image_may_be_stored_in_ceph(self):
        snapshot = self.take('running')
        self.assert_streamed(snapshot, 'crash')
        self.assertIn(snapshot.image, self.volumes('images'))


class FallbackTest(StatesTestCase):
    """What prevents an image inside Ceph is told, and the disk streamed."""

    MORE = base.RAW

    @base.configured('service_user.send_service_user_token=False')
    def test_missing_service_token_is_told_before_anything_is_copied(self):
        snapshot = self.take('running')
        _, reason = self.assert_streamed(snapshot, 'filesystem')
        self.assertIn('[service_user]send_service_user_token', reason)
        self.assertNotIn('is cloned to', snapshot.log)

    def test_missing_right_in_glances_pool_is_told(self):
        self.ceph.allow('nova', 'profile rbd pool=vms, '
                                'profile rbd-read-only pool=images')
        self.addCleanup(
            self.ceph.allow, 'nova', base.ceph.USERS['nova'])
        snapshot = self.take('running')
        _, reason = self.assert_streamed(snapshot, 'filesystem')
        self.assertRegex(reason, r'write to the pool images: .*[Pp]ermi')

    @base.configured('snapext.strategy=external,cold')
    def test_preference_for_files_says_what_to_write(self):
        snapshot = self.snapshot(self.server, add_cleanup=self.addCleanup)
        self.assertFalse(self.image_exists(snapshot.image))
        text = self.refusal_text(self.server)
        self.assertIn('For a disk in Ceph write "external,cold,rbd"', text)
        self.assert_nothing_left(self.server)
        self.assert_keeps_writing(self.server)

    @base.configured('snapext.strategy=external,auto')
    def test_preference_that_names_auto_too_is_served(self):
        self.assert_direct(self.take('running'), 'filesystem')


class EventletTest(StatesTestCase):
    """Nova's other concurrency mode."""

    MORE = ('DEFAULT.concurrency_backend=eventlet', *base.RAW)

    def test_running_guest_is_taken_inside_ceph(self):
        self.assert_direct(self.take('running'), 'filesystem')
        self.assert_keeps_writing(self.server)

    def test_stopped_guest_is_taken_inside_ceph(self):
        self.assert_direct(self.take('stopped'), 'offline')

    def test_image_deleted_during_flatten_cancels_and_compute_lives(self):
        with self.slow_ceph():
            image, log = self.begin_flatten(self.server)
            self.client.delete('glance', f'/images/{image}')
            self.await_log(log, f'Snapshot cancelled: Image {image} could not '
                                f'be found', 30)
            self.await_end(self.server, 30)
        self.assertFalse(re.search('Traceback', log()))
        self.assert_nothing_left(self.server)

    @base.configured(*base.QCOW2)
    def test_then_qcow2_image_is_streamed(self):
        self.assert_streamed(self.take('running'), 'filesystem', 'qcow2')
