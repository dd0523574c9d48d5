# SPDX-License-Identifier: Apache-2.0

import contextlib
import os
import pathlib
from unittest import mock

import fixtures
from nova import exception as nova_exception
from nova.virt.libvirt import imagebackend
from oslo_concurrency import processutils

from nova_snapext import exception
from nova_snapext.hypervisor import qemu_img
from nova_snapext import plan as planning
from nova_snapext.resources import fence
from nova_snapext.resources import overlay_files
from tests.unit import base

MergeState = overlay_files.MergeState

NOVAS = '{"/i/disk": "qcow2"}\n'


class FilesTestCase(base.TestCase):

    def setUp(self):
        super().setUp()
        self.directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path) / 'instance'
        self.directory.mkdir()
        self.path = self.directory / 'disk.snapext'
        self.info = self.directory / 'disk.info'
        self.files = overlay_files.OverlayFiles(str(self.path))
        self.disk = planning.RootDisk('vda', 'file', '/i/disk', 'qcow2')
        self.create_overlay = self.useFixture(fixtures.MockPatchObject(
            qemu_img, 'create_overlay')).mock
        self.create_overlay.side_effect = lambda path, _disk, size: (
            pathlib.Path(path).write_text('qcow2'))

    def names(self):
        return set(os.listdir(self.directory))


class StateTest(FilesTestCase):

    def test_created_overlay_is_outstanding(self):
        self.files.create(self.disk, 1)
        self.assertIs(MergeState.OUTSTANDING, self.files.state)
        self.assertTrue(self.files.exist())

    def test_overlay_without_marker_is_pivoting(self):
        self.files.create(self.disk, 1)
        self.files.unmark()
        self.assertIs(MergeState.PIVOTING, self.files.state)
        self.files.mark_unmerged()
        self.assertIs(MergeState.OUTSTANDING, self.files.state)

    def test_empty_or_missing_overlay_is_lost_with_and_merged_without_marker(
            self):
        for marked, state in ((True, MergeState.LOST),
                              (False, MergeState.MERGED)):
            self.files.create(self.disk, 1)
            if not marked:
                self.files.unmark()
            for what, change in (
                    ('is empty', lambda: self.path.write_text('')),
                    ('is missing', self.path.unlink)):
                change()
                self.assertIs(state, self.files.state)
                self.assertIn(what, str(self.files.lost()))

    def test_overlay_in_directory_out_of_reach_has_no_state(self):
        self.directory.rmdir()
        error = self.assertRaises(exception.UnexpectedState,
                                  lambda: self.files.state)
        self.assertIn(str(self.path), str(error))
        self.assertIn('mount', str(error))


class CreateTest(FilesTestCase):

    def test_foreign_overlay_is_not_changed(self):
        self.path.write_text('foreign')
        self.assertRaises(FileExistsError, self.files.create, self.disk, 1)
        self.assertEqual({'disk.snapext'}, self.names())
        self.assertEqual('foreign', self.path.read_text())

    def test_half_an_overlay_of_an_interrupted_creation_is_replaced(self):
        (self.directory / 'disk.snapext.new').write_text('half')
        self.files.create(self.disk, 1)
        self.assertEqual('qcow2', self.path.read_text())
        self.assertEqual(
            {'disk.snapext', 'disk.snapext.unmerged', 'disk.snapext.base',
             'disk.info'},
            self.names())

    def test_description_says_what_disk_is_below(self):
        self.assertIsNone(self.files.base())
        self.files.create(self.disk, 1)
        self.assertEqual(self.disk, self.files.base())
        for text in ('{', '[]', '{"surprise": 1}'):
            (self.directory / 'disk.snapext.base').write_text(text)
            self.assertRaises(exception.UnexpectedState, self.files.base)

    def test_overlay_that_can_not_be_created_leaves_nothing(self):
        self.create_overlay.side_effect = (
            processutils.ProcessExecutionError())
        self.assertRaises(processutils.ProcessExecutionError,
                          self.files.create, self.disk, 1)
        self.assertEqual(set(), self.names())

    def test_overlay_is_synced_before_it_gets_its_name(self):
        synced = []

        def fsync(descriptor):
            synced.append((os.readlink(f'/proc/self/fd/{descriptor}'),
                           self.path.exists()))

        with mock.patch.object(os, 'fsync', fsync):
            self.files.create(self.disk, 1)
        self.assertIn((f'{self.path}.new', False), synced)
        self.assertEqual((str(self.directory), True), synced[-1])


