# SPDX-License-Identifier: Apache-2.0

from unittest import mock

import fixtures
from nova import exception as nova_exception
from nova import objects
from nova.storage import rbd_utils
from nova.virt.libvirt import driver as nova_driver
import tenacity

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
        self.nova = mock.Mock()
        self.useFixture(fixtures.MockPatchObject(
            nova_driver.LibvirtDriver, '_cleanup_rbd', self.nova))

    def delete(self, **instance):
        self.get.return_value = objects.Instance(uuid=UUID, **instance)
        rbd_leftovers.delete_disks_of_deleted(mock.Mock(), UUID)

    def test_disks_of_an_instance_that_was_deleted_here_are_deleted(self):
        for host in (CONF.host, None):
            self.nova.reset_mock()
            self.delete(deleted=True, host=host)
            self.nova.assert_called_once()

    def test_disks_of_every_other_instance_are_kept(self):
        self.delete(deleted=False, host=CONF.host)
        self.delete(deleted=True, host='other')
        self.get.side_effect = nova_exception.InstanceNotFound(instance_id='')
        self.delete(deleted=True, host=CONF.host)
        self.nova.assert_not_called()

    def test_disk_that_may_stay_is_logged_with_its_command(self):
        self.get.side_effect = OSError('no route')
        with self.assertLogs('nova_snapext.recovery.rbd_leftovers',
                             'ERROR') as logs:
            self.delete(deleted=True, host=CONF.host)
        self.assertIn(f'rbd rm vms/{UUID}_disk', logs.output[0])
        self.assertIn('no route', logs.output[0])
