# SPDX-License-Identifier: Apache-2.0

import contextlib
import dataclasses
import pathlib
from unittest import mock
import uuid

import fixtures
from nova import context as nova_context
from oslo_utils import units

from nova_snapext import exception
from nova_snapext.hypervisor import ceph
from nova_snapext.hypervisor import rbd_io
from nova_snapext import journal
from nova_snapext import plan as planning
from nova_snapext import read
from nova_snapext.resources import rbd_copy
from nova_snapext.resources import rbd_image
from nova_snapext.snapshot import direct
from nova_snapext.strategies import base as strategies_base
from tests.functional.ceph import base
from tests.functional.read import servers

# No multiple of a cluster, nor of an object in Ceph.
DISK_SIZE = 40 * units.Mi + 3 * 512

# Offset, length and content of each part with data: one that crosses objects
# in Ceph, one of zeros, one inside of a cluster, and the end of the disk.
PARTS = ((1 * units.Mi, 9 * units.Mi, 0x11), (16 * units.Mi, units.Mi, 0),
         (20 * units.Mi + 4096, 4096, 0x22), (DISK_SIZE - 1024, 1024, 0x33))


class CopyTest(base.ImageTestCase):
    """Images of a disk outside Ceph, served by qemu-nbd."""

    def setUp(self):
        super().setUp()
        # The user of disks may not write to Glance's pool.
        self.use_user('vms')
        self.configure('snapext', rbd_image_pool='images',
                       rbd_image_user='images')
        self.disk_file = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path) / 'disk'
        with open(self.disk_file, 'wb') as file:
            file.truncate(DISK_SIZE)
            for offset, length, pattern in PARTS:
                file.seek(offset)
                file.write(bytes([pattern]) * length)
        self.server = self.useFixture(
            servers.qemu_nbd(self.disk_file, 'raw'))
        self.frozen = strategies_base.FrozenDisk(
            uri=read.unix_uri(self.server.socket, 'vda'),
            consistency=planning.Consistency.CRASH, freeze_seconds=0)

    def new_plan(self):
        return planning.Plan(
            context=nova_context.RequestContext(
                roles=['service'], is_admin=False),
            instance=base.FakeInstance('copied'), guest=mock.Mock(),
            running=True, disk=planning.RootDisk(
                'vda', 'file', str(self.disk_file), 'raw'),
            image_id=str(uuid.uuid4()), image_format='raw',
            image_properties={}, metadata={})

    @contextlib.contextmanager
    def image(self, plan):
        with journal.new_entry(plan, 'backup') as entry, \
                journal.ReleaseStack(entry) as stack:
            yield direct.CopiedImage(
                plan, self.frozen, direct.Making(
                    driver=self.driver, stack=stack, seen_by_nova=True,
                    complete=self.complete),
                self.token,
                lambda *args: self.progress.append(args))

    def make(self, plan):
        with self.image(plan) as image:
            image.check()
            return image.make()

    def assert_no_image(self):
        self.assertEqual([], self.cluster.images('images'))
        self.assertEqual([], journal.entries())

    def spec(self, plan):
        return ceph.ImageSpec('images', plan.image_id, 'images')

    def test_image_holds_the_disk_and_no_more_data_than_it(self):
        plan = self.new_plan()
        stored = self.make(plan)
        spec = self.spec(plan)
        self.assertEqual(self.disk_file.read_bytes(),
                         self.content_of(spec, 'snap'))
        self.glance.add.assert_called_once_with(
            f'rbd://{self.cluster.fsid}/{spec}/snap', None)
        self.complete.assert_called_once_with()
        self.assertEqual((DISK_SIZE,) * 2, self.progress[-1])
        self.assertEqual(sorted(self.progress), self.progress)
        with self.cluster.image(spec) as opened:
            self.assertTrue(opened.is_protected_snap('snap'))
        _size, parts = ceph.allocated(
            ceph.SnapSpec(spec, 'snap'), self.token)
        # Ceph tells what objects hold, each from its beginning. Zeros are in
        # none of them.
        objects = {offset // (4 * units.Mi) for offset, _ in parts}
        self.assertLessEqual(objects, {0, 1, 2, 5, 9, 10})
        # Whole clusters.
        written = 9 * units.Mi + 65536 + 3 * 512
        self.assertEqual((written, True),
                         (stored.sent_bytes, stored.in_ceph))
        self.assertEqual([], journal.entries())

    def test_empty_disk_becomes_an_empty_image(self):
        with open(self.disk_file, 'wb') as file:
            file.truncate(DISK_SIZE)
        plan = self.new_plan()
        self.assertEqual(0, self.make(plan).sent_bytes)
        self.assertEqual({0}, set(self.content_of(self.spec(plan), 'snap')))

    @contextlib.contextmanager
    def damaged(self, times, offset=2 * units.Mi):
        """Change a byte of an image before it is read back."""
        finish, left = ceph.finish_image, iter(range(times))

        def damage(spec):
            if next(left, None) is not None:
                self.write(spec, 0x99, offset, 1)
            return finish(spec)

        with mock.patch.object(ceph, 'finish_image', damage):
            yield

    def test_image_that_reads_back_differently_is_written_again(self):
        plan = self.new_plan()
        with self.damaged(1), self.assertLogs(
                'nova_snapext', 'WARNING') as logs:
            self.make(plan)
        self.assertIn('written again', logs.output[0])
        self.assertEqual(self.disk_file.read_bytes(),
                         self.content_of(self.spec(plan), 'snap'))
        self.glance.add.assert_called_once()

    def test_image_that_always_reads_back_differently_is_not_offered(self):
        # Among what was not written, too.
        for offset in (2 * units.Mi, 12 * units.Mi):
            plan = self.new_plan()
            with self.damaged(9, offset):
                error = self.assertRaises(exception.DirectImageRefused,
                                          self.make, plan)
            self.assertIn('differs', str(error))
            self.assert_no_image()
        self.glance.add.assert_not_called()

    def test_user_without_the_right_leaves_the_disk_to_be_streamed(self):
        self.configure('snapext', rbd_image_user='vms')
        plan = self.new_plan()
        error = self.assertRaises(exception.DirectImageRefused,
                                  self.make, plan)
        self.assertIn('write to the pool images', str(error))
        self.assert_no_image()

    def test_image_of_somebody_else_is_left_alone(self):
        plan = self.new_plan()
        spec = self.spec(plan)
        self.cluster.create(spec, units.Mi)
        self.write(spec, 0x77, length=units.Mi)
        self.assertRaises(exception.DirectImageRefused, self.make, plan)
        self.assertEqual({0x77}, set(self.content_of(spec)))
        self.assertEqual([], journal.entries())
        self.glance.add.assert_not_called()

    def test_server_of_the_disk_that_ends_fails_the_snapshot(self):
        create = ceph.create_image

        def create_and_kill(*args):
            create(*args)
            self.server.kill()

        plan = self.new_plan()
        with mock.patch.object(ceph, 'create_image', create_and_kill):
            self.assertRaises(exception.DiskReadError, self.make, plan)
        self.assert_no_image()

    def test_disk_that_was_lost_is_not_offered(self):
        self.frozen = dataclasses.replace(
            self.frozen, lost_reason=lambda: 'the scratch file is full')
        plan = self.new_plan()
        self.assertRaises(exception.DiskReadError, self.make, plan)
        self.assert_no_image()
        self.glance.add.assert_not_called()

    @contextlib.contextmanager
    def hanging(self):
        """Have Ceph hang as soon as the image is open.

        :yields: a function that has it go on
        """
        enter = rbd_io.OpenImage.__enter__

        def enter_and_suspend(image):
            enter(image)
            self.cluster.suspend(self.cluster.osd)
            return image

        with mock.patch.object(rbd_io.OpenImage, '__enter__',
                               enter_and_suspend):
            try:
                yield self.cluster.resume
            finally:
                self.cluster.resume()

    def test_cancelled_copy_ends_while_ceph_hangs(self):
        cause = exception.SnapextError('cancelled')
        write = rbd_io.OpenImage.write

        def write_and_cancel(image, *args):
            self.token.cancel(cause)
            write(image, *args)

        plan = self.new_plan()
        with self.hanging() as resume, self.image(plan) as image, \
                mock.patch.object(rbd_io.OpenImage, 'write',
                                  write_and_cancel):
            image.check()
            self.assertIs(cause, self.assertRaises(
                exception.SnapextError, image.make))
            # Its data is removed when Ceph responds.
            resume()
        self.assert_no_image()

    def test_ceph_that_hangs_fails_and_nothing_is_left_when_it_responds(self):
        self.configure('snapext', operation_timeout=2, read_timeout=1)
        plan = self.new_plan()
        with self.hanging():
            self.assertRaises(exception.ReleaseFailed, self.make, plan)
        self.assertNotEqual([], journal.entries())
        self.configure('snapext', operation_timeout=60, read_timeout=60)
        self.recover(plan)
        self.assert_no_image()

    def crashed(self, *steps):
        """Recover after a crash that follows some steps.

        :param steps: each is called with the copy
        """
        plan = self.new_plan()
        copy = rbd_copy.RbdCopy(plan, self.spec(plan), True)
        with journal.new_entry(plan, 'backup') as entry:
            entry.add(copy)
            for step in steps:
                step(copy)
        self.assertNotEqual([], journal.entries())
        self.recover(plan)
        self.assert_no_image()

    @staticmethod
    def create(copy):
        ceph.create_image(copy.spec, DISK_SIZE)

    def fill(self, copy):
        with self.frozen.to_read(self.token) as disk:
            copy.fill(disk, self.token, lambda *_args: None)

    def test_crash_before_the_image_is_created_is_recovered(self):
        self.crashed()

    def test_crash_after_the_image_is_created_is_recovered(self):
        self.crashed(self.create)

    def test_crash_before_glance_knows_of_the_image_is_recovered(self):
        self.crashed(self.fill)

    def test_crash_while_glance_may_know_of_it_deletes_the_image_first(self):
        seen = []

        def discard(_context, image_id, *_args, **_kwargs):
            seen.append(image_id in self.cluster.images('images'))

        with mock.patch.object(journal, 'has_image', return_value=True), \
                mock.patch.object(rbd_image.upload, 'discard', discard):
            self.crashed(self.fill, lambda copy: copy.set_offered(True))
        self.assertEqual([True], seen)