class RemoveTest(FilesTestCase):

    def test_each_removal_is_synced(self):
        for method in (self.files.unmark, self.files.remove_overlay,
                       self.files.remove_fence):
            self.files.create(self.disk, 1)
            with mock.patch.object(os, 'fsync') as fsync:
                method()
            fsync.assert_called()
            self.files.remove_overlay()

    def test_nothing_is_left(self):
        self.info.write_text(NOVAS)
        self.files.create(self.disk, 1)
        self.files.remove_overlay()
        self.assertTrue(self.files.exist())
        self.files.remove_fence()
        self.assertFalse(self.files.exist())
        self.assertEqual({'disk.info'}, self.names())

    def test_removal_is_no_error_if_nova_has_deleted_the_instance(self):
        self.directory.rmdir()
        self.files.remove_overlay()
        self.files.remove_fence()
        self.assertFalse(self.files.exist())

    def test_space_is_freed_after_the_overlay_is_removed(self):
        self.files.create(self.disk, 1)
        with mock.patch.object(os, 'close', wraps=os.close) as close:
            with self.files.space_kept():
                self.files.remove_overlay()
                self.assertFalse(self.path.exists())
                closed = close.call_count
            self.assertEqual(closed + 1, close.call_count)

    def test_overlay_that_can_not_be_read_can_be_removed(self):
        with mock.patch.object(os, 'open', side_effect=PermissionError), \
                self.files.space_kept():
            pass

    def test_overlay_whose_marker_can_not_be_removed_stays(self):
        self.files.create(self.disk, 1)
        with mock.patch.object(os, 'unlink', side_effect=OSError('EROFS')):
            self.assertRaises(OSError, self.files.remove_overlay)
        self.assertIs(MergeState.OUTSTANDING, self.files.state)

    def test_overlay_is_never_seen_without_data_beside_its_marker(self):
        states = []

        def step(function):
            def wrapped(*args, **kwargs):
                states.append(self.files.state)
                result = function(*args, **kwargs)
                states.append(self.files.state)
                return result
            return wrapped

        with contextlib.ExitStack() as stack:
            for name in ('open', 'link', 'unlink', 'replace', 'fsync'):
                stack.enter_context(mock.patch.object(
                    os, name, step(getattr(os, name))))
            self.files.create(self.disk, 1)
            self.files.remove_overlay()
            self.files.remove_fence()
        self.assertEqual(
            {MergeState.MERGED, MergeState.PIVOTING, MergeState.OUTSTANDING},
            set(states))

    def test_removal_of_the_marker_is_durable_before_the_overlay_goes(self):
        self.files.create(self.disk, 1)
        synced = []
        with mock.patch.object(os, 'fsync', lambda _descriptor: synced.append(
                self.files.state)):
            self.files.remove_overlay()
        self.assertEqual([MergeState.PIVOTING, MergeState.MERGED], synced)


class FenceTest(FilesTestCase):

    def setUp(self):
        super().setUp()
        self.fence = fence.Fence(str(self.path))

        self.useFixture(fixtures.MockPatchObject(
            imagebackend.images, 'qemu_img_info')
        ).mock.return_value.file_format = 'qcow2'

    def novas_image(self):
        """Do what any driver of Nova does before it defines a guest."""
        disk = self.directory / 'disk'
        disk.touch()
        return imagebackend.Flat(
            mock.Mock(uuid='u'), 'disk', path=str(disk)).driver_format

    def test_nova_builds_no_guest_behind_the_fence_and_says_why(self):
        for content in (NOVAS, None):
            if content is not None:
                self.info.write_text(content)
            self.fence.create()
            error = self.assertRaises(nova_exception.InvalidDiskInfo,
                                      self.novas_image)
            self.assertIn('nova-snapext drain', str(error))
            self.fence.remove()
            self.assertEqual('qcow2', self.novas_image())

    def test_novas_file_is_put_back(self):
        self.info.write_text(NOVAS)
        self.fence.create()
        self.fence.create()
        self.assertTrue(self.fence.exists())
        self.fence.remove()
        self.fence.remove()
        self.assertFalse(self.fence.exists())
        self.assertEqual(NOVAS, self.info.read_text())
        self.assertEqual({'disk.info'}, self.names())

    def test_fence_that_can_not_be_written_leaves_novas_file(self):
        self.info.write_text(NOVAS)
        with mock.patch.object(os, 'fsync', side_effect=OSError('ENOSPC')):
            self.assertRaises(OSError, self.fence.create)
        self.fence.remove()
        self.assertEqual({'disk.info'}, self.names())
        self.assertEqual(NOVAS, self.info.read_text())

    def test_fence_without_file_of_nova_leaves_none(self):
        self.fence.create()
        self.fence.remove()
        self.assertEqual(set(), self.names())

    def test_creation_after_an_interrupted_one_keeps_novas_latest_file(self):
        (self.directory / 'disk.info.snapext').write_text('older')
        self.info.write_text(NOVAS)
        self.fence.create()
        self.fence.remove()
        self.assertEqual(NOVAS, self.info.read_text())

    def test_interrupted_creation_leaves_novas_file_alone(self):
        self.info.write_text(NOVAS)
        os.link(self.info, self.directory / 'disk.info.snapext')
        self.fence.remove()
        self.assertEqual(NOVAS, self.info.read_text())
        self.assertEqual({'disk.info'}, self.names())

    def test_fence_is_one_line_that_is_not_json(self):
        self.fence.create()
        [line] = self.info.read_text().splitlines()
        self.assertTrue(line.startswith('nova-snapext: '))
