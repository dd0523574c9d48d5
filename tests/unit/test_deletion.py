# SPDX-License-Identifier: Apache-2.0

from unittest import mock

import fixtures
from nova.compute import task_states
from nova.virt import fake
from nova.virt.libvirt import driver as nova_driver

from nova_snapext import driver
from nova_snapext.recovery import rbd_leftovers
from tests.unit import base


class DeletionTest(base.TestCase):
    """An instance is deleted whose disk is in Ceph, or a volume of LVM."""

    def setUp(self):
        super().setUp()
        self.driver = driver.SnapextDriver(fake.FakeVirtAPI(), read_only=True)
        self.steps = mock.Mock()
        for owner, name in ((nova_driver.LibvirtDriver, '_cleanup_rbd'),
                            (rbd_leftovers, 'remove_of_instance'),
                            (self.driver.gate, 'wait_until_idle'),
                            (self.driver.gate, 'call_when_idle')):
            self.steps.attach_mock(self.useFixture(
                fixtures.MockPatchObject(owner, name)).mock, name)
        self.steps.wait_until_idle.return_value = True

    def delete(self, task_state=task_states.DELETING, deleted=False):
        instance = self.instance()
        instance.task_state = task_state
        instance.deleted = deleted
        self.driver._cleanup_rbd(instance)
        self.instance_uuid = instance.uuid
        return [name for name, _, _ in self.steps.mock_calls]

    def test_snapshots_are_removed_before_nova_deletes_the_disk(self):
        self.assertEqual(['wait_until_idle', 'remove_of_instance',
                          '_cleanup_rbd'], self.delete())

        self.steps.remove_of_instance.assert_called_once_with(
            self.instance_uuid, in_progress=False)

    def test_snapshot_that_is_still_read_is_not_removed(self):
        # What is read of it then would be zeros, in an image that looks good.
        self.steps.wait_until_idle.return_value = False
        self.delete()
        self.steps.remove_of_instance.assert_called_once_with(
            self.instance_uuid, in_progress=True)

    def test_disk_is_deleted_when_a_snapshot_that_takes_long_has_ended(self):
        # Nova gives up after a minute, and does not try again.
        self.steps.wait_until_idle.return_value = False
        self.assertEqual(['wait_until_idle', 'remove_of_instance',
                          '_cleanup_rbd', 'call_when_idle'],
                         self.delete())
        uuid, function, instance = (
            self.steps.call_when_idle.call_args.args)
        self.assertEqual(self.instance_uuid, uuid)
        self.steps.reset_mock()
        self.steps.wait_until_idle.return_value = True
        function(instance)
        self.assertEqual(['wait_until_idle', 'remove_of_instance',
                          '_cleanup_rbd'],
                         [name for name, _, _ in self.steps.mock_calls])
        self.steps.remove_of_instance.assert_called_once_with(
            uuid, in_progress=False)

    def test_disk_is_deleted_later_in_whatever_way_nova_deletes(self):
        self.steps.wait_until_idle.return_value = False
        # The reclaim of a soft delete, and the reaping of a running guest.
        for how in ({'task_state': None},
                    {'task_state': task_states.SHELVING, 'deleted': True}):
            self.steps.reset_mock()
            self.assertIn('call_when_idle', self.delete(**how))

    def test_disk_that_another_task_creates_again_is_not_deleted_later(self):
        self.steps.wait_until_idle.return_value = False
        for task_state in (task_states.REBUILDING,
                           task_states.SHELVING_OFFLOADING,
                           task_states.SPAWNING):
            self.assertNotIn('call_when_idle', self.delete(task_state))

    def test_volume_is_removed_when_nobody_reads_it(self):
        self.steps.attach_mock(self.useFixture(fixtures.MockPatchObject(
            nova_driver.LibvirtDriver, '_cleanup_lvm')).mock, '_cleanup_lvm')
        instance = self.instance()
        self.driver._cleanup_lvm(instance, None)
        self.assertEqual(['wait_until_idle', '_cleanup_lvm'], [
            name for name, _, _ in self.steps.mock_calls])

    def test_disk_that_a_resize_leaves_keeps_its_snapshots(self):
        self.assertEqual(['_cleanup_rbd'],
                         self.delete(task_states.RESIZE_REVERTING))
