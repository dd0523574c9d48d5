# SPDX-License-Identifier: Apache-2.0

import pwd

from devcloud import servers
from devcloud import services
from devcloud import state as cloud_state
from devcloud import wait

from tests.e2e import base
from tests.e2e import proxy

# What Nova documents for an image create, in order.
DOCUMENTED = ['image_snapshot_pending', 'image_snapshot',
              'image_pending_upload', 'image_uploading']


class Qcow2Test(base.CloudTestCase):
    """Guests whose root disk is a qcow2 on a backing file, Nova's default."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = cls.boot()

    def in_order(self, task_states, order):
        """Whether task states, of which one may be missed, are in order."""
        places = [order.index(task) for task in task_states]
        return places == sorted(places)

    def test_a_running_guest_s_image_is_whole_and_its_filesystem_clean(self):
        shot = self.snapshot(self.server)
        self.assertEqual(('backup', 'filesystem'),
                         (shot.strategy, shot.consistency))
        report = self.assert_snapshot_right(shot)
        self.assertTrue(report.filesystem.clean, report.filesystem.check)
        self.assertFalse(report.filesystem.needs_recovery)
        self.assert_nothing_left(self.server)
        self.assert_writes_on(self.server)

    def test_task_states_are_nova_s_and_nova_s_own_takes_the_same(self):
        ours = self.snapshot(self.server).task_states
        self.assertTrue(self.in_order(ours, DOCUMENTED), ours)
        self.assertEqual('image_uploading', ours[-1])
        with base.configuration(
                'DEFAULT.compute_driver=libvirt.LibvirtDriver'):
            native = self.snapshot(self.server)
        self.assertIsNone(native.strategy)
        self.assertEqual('image_uploading', native.task_states[-1])
        self.assertLessEqual(set(native.task_states), set(DOCUMENTED))
        self.assertLessEqual(set(ours), set(DOCUMENTED))

    def test_metadata_of_the_image_is_nova_s_own(self):
        ours = self.image(self.snapshot(self.server).image)
        with base.configuration(
                'DEFAULT.compute_driver=libvirt.LibvirtDriver'):
            native = self.image(self.snapshot(self.server).image)
        varying = {'id', 'created_at', 'updated_at', 'file', 'self', 'size',
                   'checksum', 'os_hash_value', 'virtual_size', 'stores',
                   'locations', 'direct_url'}
        self.assertEqual(
            {name: native[name] for name in native.keys() - varying},
            {name: ours[name] for name in ours.keys() - varying})

    def test_no_image_is_staged_on_the_host(self):
        shot = self.snapshot(self.server)
        size = self.image(shot.image)['size']
        self.assertLess(shot.host_space, size // 4)

    def test_a_paused_guest_is_snapshotted_and_stays_paused(self):
        self.action(self.server, 'pause', 'PAUSED')
        try:
            shot = self.snapshot(self.server)
            self.assertEqual('backup', shot.strategy)
            self.assert_snapshot_right(shot)
            self.assert_nothing_left(self.server)
            self.assertIn('paused', self.host.virsh('domstate', self.server))
            self.assertEqual('PAUSED', servers.show(
                self.client, self.server)['status'])
        finally:
            self.action(self.server, 'unpause', 'ACTIVE')
        self.assert_writes_on(self.server)

    def test_a_stopped_guest_is_snapshotted_and_starts_again(self):
        self.action(self.server, 'os-stop', 'SHUTOFF')
        try:
            shot = self.snapshot(self.server)
            self.assertEqual(('cold', 'offline'),
                             (shot.strategy, shot.consistency))
            report = self.assert_snapshot_right(shot)
            self.assertTrue(report.filesystem.clean)
            self.assert_nothing_left(self.server)
            self.assertEqual('SHUTOFF', servers.show(
                self.client, self.server)['status'])
        finally:
            self.action(self.server, 'os-start', 'ACTIVE')
        self.await_records(self.server, 3)

    def test_a_raw_image_is_whole(self):
        with base.configuration('libvirt.snapshot_image_format=raw'):
            shot = self.snapshot(self.server)
        self.assertEqual('backup', shot.strategy)
        self.assert_snapshot_right(shot, 'raw')
        self.assertEqual(1 << 30, self.image(shot.image)['size'])
        self.assert_nothing_left(self.server)

    def test_without_the_search_for_zeros_the_image_is_whole_too(self):
        with base.configuration('snapext.find_zeros=False'):
            shot = self.snapshot(self.server)
        self.assert_snapshot_right(shot)
        _strategy, _consistency, _freeze, read, sent = shot.figures
        self.assertLessEqual(int(read), int(sent))

    def test_an_upload_that_is_cut_off_begins_anew_and_ends_right(self):
        faults = proxy.Faults(cut_after=[8 << 20, 1 << 20])
        shot = self.snapshot_through(faults)
        self.assertEqual(3, len(faults.uploads))
        self.assertEqual(self.image(shot.image)['size'], faults.uploads[-1])
        self.assertIn('begins anew', shot.log)
        self.assert_snapshot_right(shot)
        self.assert_nothing_left(self.server)
        self.assert_writes_on(self.server)

    def test_a_glance_that_cuts_off_every_upload_fails_the_snapshot(self):
        faults = proxy.Faults(cut_after=[1 << 20] * 10)
        shot = self.snapshot_through(faults)
        self.assertEqual(3, len(faults.uploads))
        self.assertFalse(self.image_exists(shot.image))
        self.assert_nothing_left(self.server)
        self.assert_writes_on(self.server)

    def test_other_bytes_in_glance_fail_the_snapshot_and_go(self):
        shot = self.snapshot_through(proxy.Faults(corrupt_at=5 << 20))
        self.assertFalse(self.image_exists(shot.image))
        self.assertIn('Glance stored something else', shot.log)
        self.assertIsNone(shot.strategy)
        self.assertEqual('ACTIVE', servers.show(
            self.client, self.server)['status'])
        self.assert_nothing_left(self.server)
        self.assert_writes_on(self.server)
        # And the next one, past the fault, is fine.
        self.assert_snapshot_right(self.snapshot(self.server))

    def snapshot_through(self, faults):
        glance = cloud_state.url('glance')
        with proxy.GlanceProxy(glance, faults) as between, \
                base.configuration(
                    f'glance.endpoint_override={between.url}',
                    'glance.num_retries=2'):
            return self.snapshot(self.server)

    def test_vmdk_goes_to_nova_s_own_snapshot_which_says_why(self):
        with base.configuration('libvirt.snapshot_image_format=vmdk'):
            shot = self.snapshot(self.server)
        self.assertIn("Nova's own snapshot is taken, because: images of the "
                      "format vmdk are not streamed", shot.log)
        self.assertIsNone(shot.strategy)
        self.assertEqual('vmdk', self.image(shot.image)['disk_format'])
        self.assert_nothing_left(self.server)

    def test_nova_compute_and_qemu_run_as_users_of_their_own(self):
        daemon = services.nova_compute(self.state).daemon(self.state)
        [qemu] = [process for name, process in self.host.guests().items()
                  if name == self.host.virsh('domname', self.server).strip()]
        users = {self.user_of(daemon.identity().pid),
                 self.user_of(qemu.pid)}
        self.assertEqual({'nova', 'libvirt-qemu'}, users)

    @staticmethod
    def user_of(pid):
        with open(f'/proc/{pid}/status') as status:
            uid = next(line.split()[1] for line in status
                       if line.startswith('Uid:'))
        return pwd.getpwuid(int(uid)).pw_name


class OtherGuestsTest(base.CloudTestCase):
    """Guests that are changed for good by their test."""

    def test_without_an_agent_it_is_crash_consistent(self):
        server = self.boot('snap-guest-noagent', add_cleanup=self.addCleanup)
        shot = self.snapshot(server)
        self.assertEqual(('backup', 'crash'),
                         (shot.strategy, shot.consistency))
        self.assert_snapshot_right(shot)
        self.assert_writes_on(server)

    def test_an_instance_comes_back_from_a_shelf_with_all_its_records(self):
        server = self.boot(add_cleanup=self.addCleanup)
        log = self.state.log('nova-compute')
        offset = log.stat().st_size
        task_states, _ = self.watched(
            server, lambda: servers.action(self.client, server, 'shelve'))
        self.assertLessEqual(
            set(task_states),
            {'shelving', 'shelving_image_pending_upload',
             'shelving_image_uploading', 'shelving_offloading'})
        servers.await_status(self.client, server, 'SHELVED_OFFLOADED')
        with open(log, errors='replace') as lines:
            lines.seek(offset)
            self.assertRegex(lines.read(), 'strategy=cold')
        [image] = self.client.get(
            'glance', '/images?visibility=private&name=e2e-shelved')['images']
        last = self.assert_image_whole(image['id']).records.last
        self.action(server, 'unshelve', 'ACTIVE')
        found = wait.until(
            'the unshelved guest to verify its records',
            lambda: self.console(server).find(
                r'^FOUND (\d+) LAST (\d+) GAPS (\d+) BAD (\d+)'),
            base.BOOT_TIMEOUT)
        self.assertEqual([last, last, 0, 0],
                         [int(word) for word in found.groups()])
