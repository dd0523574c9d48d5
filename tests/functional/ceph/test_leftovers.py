# SPDX-License-Identifier: Apache-2.0

import signal
import subprocess
import sys
from unittest import mock
import uuid

from nova import exception as nova_exception
from nova import objects

from nova_snapext.cmd import recover
from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.hypervisor import ceph
from nova_snapext import journal
from nova_snapext.recovery import rbd_leftovers
from nova_snapext.resources import rbd_snapshot
from nova_snapext.strategies import native
from tests.functional.ceph import base

CONF = conf.CONF


# Uses an image, and is killed.
KILLED_USER = """
import os, signal, sys
import rados, rbd
configuration, pool, name = sys.argv[1:]
with rados.Rados(conffile=configuration) as client, \\
        client.open_ioctx(pool) as pool, rbd.Image(pool, name):
    os.kill(os.getpid(), signal.SIGKILL)
"""


class LeftoversTest(base.CephTestCase):

    def setUp(self):
        super().setUp()
        self.configure('libvirt', images_type='rbd')

    def snapshot_of(self, plan):
        snapshot = rbd_snapshot.RbdSnapshot.allocate(
            plan.instance.uuid, ceph.image_of(plan.disk))
        snapshot.open()
        snapshot.create(60)
        return snapshot

    def found(self, **instance):
        """Return the snapshots that are found here.

        :param instance: attributes of the instance that Nova has
        """
        def get_by_uuid(context, uuid, **_kwargs):
            self.assertEqual('yes', context.read_deleted)
            return objects.Instance(uuid=uuid, **{
                'host': CONF.host, 'deleted': False, **instance})

        with mock.patch.object(objects.Instance, 'get_by_uuid', get_by_uuid):
            found = list(rbd_leftovers.find(self.driver))
        self.assertEqual([], [why for _, why in found if why])
        return [snapshot for snapshot, _ in found]

    def test_snapshot_without_a_journal_is_found_and_removed(self):
        plan = self.guest(self.rbd())
        lost = self.snapshot_of(plan)
        with self.cluster.image(lost.spec.image) as image:
            image.create_snap('of the operator')
        self.assertEqual([lost.spec], self.found())
        rbd_leftovers.remove(lost.spec)
        self.assertEqual(['of the operator'],
                         self.snapshots(lost.spec.image))
        self.assertEqual([], self.found())

    def test_snapshot_of_the_journal_is_none(self):
        plan = self.guest(self.rbd())
        with journal.new_entry(plan, 'rbd') as entry:
            snapshot = rbd_snapshot.RbdSnapshot.allocate(
                plan.instance.uuid, ceph.image_of(plan.disk))
            record = entry.add(snapshot)
            snapshot.open()
            snapshot.create(60)
            self.assertEqual([], self.found())
            snapshot.release()
            entry.remove(record)

    def test_snapshot_of_an_instance_of_another_host_is_none(self):
        # Even if libvirt has the guest here: it was evacuated.
        plan = self.guest(self.rbd())
        self.snapshot_of(plan)
        for state in ({'host': 'other'}, {'host': 'other', 'deleted': True},
                      {'host': None}):
            self.assertEqual([], self.found(**state))

    def test_snapshot_is_listed_if_nova_does_not_answer(self):
        plan = self.guest(self.rbd())
        lost = self.snapshot_of(plan)
        with mock.patch.object(objects.Instance, 'get_by_uuid',
                               side_effect=OSError('no route')):
            [(found, why)] = rbd_leftovers.find(self.driver)
        self.assertEqual(lost.spec, found)
        self.assertIn('no route', why)

    def test_snapshot_that_ends_during_the_search_is_none(self):
        plan = self.guest(self.rbd())
        lost = self.snapshot_of(plan)
        listed = ceph.snapshots_in('vms')

        def snapshots_in(_pool):
            lost.release()
            return listed

        with mock.patch.object(ceph, 'snapshots_in', snapshots_in):
            self.assertEqual([], self.found())

    def test_disk_of_a_deleted_instance_is_looked_at_too(self):
        # It is what Nova leaves of an instance that it could not clean up.
        image = ceph.image_of(self.rbd())
        with self.cluster.image(image) as opened:
            opened.create_snap(name := f'snapext-{uuid.uuid4().hex}')
        for host in (CONF.host, None):
            self.assertEqual([ceph.SnapSpec(image, name)],
                             self.found(deleted=True, host=host))

    def test_command_deletes_the_disk_of_a_deleted_instance_too(self):
        image = ceph.image_of(self.rbd())
        with self.cluster.image(image) as opened:
            opened.create_snap(f'snapext-{uuid.uuid4().hex}')
        with mock.patch.object(
                objects.Instance, 'get_by_uuid',
                return_value=objects.Instance(
                    uuid=rbd_leftovers.instance_uuid(image), host=CONF.host,
                    deleted=True, task_state=None)), \
                mock.patch.object(rbd_leftovers, '_images',
                                  return_value=[image]):
            self.assertTrue(recover.recover_all(self.driver))
        self.assertNotIn(image.name, self.cluster.images('vms'))

    def test_disk_of_an_instance_of_another_cell_is_left_alone(self):
        image = ceph.image_of(self.rbd())
        with self.cluster.image(image) as opened:
            opened.create_snap(f'snapext-{uuid.uuid4().hex}')
        with mock.patch.object(
                objects.Instance, 'get_by_uuid',
                side_effect=nova_exception.InstanceNotFound(instance_id='')):
            self.assertEqual([], list(rbd_leftovers.find(self.driver)))

    def test_nova_s_own_snapshot_goes_with_the_instance(self):
        plan = self.guest(self.cloned_rbd(1))
        image = ceph.image_of(plan.disk)
        self.driver.strategies['native'] = native.NativeStrategy(self.driver)
        lost = rbd_snapshot.NovaRbdSnapshot(
            plan.instance.uuid, ceph.SnapSpec(image, uuid.uuid4().hex))
        with journal.new_entry(plan, 'native') as entry:
            entry.add(lost)
        lost.open()
        lost.create(60)
        ceph.protect(lost.spec)
        ceph.clone(lost.spec, ceph.ImageSpec('images', str(uuid.uuid4())))
        with self.cluster.image(image) as opened:
            opened.create_snap(uuid.uuid4().hex)  # of somebody else
        rbd_leftovers.remove_of_instance(
            plan.instance.uuid, in_progress=False)
        [left] = self.snapshots(image)
        self.assertNotEqual(lost.spec.name, left)
        with mock.patch.object(objects.Instance, 'get_by_uuid',
                               return_value=objects.Instance(
                                   uuid=plan.instance.uuid, host=CONF.host,
                                   deleted=False)):
            self.recover(plan)
        self.assertEqual([], journal.entries())

    def test_half_flattened_image_goes_with_its_snapshot(self):
        plan = self.guest(self.cloned_rbd(1))
        lost = self.snapshot_of(plan)
        image = ceph.ImageSpec('images', str(uuid.uuid4()))
        ceph.protect(lost.spec)
        ceph.clone(lost.spec, image)
        rbd_leftovers.remove(lost.spec)
        self.assertNotIn(image.name, self.cluster.images('images'))
        self.assert_nothing_left(plan)
        self.assert_deletable(plan)

    def test_clone_of_somebody_else_is_kept(self):
        plan = self.guest(self.rbd())
        lost = self.snapshot_of(plan)
        image = ceph.ImageSpec('vms', 'mine')
        ceph.protect(lost.spec)
        ceph.clone(lost.spec, image)
        error = self.assertRaises(
            exception.CephError, rbd_leftovers.remove, lost.spec)
        self.assertIn('vms/mine', str(error))
        self.assertIn('mine', self.cluster.images('vms'))

    def test_deleted_instance_takes_its_snapshots_along(self):
        plan = self.guest(self.cloned_rbd(1))
        lost = self.snapshot_of(plan)
        image = ceph.ImageSpec('images', str(uuid.uuid4()))
        ceph.protect(lost.spec)
        ceph.clone(lost.spec, image)
        rbd_leftovers.remove_of_instance(
            plan.instance.uuid, in_progress=False)
        self.assert_deletable(plan)

    def test_deletion_outlasts_the_use_by_a_client_that_was_killed(self):
        plan = self.guest(self.cloned_rbd(1))
        lost = self.snapshot_of(plan)
        image = ceph.ImageSpec('images', str(uuid.uuid4()))
        ceph.protect(lost.spec)
        ceph.clone(lost.spec, image)
        ended = subprocess.run(
            [sys.executable, '-c', KILLED_USER,
             str(self.cluster.configuration), image.pool, image.name],
            check=False)
        self.assertEqual(-signal.SIGKILL, ended.returncode)
        error = self.assertRaises(
            exception.CephError, ceph.remove_image, image)
        self.assertTrue(ceph.is_in_use(error))
        rbd_leftovers.remove_of_instance(
            plan.instance.uuid, in_progress=False)
        self.assertNotIn(image.name, self.cluster.images('images'))
        self.assert_deletable(plan)

    def delete_disks_of_deleted(self, disk, host=None):
        uuid_ = rbd_leftovers.instance_uuid(disk)
        with mock.patch.object(
                objects.Instance, 'get_by_uuid',
                return_value=objects.Instance(
                    uuid=uuid_, host=host or CONF.host, deleted=True)):
            rbd_leftovers.delete_disks_of_deleted(uuid_)

    def test_disks_of_a_deleted_instance_are_deleted_as_nova_does(self):
        disk = ceph.image_of(self.rbd())
        other = ceph.image_of(self.rbd())
        self.cluster.create(f'{disk}.config', 4096)
        with self.cluster.image(disk) as opened:
            opened.create_snap('nova-resize')
        self.delete_disks_of_deleted(disk, host='other')
        self.assertIn(disk.name, self.cluster.images('vms'))
        self.delete_disks_of_deleted(disk)
        self.assertEqual([other.name], self.cluster.images('vms'))
        self.delete_disks_of_deleted(disk)  # there is none any more

    def test_disk_with_a_snapshot_of_somebody_else_is_reported(self):
        disk = ceph.image_of(self.rbd())
        with self.cluster.image(disk) as opened:
            opened.create_snap('of the operator')
        error = self.assertRaises(
            exception.ReleaseFailed, self.delete_disks_of_deleted, disk)
        self.assertIn(f'rbd snap ls {disk}', str(error))
        self.assertIn(disk.name, self.cluster.images('vms'))

    def test_recovery_of_a_deleted_instance_ends_when_ceph_hangs(self):
        plan = self.guest(self.rbd(), running=False)
        image = ceph.image_of(plan.disk)
        snapshot = rbd_snapshot.RbdSnapshot.allocate(
            plan.instance.uuid, image)
        with journal.new_entry(plan, 'rbd') as entry:
            entry.add(snapshot)
        self.configure('snapext', operation_timeout=5, read_timeout=2)
        remove_disk = ceph.remove_disk

        def hang(disk):
            self.cluster.suspend_osd()
            remove_disk(disk)

        deleted = objects.Instance(
            uuid=plan.instance.uuid, host=CONF.host, deleted=True)
        with mock.patch.object(objects.Instance, 'get_by_uuid',
                               return_value=deleted):
            with mock.patch.object(ceph, 'remove_disk', hang):
                self.assertRaises(exception.NotRecovered, self.recover, plan)
            self.assertEqual(1, len(journal.entries()))
            self.cluster.resume()
            self.await_calls()
            self.recover(plan)
        self.assertEqual([], journal.entries())
        self.assertNotIn(image.name, self.cluster.images('vms'))

    def test_snapshot_in_progress_outlives_what_is_older(self):
        plan = self.guest(self.rbd())
        lost = self.snapshot_of(plan)
        with journal.new_entry(plan, 'rbd') as entry:
            running = rbd_snapshot.RbdSnapshot.allocate(
                plan.instance.uuid, ceph.image_of(plan.disk))
            record = entry.add(running)
            running.open()
            running.create(60)
            rbd_leftovers.remove_of_instance(
                plan.instance.uuid, in_progress=True)
            self.assertEqual([running.spec.name],
                             self.snapshots(lost.spec.image))
            running.release()
            entry.remove(record)

    def test_journal_that_can_not_be_read_does_not_stop_a_deletion(self):
        plan = self.guest(self.rbd())
        lost = self.snapshot_of(plan)
        with mock.patch.object(
                journal, 'find_all', side_effect=exception.JournalFailed(
                    path='p', reason='r')):
            rbd_leftovers.remove_of_instance(
                plan.instance.uuid, in_progress=False)
        self.assertEqual([lost.spec.name], self.snapshots(lost.spec.image))

    def test_what_can_not_be_removed_does_not_stop_a_deletion(self):
        plan = self.guest(self.rbd())
        self.snapshot_of(plan)
        self.configure('snapext', operation_timeout=1)
        self.cluster.suspend_osd()
        rbd_leftovers.remove_of_instance(
            plan.instance.uuid, in_progress=False)
        self.cluster.resume()
        self.await_calls()
