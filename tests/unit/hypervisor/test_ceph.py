# SPDX-License-Identifier: Apache-2.0

import dataclasses
import errno
import os
from unittest import mock

import fixtures
from nova.storage import rbd_utils

from nova_snapext import cancel
from nova_snapext import compat
from nova_snapext import exception
from nova_snapext.hypervisor import ceph
from tests.unit import base

DISK = dataclasses.replace(base.QCOW2, storage='network', format='raw',
                           path='rbd:vms/uuid_disk')


class Rbd:
    """The errors of librbd's and librados' bindings."""

    class Error(Exception):
        pass

    class PermissionError(Error):
        errno = errno.EPERM


class ImageTest(base.TestCase):

    def test_image_is_named_by_libvirts_source(self):
        self.assertEqual(ceph.ImageSpec('vms', 'uuid_disk'),
                         ceph.image_of(DISK))

    def test_other_storage_is_no_image(self):
        for changes in ({'storage': 'file'}, {'path': 'iscsi:vms/disk'},
                        {'path': 'rbd:disk'}, {'path': 'rbd:vms/space/disk'}):
            self.assertIsNone(
                ceph.image_of(dataclasses.replace(DISK, **changes)))

    def test_names_are_those_of_the_rbd_command(self):
        self.assertEqual('vms/disk@name', str(ceph.SnapSpec(
            ceph.ImageSpec('vms', 'disk'), 'name')))


class CallTest(base.TestCase):

    def setUp(self):
        super().setUp()
        for module in ('rbd', 'rados'):
            self.useFixture(fixtures.MockPatchObject(
                rbd_utils, module, Rbd))

    def test_result_is_that_of_the_function(self):
        self.assertEqual(3, ceph.call('add', lambda: 1 + 2))

    def test_call_that_does_not_end_is_left_alone(self):
        ended = cancel.native_threading().Event()
        self.addCleanup(ended.set)
        call = ceph.Call('open vms/disk', ended.wait)
        error = self.assertRaises(exception.CephTimeout, call.result, 0.01)
        self.assertIn('open vms/disk', str(error))
        ended.set()
        self.assertTrue(call.wait(60))

    def test_nothing_is_removed_before_its_creation_has_ended(self):
        self.flags(operation_timeout=1, group='snapext')
        spec = ceph.SnapSpec(ceph.ImageSpec('vms', 'disk'), 'name')
        ended = cancel.native_threading().Event()
        self.addCleanup(ended.set)
        call = ceph.Call('create', ended.wait, changes=spec)
        with mock.patch.object(ceph.Call, 'wait', return_value=False), \
                mock.patch.object(ceph, '_remove_snapshot') as remove:
            self.assertRaises(
                exception.CephTimeout, ceph.remove_snapshot, spec)
        remove.assert_not_called()
        ended.set()
        call.wait(60)
        with mock.patch.object(ceph, '_remove_snapshot') as remove:
            ceph.remove_snapshot(spec)
        remove.assert_called_once_with(spec)

    def test_call_that_no_thread_can_make_creates_nothing(self):
        spec = ceph.SnapSpec(ceph.ImageSpec('vms', 'disk'), 'name')
        thread = cancel.native_threading().Thread
        with mock.patch.object(thread, 'start', side_effect=RuntimeError(
                "can't start new thread")):
            error = self.assertRaises(
                exception.CephError, ceph.Call, 'create', lambda: None,
                changes=spec)
        self.assertIn("can't start", str(error))
        with mock.patch.object(ceph, '_remove_snapshot') as remove:
            ceph.remove_snapshot(spec)  # does not wait for it
        remove.assert_called_once_with(spec)

    def test_error_of_ceph_says_what_failed(self):
        def fail():
            raise Rbd.PermissionError('no')

        error = self.assertRaises(
            exception.CephError, ceph.call, 'clone a to b', fail)
        self.assertIn('clone a to b', str(error))
        self.assertTrue(ceph.is_forbidden(error))

    def test_image_that_can_not_be_opened_is_known_before_the_freeze(self):
        creation = ceph.SnapshotCreation(
            ceph.SnapSpec(ceph.ImageSpec('vms', 'disk'), 'name'))
        with mock.patch.object(ceph, 'opened', side_effect=Rbd.Error('no')):
            self.assertRaises(exception.CephError, creation.open)
        self.assertRaises(RuntimeError, creation.create, 1)

    def test_error_of_a_defect_of_the_binding_says_what_failed(self):
        # Such as IndexError, for a number that the binding has no name for.
        for error in (IndexError(), IndexError('out of range')):
            def fail(error=error):
                raise error

            failed = self.assertRaises(
                exception.CephError, ceph.call, 'list a', fail)
            self.assertIn('list a', str(failed))
            self.assertIn(str(error) or 'IndexError', str(failed))
            self.assertIs(error, failed.__cause__)

    def test_error_of_ours_is_not_changed(self):
        error = exception.CephError(action='remove', reason='it has clones')

        def fail():
            raise error

        self.assertIs(error, self.assertRaises(
            exception.CephError, ceph.call, 'list a', fail))

    def test_missing_binding_is_known(self):
        self.assertTrue(ceph.is_installed())
        with mock.patch.object(rbd_utils, 'rbd', None):
            self.assertFalse(ceph.is_installed())


