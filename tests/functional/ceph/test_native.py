# SPDX-License-Identifier: Apache-2.0

import dataclasses
from unittest import mock
import uuid

from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from nova.storage import rbd_utils
from nova.virt.libvirt import driver as nova_driver

from nova_snapext import conf
from nova_snapext.hypervisor import ceph
from nova_snapext import journal
from nova_snapext.resources import rbd_image
from nova_snapext.snapshot import direct
from nova_snapext.snapshot import native_job
from nova_snapext.strategies import native
from tests.functional import base as functional_base
from tests.functional.ceph import base

CONF = conf.CONF
BEFORE = 0x22


class CrashError(BaseException):
    """Ends a snapshot without any of its clean-up."""


class NativeTest(base.CephTestCase):
    """What Nova's own direct snapshot leaves in Ceph, of Nova's own code."""

    def setUp(self):
        super().setUp()
        self.configure('libvirt', images_type='rbd')
        self.strategy = native.NativeStrategy(self.driver)
        self.useFixture(functional_base.fixtures.MockPatchObject(
            self.driver, 'strategies', {'native': self.strategy}))
        self.api = self.useFixture(functional_base.fixtures.MockPatchObject(
            self.driver, '_image_api')).mock
        self.discarded = []
        self.useFixture(functional_base.fixtures.MockPatchObject(
            rbd_image.upload, 'discard',
            lambda _context, image, *_args: self.discarded.append(
                image in self.cluster.images('images'))))

    def guest(self, disk, **kwargs):
        plan = super().guest(disk, **kwargs)
        return dataclasses.replace(
            plan, image_id=str(uuid.uuid4()), image_format='raw',
            context=nova_context.RequestContext(is_admin=False))

    def snapshot(self, driver, context, instance, image_id, _update,
                 image_format='raw'):
        """Do what LibvirtDriver.snapshot does inside Ceph."""
        disk = driver.image_backend.by_libvirt_path(
            instance, f'rbd:vms/{instance.uuid}_disk', image_type='rbd')
        try:
            self.url = disk.direct_snapshot(
                context, uuid.uuid4().hex, image_format, image_id, '')
            self.register()
        except nova_exception.ImageUnacceptable:
            disk.cleanup_direct_snapshot(None, also_destroy_volume=True)
            self.url = None

    def register(self):
        """Have Glance take the image over."""

    def run_job(self, plan, entry):
        with mock.patch.object(nova_driver.LibvirtDriver, 'snapshot',
                               self.snapshot):
            native_job.NativeJob(
                self.driver, plan, may_suspend=False, seen_by_nova=True,
            ).run(mock.Mock(), entry, mock.Mock())

    def take(self, plan):
        with journal.new_entry(plan, 'native') as entry:
            self.run_job(plan, entry)

    def crash(self, plan):
        """End a snapshot as a kill does, and recover it."""
        with mock.patch.object(journal.ReleaseStack, '_release'):
            self.assertRaises(CrashError, self.take, plan)
        # A kill leaves the image in the journal, and an error does not.
        with mock.patch.object(journal, 'has_image', return_value=True), \
                mock.patch.object(objects.Instance, 'get_by_uuid',
                                  return_value=objects.Instance(
                                      uuid=plan.instance.uuid, host=CONF.host,
                                      deleted=False)):
            self.recover(plan)

    def assert_clean(self, plan):
        self.assertNotIn(plan.image_id, self.cluster.images('images'))
        self.assert_nothing_left(plan)
        self.assert_deletable(plan)

    def test_image_is_kept_and_nothing_else(self):
        plan = self.guest(self.cloned_rbd(BEFORE))
        self.take(plan)
        self.assertIn(plan.image_id, self.url)
        made = ceph.ImageSpec('images', plan.image_id)
        self.assertEqual({BEFORE}, set(self.content_of(made, 'snap')))
        self.assertEqual([], self.discarded)
        self.assert_nothing_left(plan)
        self.assert_deletable(plan)

    def test_copy_that_fails_leaves_nothing(self):
        plan = self.guest(self.cloned_rbd(BEFORE))
        with mock.patch.object(rbd_utils.RBDDriver, 'flatten',
                               side_effect=rbd_utils.rbd.OSError('full')):
            # Nova's clean-up fails in turn, and hides the cause.
            self.assertRaises(rbd_utils.rbd.ImageBusy, self.take, plan)
        self.assert_clean(plan)

    def test_kill_during_the_copy_is_recovered(self):
        plan = self.guest(self.cloned_rbd(BEFORE))
        with mock.patch.object(rbd_utils.RBDDriver, 'flatten',
                               side_effect=CrashError), \
                mock.patch.object(rbd_utils.RBDDriver, 'remove_snap'):
            self.crash(plan)
        self.assert_clean(plan)

    def test_kill_before_the_clone_is_recovered(self):
        plan = self.guest(self.cloned_rbd(BEFORE))
        with mock.patch.object(rbd_utils.RBDDriver, 'clone',
                               side_effect=CrashError), \
                mock.patch.object(rbd_utils.RBDDriver, 'remove_snap'):
            self.crash(plan)
        self.assert_clean(plan)

    def test_kill_while_glance_may_have_it_deletes_the_image_first(self):
        plan = self.guest(self.cloned_rbd(BEFORE))
        with mock.patch.object(self, 'register', side_effect=CrashError):
            self.crash(plan)
        self.assertEqual([True], self.discarded)
        self.assert_clean(plan)

    def test_other_format_is_left_to_nova_s_conversion(self):
        plan = self.guest(self.cloned_rbd(BEFORE))
        with mock.patch.object(self.snapshot.__func__, '__defaults__',
                               ('qcow2',)):
            self.take(plan)
        self.assertIsNone(self.url)
        self.assertEqual([], self.discarded)
        self.assert_clean(plan)

    def test_pool_of_the_guest_s_image_is_recorded_for_a_flat_disk(self):
        disk = self.rbd()
        plan = self.guest(disk)
        with mock.patch.object(direct, 'pool_of_base_image',
                               return_value='images') as pool, \
                mock.patch.object(
                    rbd_utils.RBDDriver, 'parse_url',
                    return_value=[self.cluster.fsid, 'images', 'x', 'y']), \
                mock.patch(
                    'nova.virt.libvirt.imagebackend.IMAGE_API') as api, \
                mock.patch.object(rbd_utils.RBDDriver, 'clone',
                                  side_effect=CrashError), \
                mock.patch.object(rbd_utils.RBDDriver, 'remove_snap'):
            api.get.return_value = {'locations': [{'url': 'x'}]}
            self.crash(plan)
        pool.assert_called_once()
        self.assert_clean(plan)
