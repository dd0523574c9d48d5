# SPDX-License-Identifier: Apache-2.0

import contextlib
import dataclasses
import signal
import subprocess
import sys
from unittest import mock
import uuid

from devcloud import wait
from nova import context as nova_context
from nova import exception as nova_exception
from nova.storage import rbd_utils
from oslo_utils import timeutils
from oslo_utils import units

from nova_snapext import cancel
from nova_snapext import exception
from nova_snapext.hypervisor import ceph
from nova_snapext import journal
from nova_snapext import read
from nova_snapext.recovery import rbd_leftovers
from nova_snapext.resources import rbd_clone
from nova_snapext.resources import rbd_image
from nova_snapext.resources import rbd_snapshot
from nova_snapext.snapshot import direct
from tests.functional import base as functional_base
from tests.functional.ceph import base
from tests.functional.ceph import cluster
from tests.functional.strategies import contract

BEFORE, AFTER = contract.BEFORE, contract.AFTER
DISK_SIZE = functional_base.DISK_SIZE


class CrashError(Exception):
    """Ends a snapshot without any of its clean-up."""


class DirectTest(contract.FreezeAssertions, base.ImageTestCase):
    """Images that are clones."""

    def guest(self, disk, **kwargs):
        plan = super().guest(disk, **kwargs)
        return dataclasses.replace(
            plan, image_id=str(uuid.uuid4()), image_format='raw',
            context=nova_context.RequestContext(
                roles=['service'], is_admin=False))

    def image_of(self, plan):
        return ceph.ImageSpec('images', plan.image_id)

    @contextlib.contextmanager
    def frozen(self, plan):
        with journal.new_entry(plan, 'rbd') as entry, \
                self.strategy.freeze(plan, entry) as frozen, \
                journal.ReleaseStack(entry) as stack:
            yield frozen, direct.ClonedImage(
                plan, frozen.snapshot, direct.Making(
                    driver=self.driver, stack=stack, seen_by_nova=True,
                    complete=self.complete),
                self.token, lambda *args: self.progress.append(args))

    @staticmethod
    def make(image):
        image.check()
        image.make()

    def is_refused(self, plan):
        """Check that no image is made, but the disk can be streamed.

        :returns: the error's text
        """
        with self.frozen(plan) as (frozen, image):
            error = self.assertRaises(exception.DirectImageRefused,
                                      self.make, image)
            self.assertNotIn(plan.image_id, self.cluster.images('images'))
            self.assertEqual({BEFORE}, self.content(frozen))
        self.assert_nothing_left(plan)
        self.assert_deletable(plan)
        return str(error)

    def test_image_is_made_beside_the_image_that_the_guest_was_booted_from(
            self):
        plan = self.guest(self.cloned_rbd(BEFORE))
        with self.frozen(plan) as (_frozen, image):
            self.write_as_guest(plan, AFTER)
            self.make(image)
        made = self.image_of(plan)
        self.glance.add.assert_called_once_with(
            f'rbd://{self.cluster.fsid}/{made}/snap', None)
        self.complete.assert_called_once_with()
        self.assertEqual((DISK_SIZE, DISK_SIZE), self.progress[-1])
        self.assertEqual({BEFORE}, set(self.content_of(made, 'snap')))
        with self.cluster.image(made) as opened:
            self.assertTrue(opened.is_protected_snap('snap'))
            # It needs the guest's disk no more.
            self.assertEqual(0, opened.overlap())
        self.assert_nothing_left(plan)
        self.assert_deletable(plan)

    def test_pool_without_any_right_is_refused(self):
        disk = self.rbd()
        self.fill(disk, BEFORE)
        self.use_user('vms')
        self.configure('snapext', rbd_image_pool='images')
        self.is_refused(self.guest(disk))
        self.glance.add.assert_not_called()

    def test_disk_that_is_no_clone_needs_an_option(self):
        disk = self.rbd()
        self.fill(disk, BEFORE)
        self.assertIn('rbd_image_pool', self.is_refused(self.guest(disk)))
        disk = self.rbd()
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        self.configure('snapext', rbd_image_pool='images')
        with self.frozen(plan) as (_frozen, image):
            self.make(image)
        self.assertEqual(
            {BEFORE}, set(self.content_of(self.image_of(plan))))

    def test_disk_that_is_no_clone_follows_its_image_in_glance(self):
        disk = self.rbd()
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        self.glance.locations.return_value = [
            f'rbd://{uuid.uuid4()}/elsewhere/base/snap',
            'file:///var/lib/glance/images/base',
            f'rbd://{self.cluster.fsid}/images/base/snap']
        with self.frozen(plan) as (_frozen, image):
            self.make(image)
        self.assertEqual(
            {BEFORE}, set(self.content_of(self.image_of(plan))))

    def test_pool_without_the_right_to_write_is_refused(self):
        disk = self.cloned_rbd(BEFORE)
        self.use_user('reader')
        self.is_refused(self.guest(disk))
        self.glance.add.assert_not_called()

    def test_qcow2_is_refused(self):
        plan = dataclasses.replace(
            self.guest(self.cloned_rbd(BEFORE)), image_format='qcow2')
        self.assertIn('qcow2', self.is_refused(plan))

    def test_missing_service_token_is_known_before_the_copy(self):
        plan = dataclasses.replace(
            self.guest(self.cloned_rbd(BEFORE)),
            context=nova_context.RequestContext(
                roles=['member'], is_admin=False))
        self.glance.needs_service.return_value = True
        self.assertIn('send_service_user_token', self.is_refused(plan))
        self.assertEqual([], self.progress)

    def test_location_that_glance_refuses_leaves_nothing(self):
        plan = self.guest(self.cloned_rbd(BEFORE))
        self.glance.add.side_effect = exception.LocationRefused(
            image=plan.image_id, reason='403')
        with mock.patch.object(rbd_image.upload, 'discard') as discard:
            self.assertIn('403', self.is_refused(plan))
        # The same image is filled in another way.
        discard.assert_not_called()

    def test_copy_that_fails_leaves_nothing(self):
        plan = self.guest(self.cloned_rbd(BEFORE))
        with mock.patch.object(
                ceph.Flatten, '_flatten',
                side_effect=rbd_utils.rbd.OSError('no space', errno=28)):
            self.assertIn('no space', self.is_refused(plan))

    def test_image_that_is_complete_is_kept_whatever_comes_next(self):
        plan = self.guest(self.cloned_rbd(BEFORE))
        self.glance.wait_until_active.side_effect = [
            nova_exception.GlanceConnectionFailed(server='s', reason='r'),
            None]
        with self.frozen(plan) as (_frozen, image):
            self.make(image)
        self.complete.assert_called_once_with()
        self.assertEqual(
            {BEFORE}, set(self.content_of(self.image_of(plan), 'snap')))
        self.assert_nothing_left(plan)

    def test_image_without_an_object_map_is_made_and_read(self):
        parent = ceph.ImageSpec('images', str(uuid.uuid4()))
        self.cluster.create(parent, DISK_SIZE, features=1)  # layering alone
        self.write(parent, BEFORE)
        spec = ceph.ImageSpec('vms', f'{uuid.uuid4()}_disk')
        self.cluster.clone(parent, spec, features=1)
        plan = self.guest(self.disk(spec))
        with self.frozen(plan) as (frozen, image):
            self.assertEqual({BEFORE}, self.content(frozen))
            self.assertEqual(
                [read.Extent(0, DISK_SIZE, True)],
                list(frozen.extents(cancel.CancelToken())))
            self.make(image)
        self.assertEqual(
            {BEFORE}, set(self.content_of(self.image_of(plan), 'snap')))
        self.assert_nothing_left(plan)
        self.assert_deletable(plan)

    def test_cancel_ends_the_copy_and_leaves_nothing(self):
        # More objects than librbd copies at the same time.
        parent = ceph.ImageSpec('images', str(uuid.uuid4()))
        self.cluster.create(parent, DISK_SIZE, order=16)
        self.write(parent, BEFORE)
        spec = ceph.ImageSpec('vms', f'{uuid.uuid4()}_disk')
        self.cluster.clone(parent, spec)
        plan = self.guest(self.disk(spec))
        deleted = nova_exception.ImageNotFound(image_id=plan.image_id)
        with self.frozen(plan) as (_frozen, image):
            image._on_progress = lambda done, total: self.progress.append(
                (done, self.token.cancel(deleted)))
            error = self.assertRaises(
                nova_exception.ImageNotFound, self.make, image)
        self.assertIs(deleted, error)
        self.assertLess(max(done for done, _ in self.progress), DISK_SIZE)
        self.assertNotIn(plan.image_id, self.cluster.images('images'))
        self.assert_nothing_left(plan)
        self.assert_deletable(plan)

    def test_copy_that_hangs_is_left_in_the_journal_until_ceph_responds(self):
        plan = self.guest(self.cloned_rbd(BEFORE))
        self.configure('snapext', operation_timeout=3, read_timeout=2)

        def take():
            with self.frozen(plan) as (_frozen, image):
                original = rbd_clone.RbdClone.flatten

                def flatten(*args):
                    self.cluster.suspend_osd()
                    original(*args)

                with mock.patch.object(rbd_clone.RbdClone, 'flatten',
                                       flatten):
                    self.make(image)

        self.assertRaises(exception.ReleaseFailed, take)
        kinds = {record.kind
                 for record in journal.find(plan.instance.uuid).records}
        self.assertEqual({'RBD clone', 'RBD snapshot'}, kinds)
        self.cluster.resume()
        self.configure('snapext', operation_timeout=60, read_timeout=60)
        self.recover(plan)
        self.assert_nothing_left(plan)
        self.await_calls()
        self.assertNotIn(plan.image_id, self.cluster.images('images'))
        self.assert_deletable(plan)

    def crashed(self, *steps):
        """Take a snapshot that ends after some steps, and recover it."""
        plan = self.guest(self.cloned_rbd(BEFORE))
        snapshot = rbd_snapshot.RbdSnapshot.allocate(
            plan.instance.uuid, ceph.image_of(plan.disk))
        clone = rbd_clone.RbdClone(plan, self.image_of(plan), True)
        with journal.new_entry(plan, 'rbd') as entry:
            entry.add(snapshot)
            snapshot.open()
            snapshot.create(60)
            for step in steps:
                step(entry, snapshot, clone)
        self.recover(plan)
        self.assert_nothing_left(plan)
        self.assertNotIn(plan.image_id, self.cluster.images('images'))
        self.assert_deletable(plan)

    @staticmethod
    def clone(entry, snapshot, clone):
        entry.add(clone)
        clone.create(snapshot.spec)

    def flatten(self, _entry, _snapshot, clone):
        clone.flatten(self.token, lambda *args: None)

    def flatten_half(self, _entry, _snapshot, clone):
        token = cancel.CancelToken()
        with contextlib.suppress(CrashError):
            clone.flatten(token, lambda *args: token.cancel(CrashError()))

    @staticmethod
    def finish(_entry, _snapshot, clone):
        ceph.finish_image(clone.spec)

    @staticmethod
    def protect(_entry, snapshot, _clone):
        ceph.protect(snapshot.spec)

    def test_crash_after_the_snapshot_is_recovered(self):
        self.crashed()

    def test_crash_after_the_protection_is_recovered(self):
        self.crashed(self.protect)

    def test_crash_before_the_clone_is_recovered(self):
        self.crashed(self.protect, lambda entry, _, clone: entry.add(clone))

    def test_crash_after_the_clone_is_recovered(self):
        self.crashed(self.clone)

    def test_crash_in_the_copy_is_recovered(self):
        self.crashed(self.clone, self.flatten_half)

    def test_crash_before_glance_knows_of_the_image_is_recovered(self):
        self.crashed(self.clone, self.flatten, self.finish)

    @staticmethod
    def incomplete():
        return mock.patch.object(journal, 'has_image', return_value=True)

    def test_crash_while_glance_may_know_of_it_deletes_the_image_first(self):
        seen = []

        def discard(_context, image_id, *args, **kwargs):
            seen.append(image_id in self.cluster.images('images'))

        with self.incomplete(), \
                mock.patch.object(rbd_image.upload, 'discard', discard):
            self.crashed(self.clone, self.flatten, self.finish,
                         lambda _entry, _snapshot, clone:
                         clone.set_offered(True))
        self.assertEqual([True], seen)

    def test_image_that_glance_does_not_delete_keeps_its_data(self):
        with self.incomplete(), \
                mock.patch.object(rbd_image.upload, 'discard',
                                  return_value='Glance is down'):
            error = self.assertRaises(
                exception.NotRecovered, self.crashed,
                self.clone, self.flatten, self.finish,
                lambda _entry, _snapshot, clone: clone.set_offered(True))
        self.assertIn('Glance is down', str(error))


