# SPDX-License-Identifier: Apache-2.0

import threading
from unittest import mock

import fixtures
from nova import exception as nova_exception
from nova import objects
from nova.storage import rbd_utils
import tenacity

from nova_snapext import bounded
from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.hypervisor import ceph
from nova_snapext.recovery import rbd_leftovers
from tests.unit import base

CONF = conf.CONF
UUID = '00000000-0000-4000-8000-000000000001'
SNAPSHOT = ceph.SnapSpec(ceph.ImageSpec('vms', f'{UUID}_disk'), 'snapext-1')
CLONE = ceph.ImageSpec('images', base.IMAGE_ID)


class ImageBusy(Exception):
    pass


def failed(cause):
    error = exception.CephError(action='remove', reason=str(cause))
    error.__cause__ = cause
    return error


class RbdLeftoversTestCase(base.TestCase):

    def setUp(self):
        super().setUp()
        self.flags(images_type='rbd', images_rbd_pool='vms', group='libvirt')
        self.useFixture(fixtures.MockPatchObject(
            rbd_utils, 'rbd', mock.Mock(ImageBusy=ImageBusy)))
        self.useFixture(fixtures.MockPatchObject(rbd_utils, 'rados'))

    def patch(self, owner, name, **kwargs):
        return self.useFixture(
            fixtures.MockPatchObject(owner, name, **kwargs)).mock


class RemoveTest(RbdLeftoversTestCase):

    def setUp(self):
        super().setUp()
        self.patch(ceph, 'children', return_value={'1a': CLONE})
        self.removed = self.patch(ceph, 'remove_snapshot')
        self.removed_image = self.patch(ceph, 'remove_image')
        self.patch(tenacity, 'sleep_using_event')

    def test_clone_is_removed_when_ceph_has_forgotten_a_killed_client(self):
        self.removed_image.side_effect = [failed(ImageBusy())] * 2 + [None]
        rbd_leftovers.remove(SNAPSHOT)
        self.assertEqual(3, self.removed_image.call_count)
        self.removed.assert_called_once_with(SNAPSHOT)

    def test_any_other_error_is_not_tried_again(self):
        self.removed_image.side_effect = failed(OSError())
        self.assertRaises(
            exception.CephError, rbd_leftovers.remove, SNAPSHOT)
        self.removed_image.assert_called_once()
        self.removed.assert_not_called()


class DeleteDisksTest(RbdLeftoversTestCase):

    def setUp(self):
        super().setUp()
        self.get = self.patch(objects.Instance, 'get_by_uuid')
        self.patch(rbd_leftovers, '_in_journal', return_value={'snapext-1'})
        self.left = self.patch(ceph, 'snapshot_names', return_value=[])
        disks = [ceph.ImageSpec('vms', f'{UUID}_disk{suffix}')
                 for suffix in ('', '.config')]
        self.disks_of = self.patch(ceph, 'disks_of', return_value=disks)
        self.removed = self.patch(ceph, 'remove_disk')
        self.calls = [mock.call(disk) for disk in disks]

    def delete(self, **instance):
        self.get.return_value = objects.Instance(uuid=UUID, **instance)
        rbd_leftovers.delete_disks_of_deleted(UUID)

    def delete_fails(self):
        return str(self.assertRaises(
            exception.ReleaseFailed, self.delete, deleted=True,
            host=CONF.host))

    def test_disks_of_an_instance_that_was_deleted_here_are_deleted(self):
        for host in (CONF.host, None):
            self.removed.reset_mock()
            self.delete(deleted=True, host=host)
            self.assertEqual(self.calls, self.removed.mock_calls)

    def test_disks_of_every_other_instance_are_kept(self):
        self.delete(deleted=False, host=CONF.host)
        self.delete(deleted=True, host='other')
        self.removed.assert_not_called()

    def test_disks_go_with_the_last_snapshot_that_the_journal_has(self):
        self.left.return_value = ['snapext-1']
        self.delete(deleted=True, host=CONF.host)
        self.removed.assert_not_called()

    def test_release_does_not_wait_for_a_nova_that_does_not_answer(self):
        answer = threading.Event()
        self.addCleanup(answer.set)
        self.get.side_effect = lambda *_args, **_kwargs: answer.wait()
        with mock.patch.object(bounded, 'NOVA_TIMEOUT', 0):
            self.assertIn('did not respond', self.delete_fails())
        self.removed.assert_not_called()

    def test_disk_of_an_instance_that_nova_does_not_know_is_reported(self):
        self.get.side_effect = nova_exception.InstanceNotFound(instance_id='')
        self.assertIn('does not know', self.delete_fails())
        self.removed.assert_not_called()
        self.disks_of.return_value = []
        self.delete(deleted=True, host=CONF.host)

    def test_error_names_the_command_that_removes_the_disk(self):
        self.get.side_effect = OSError('no route')
        text = self.delete_fails()
        self.assertIn(f'rbd rm vms/{UUID}_disk', text)
        self.assertIn('no route', text)
