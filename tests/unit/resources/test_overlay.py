# SPDX-License-Identifier: Apache-2.0

import os
import pathlib
from unittest import mock

import fixtures

from nova_snapext import exception
from nova_snapext.hypervisor import domain
from nova_snapext.hypervisor import qemu_img
from nova_snapext import plan as planning
from nova_snapext.resources import overlay
from nova_snapext.resources import overlay_files
from tests.unit import base


class OverlayTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.instances = self.useFixture(fixtures.TempDir()).path
        self.flags(instances_path=self.instances)
        self.target = self.plan()
        self.guest = self.target.guest
        self.driver = mock.MagicMock()
        self.overlay = overlay.Overlay(self.driver._host, self.target)
        os.mkdir(os.path.dirname(self.overlay.path))
        self.backing_file = self.patch(qemu_img, 'backing_file')
        self.find_guest = self.patch(domain, 'find')

    def patch(self, target, name):
        return self.useFixture(fixtures.MockPatchObject(target, name)).mock

    def restore(self, **changes):
        return overlay.Overlay.restore(
            self.driver, self.target, self.overlay.record() | changes)

    def test_restored_overlay_has_the_same_record(self):
        record = self.overlay.record() | {
            'base_chain': ['/i/disk', '/i/base'],
            'qemu': 'boot 7 [1.0]', 'may_resume': True, 'owner_label': {},
            'write_limit': {'original': {'write_bytes_sec': 9}, 'limits': [
                {'write_bytes_sec': 5}], 'paused': True}}
        self.assertEqual(record, self.restore(**record).record())

    def test_record_with_other_path_is_refused(self):
        error = self.assertRaises(exception.JournalRecordError, self.restore,
                                  path='/elsewhere/disk.snapext')
        self.assertIn('/elsewhere/disk.snapext', str(error))
        self.assertIn(self.overlay.path, str(error))

    def test_overlay_blocks_start_and_moves_with_its_disk(self):
        self.assertTrue(overlay.Overlay.blocks_start)
        self.assertTrue(overlay.Overlay.moves_with_disk)

    def test_existing_file_is_refused_and_never_merged(self):
        pathlib.Path(self.overlay.path).write_text('earlier')
        self.guest.disk_size.return_value = 1
        error = self.assertRaises(exception.UnexpectedState,
                                  self.overlay.create, self.guest)
        self.assertIn(self.overlay.path, str(error))
        self.assertIn('qemu-img map', str(error))
        self.overlay.release()
        self.driver._host.get_guest.assert_not_called()
        self.assertEqual('earlier',
                         pathlib.Path(self.overlay.path).read_text())

    def find(self, backing_file, guest=None):
        self.backing_file.return_value = (backing_file, 'raw')
        self.find_guest.return_value = guest
        return overlay.Overlay.find(self.driver, self.target.instance)

    def test_instance_without_overlay_has_none_to_be_found(self):
        self.assertIsNone(self.find('/i/disk'))

    def test_what_is_left_of_a_merged_overlay_is_removed(self):
        files = overlay_files.OverlayFiles(self.overlay.path)
        self.patch(qemu_img, 'create_overlay').side_effect = (
            lambda path, _disk, _size: pathlib.Path(path).touch())
        files.create(self.target.disk, 1)
        files.unmark()
        directory = os.path.dirname(self.overlay.path)
        os.unlink(os.path.join(directory, 'disk.snapext.base'))
        self.assertIsNone(self.find('/i/disk'))
        self.assertEqual([], os.listdir(directory))

    def test_overlay_that_is_lost_with_its_description_is_an_error(self):
        marker = pathlib.Path(f'{self.overlay.path}.unmerged')
        marker.touch()
        error = self.assertRaises(exception.UnexpectedState, self.find,
                                  '/i/disk')
        self.assertIn(f'{self.overlay.path} is missing', str(error))
        self.assertTrue(marker.exists())

    def test_description_is_believed_and_not_the_header(self):
        self.patch(qemu_img, 'create_overlay').side_effect = (
            lambda path, _disk, _size: pathlib.Path(path).write_text('qcow2'))
        overlay_files.OverlayFiles(self.overlay.path).create(
            self.target.disk, 1)
        self.assertEqual(self.target.disk, self.find('/elsewhere/disk')._disk)

    def test_overlay_over_disk_of_the_instance_is_found(self):
        pathlib.Path(self.overlay.path).write_text('qcow2')
        directory = os.path.dirname(self.overlay.path)
        for base_path in (f'{directory}/disk',
                          f'/dev/vg/{self.target.instance.uuid}_disk'):
            found = self.find(base_path)
            self.assertEqual(
                f'the overlay {self.overlay.path} over {base_path}',
                str(found))

    def test_found_overlay_has_the_target_of_the_guest_s_root_disk(self):
        pathlib.Path(self.overlay.path).write_text('qcow2')
        self.patch(planning, 'find_root_disk').return_value = (
            planning.RootDisk('sda', 'file', self.overlay.path, 'qcow2'))
        disk = f'{os.path.dirname(self.overlay.path)}/disk'
        self.assertEqual(planning.RootDisk('sda', 'file', disk, 'raw'),
                         self.find(disk, self.guest)._disk)

    def test_overlay_over_foreign_disk_is_an_error(self):
        pathlib.Path(self.overlay.path).write_text('qcow2')
        error = self.assertRaises(exception.UnexpectedState, self.find,
                                  '/elsewhere/disk')
        for part in (self.overlay.path, '/elsewhere/disk', 'move it away'):
            self.assertIn(part, str(error))