# Removes an image, and is killed when librbd begins with the objects.
KILLED_REMOVAL = """
import os, signal, sys
import rados, rbd
configuration, pool, name = sys.argv[1:]
with rados.Rados(conffile=configuration) as client, \\
        client.open_ioctx(pool) as pool:
    rbd.RBD().remove(pool, name, on_progress=lambda *_: os.kill(
        os.getpid(), signal.SIGKILL))
"""


class RemovalTest(base.CephTestCase):
    """The removal of an image in Glance's pool."""

    def setUp(self):
        super().setUp()
        self.addCleanup(self.empty_trash)

    def empty_trash(self):
        with self.cluster.pool('images') as pool:
            for entry in rbd_utils.rbd.RBD().trash_list(pool):
                rbd_utils.rbd.RBD().trash_remove(pool, entry['id'], True)

    def trash(self):
        with self.cluster.pool('images') as pool:
            return [(entry['name'], entry['source'])
                    for entry in rbd_utils.rbd.RBD().trash_list(pool)]

    def cloned(self):
        """Create a clone that has no data of its own, of many objects.

        :returns: the snapshot that it needs, and the clone
        """
        parent = ceph.ImageSpec('vms', f'{uuid.uuid4()}_disk')
        self.cluster.create(parent, DISK_SIZE, order=16)
        image = ceph.ImageSpec('images', str(uuid.uuid4()))
        self.cluster.clone(parent, image)
        return ceph.SnapSpec(parent, 'snap'), image

    def removed(self, remove, argument):
        """Wait until something can be removed.

        Ceph forgets only later that a client which was killed has used it.
        """
        def is_removed():
            try:
                remove(argument)
            except exception.CephError as error:
                self.assertIsInstance(error.__cause__,
                                      rbd_utils.rbd.ImageBusy)
                return False
            return True

        wait.until(f'{argument} is removed', is_removed,
                   cluster.FORGET_TIMEOUT)

    def assert_removed(self, snapshot, image):
        self.assertNotIn(image.name, self.cluster.images('images'))
        self.assertEqual([], self.trash())
        ceph.remove_snapshot(snapshot)
        self.assertEqual([], self.snapshots(snapshot.image))

    def kill_removal(self, image):
        ended = subprocess.run(
            [sys.executable, '-c', KILLED_REMOVAL,
             str(self.cluster.configuration), image.pool, image.name],
            check=False)
        self.assertEqual(-signal.SIGKILL, ended.returncode)
        # Ceph still lists the image, and does not open it.
        self.assertIn(image.name, self.cluster.images('images'))
        with self.assertRaises(rbd_utils.rbd.ImageNotFound), \
                self.cluster.image(image):
            pass

    def test_removal_that_was_killed_is_finished(self):
        snapshot, image = self.cloned()
        self.kill_removal(image)
        self.assertEqual([image], [*ceph.children(snapshot).values()])
        self.removed(ceph.remove_image, image)
        self.assert_removed(snapshot, image)

    def test_clone_in_the_trash_goes_with_a_lost_snapshot(self):
        snapshot, image = self.cloned()
        self.kill_removal(image)
        self.removed(rbd_leftovers.remove, snapshot)
        self.assert_removed(snapshot, image)

    def test_clone_whose_creation_was_killed_is_removed(self):
        image = ceph.ImageSpec('images', str(uuid.uuid4()))
        self.cluster.create(image, DISK_SIZE)
        with self.cluster.image(image) as opened:
            header = f'rbd_header.{opened.id()}'
        with self.cluster.pool('images') as pool:
            pool.remove_object(header)
        ceph.remove_image(image)
        self.assertNotIn(image.name, self.cluster.images('images'))
        self.assertEqual([], self.trash())

    def keep_what_is_removed(self):
        """Have Ceph move what is removed into its trash."""
        rbd = rbd_utils.rbd.RBD()
        option = 'conf_rbd_move_to_trash_on_remove'

        def end():
            with self.cluster.pool('images') as pool:
                rbd.pool_metadata_remove(pool, option)

        with self.cluster.pool('images') as pool:
            rbd.pool_metadata_set(pool, option, 'true')
        self.addCleanup(end)

    def test_clone_is_removed_where_ceph_keeps_what_is_removed(self):
        self.keep_what_is_removed()
        snapshot, image = self.cloned()
        ceph.remove_image(image)
        self.assert_removed(snapshot, image)

    def migrate(self):
        """Begin to migrate an image, which moves its data into the trash."""
        rbd = rbd_utils.rbd.RBD()
        image = ceph.ImageSpec('images', 'of-somebody')
        self.cluster.create(image, DISK_SIZE)

        def abort():
            with self.cluster.pool('images') as pool:
                rbd.migration_abort(pool, image.name)

        with self.cluster.pool('images') as pool:
            rbd.migration_prepare(pool, image.name, pool, image.name)
        self.addCleanup(abort)
        # The defect of the binding, which has no name for this source.
        self.assertRaises(IndexError, self.trash)

    def test_clone_is_removed_while_somebody_migrates_an_image(self):
        snapshot, image = self.cloned()
        self.migrate()
        ceph.remove_image(image)
        self.assertNotIn(image.name, self.cluster.images('images'))
        ceph.remove_image(image)  # it is not there any more
        ceph.remove_snapshot(snapshot)

    def test_clone_in_the_trash_is_removed_whatever_its_source(self):
        self.keep_what_is_removed()
        snapshot, image = self.cloned()
        with mock.patch.object(rbd_utils.rbd.RBD, 'trash_get',
                               side_effect=IndexError):
            ceph.remove_image(image)
        self.assert_removed(snapshot, image)

    def trashed(self, image):
        """Move an image into the trash, and return its id."""
        image_id = ceph.id_of(image)
        with self.cluster.pool('images') as pool:
            rbd_utils.rbd.RBD().trash_move(pool, image.name)
        self.assertIsNone(ceph.id_of(image))
        return image_id

    def test_clone_that_ceph_has_kept_in_the_trash_is_removed_by_its_id(self):
        snapshot, image = self.cloned()
        ceph.remove_image(image, self.trashed(image))
        self.assert_removed(snapshot, image)

    def test_clone_in_the_trash_is_found_by_its_snapshot(self):
        snapshot, image = self.cloned()
        self.trashed(image)
        rbd_leftovers.remove(snapshot)
        self.assert_removed(snapshot, image)

    def test_copied_clone_is_removed_after_a_crash_between_trash_and_removal(
            self):
        self.keep_what_is_removed()
        snapshot, image = self.cloned()
        plan = self.guest(self.disk(snapshot.image), running=False)
        plan = dataclasses.replace(plan, image_id=image.name)
        clone = rbd_clone.RbdClone(plan, image, True)
        with journal.new_entry(plan, 'rbd') as entry:
            entry.add(clone)
            clone.flatten(cancel.CancelToken(), lambda *args: None)
            with mock.patch.object(ceph, '_is_in_trash',
                                   side_effect=CrashError):
                self.assertRaises(exception.ReleaseFailed, clone.release)
        self.assertEqual([(image.name, 'USER')], self.trash())
        self.recover(plan)
        self.assertEqual([], journal.entries())
        self.assert_removed(snapshot, image)

    def test_image_that_glance_has_deleted_stays_in_the_trash(self):
        image = ceph.ImageSpec('images', str(uuid.uuid4()))
        self.cluster.create(image, DISK_SIZE)
        self.trashed(image)
        ceph.remove_image(image)
        self.assertEqual([(image.name, 'USER')], self.trash())

    def test_user_without_the_right_to_write_has_nothing_to_remove(self):
        _snapshot, image = self.cloned()
        self.use_user('reader')
        ceph.remove_image(ceph.ImageSpec('images', str(uuid.uuid4())))
        self.kill_removal(image)
        error = self.assertRaises(
            exception.CephError, ceph.remove_image, image)
        self.assertTrue(ceph.is_forbidden(error))
        self.use_user('nova')
        self.removed(ceph.remove_image, image)

    def test_removal_takes_as_long_as_the_size_of_the_image_wants(self):
        image = ceph.ImageSpec('images', str(uuid.uuid4()))
        # Without an object map, each object is removed that may exist.
        self.cluster.create(image, 100000 * 4 * units.Ki, order=12,
                            features=1)
        self.configure('snapext', operation_timeout=1)
        with timeutils.StopWatch() as watch:
            ceph.remove_image(image)
        self.assertGreater(watch.elapsed(), 1)
        self.assertNotIn(image.name, self.cluster.images('images'))