class LongCallTest(base.TestCase):
    """Calls whose duration depends on the size of the image."""

    def setUp(self):
        super().setUp()
        self.flags(read_timeout=1, operation_timeout=1, group='snapext')
        for module in ('rbd', 'rados'):
            self.useFixture(fixtures.MockPatchObject(
                rbd_utils, module, Rbd))

    def test_removal_lasts_as_long_as_it_makes_progress(self):
        next_report = cancel.native_threading().Event()

        def delete(_image, _image_id, on_progress):
            for done in range(4):
                next_report.wait(0.8)
                self.assertEqual(0, on_progress(done, 4))

        with mock.patch.object(ceph, '_delete_image', delete):
            ceph.remove_image(ceph.ImageSpec('images', 'id'))

    def diff_iterate(self, _offset, size, _from, on_part, **_kwargs):
        next_part = cancel.native_threading().Event()
        for offset in range(4):
            next_part.wait(0.8)
            on_part(offset, 1, offset != 2)

    def allocated(self, diff_iterate, *args):
        volume = mock.MagicMock(diff_iterate=diff_iterate)
        volume.size.return_value = 4
        with mock.patch.object(ceph, 'opened') as opened:
            opened.return_value.__enter__.return_value = volume
            opened.return_value.__exit__.return_value = None
            size, parts = ceph.allocated(ceph.SnapSpec(
                ceph.ImageSpec('vms', 'disk'), 'name'), *args)
            return size, list(parts)

    def test_list_of_what_is_allocated_may_take_long(self):
        self.assertEqual((4, [(0, 2), (3, 1)]), self.allocated(
            self.diff_iterate, cancel.CancelToken()))

    def test_list_of_what_is_allocated_is_in_order(self):
        def find_parts(_offset, _size, _from, on_part, **_kwargs):
            for offset, length in ((2, 1), (0, 1), (1, 4)):
                on_part(offset, length, True)

        self.assertEqual((4, [(0, 5), (2, 1)]), self.allocated(
            find_parts, cancel.CancelToken()))

    def test_list_of_what_is_allocated_ends_in_time_or_if_cancelled(self):
        cancelled = cancel.CancelToken()
        cancelled.cancel(ZeroDivisionError())
        for error, token, timeout in (
                (exception.CephTimeout, cancel.CancelToken(), 1),
                (ZeroDivisionError, cancelled, None)):
            ended = cancel.native_threading().Event()
            next_part = cancel.native_threading().Event()

            def find_parts(_offset, _size, _from, on_part, ended=ended,
                           next_part=next_part, **_kwargs):
                # It finds parts until librbd is told to end.
                while on_part(0, 1, True) >= 0:
                    next_part.wait(0.01)
                ended.set()

            self.assertRaises(
                error, self.allocated, find_parts, token, timeout)
            self.assertTrue(ended.wait(60))

    def test_second_removal_waits_for_one_that_makes_no_progress(self):
        image = ceph.ImageSpec('images', 'id')
        ended = cancel.native_threading().Event()
        self.addCleanup(ended.set)
        with mock.patch.object(ceph, '_delete_image',
                               side_effect=lambda *_args: ended.wait()
                               ) as delete:
            error = self.assertRaises(
                exception.CephTimeout, ceph.remove_image, image)
            self.assertIn('remove the image images/id', str(error))
            error = self.assertRaises(
                exception.CephTimeout, ceph.remove_image, image)
            self.assertIn('earlier', str(error))
            delete.assert_called_once()
            running = ceph._CHANGING[image]
            ended.set()
            self.assertTrue(running.wait(60))
            ceph.remove_image(image)


class GreenThreadTest(CallTest):
    """Under eventlet, a call in the thread that has all green threads."""

    def setUp(self):
        super().setUp()
        self.useFixture(fixtures.MockPatchObject(
            compat, 'concurrency_mode_threading', return_value=False))
        self.useFixture(fixtures.MockPatchObject(
            cancel.threading, 'get_native_id', return_value=os.getpid()))
        # When Ceph hangs, Nova's calls may have all threads of the pool.
        self.useFixture(fixtures.MockPatchObject(
            compat, 'tpool_wrap', side_effect=AssertionError))

    def test_snapshot_that_is_not_created_in_time_lets_the_caller_go_on(self):
        creation = ceph.SnapshotCreation(
            ceph.SnapSpec(ceph.ImageSpec('vms', 'disk'), 'name'))
        ended = cancel.native_threading().Event()
        self.addCleanup(ended.set)
        volume = mock.MagicMock()
        volume.create_snap.side_effect = lambda _name: ended.wait()
        with mock.patch.object(ceph, 'opened') as opened:
            opened.return_value.__enter__.return_value = volume
            opened.return_value.__exit__.return_value = None
            creation.open()
            self.assertRaises(exception.CephTimeout, creation.create, 0.05)


class OptionsTest(base.TestCase):

    SPEC = ceph.SnapSpec(ceph.ImageSpec('vms', 'disk'), 'name')

    def setUp(self):
        super().setUp()
        self.useFixture(fixtures.MockPatchObject(
            rbd_utils.RBDDriver, '_check_for_import_failure'))

    def test_user_and_configuration_are_novas(self):
        self.flags(rbd_user='nova', images_rbd_ceph_conf='/etc/ceph/a.conf',
                   group='libvirt')
        self.assertEqual(
            {'driver': 'rbd', 'pool': 'vms', 'image': 'disk',
             'snapshot': 'name', 'user': 'nova',
             'conf': '/etc/ceph/a.conf'}, ceph.qemu_options(self.SPEC))

    def test_defaults_of_ceph_are_not_named(self):
        self.assertEqual({'driver', 'pool', 'image', 'snapshot'},
                         set(ceph.qemu_options(self.SPEC)))
