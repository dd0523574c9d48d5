# SPDX-License-Identifier: Apache-2.0

import json
import pathlib
from unittest import mock

import fixtures

from nova_snapext import exception
from nova_snapext.hypervisor import privsep
from nova_snapext.hypervisor import qemu_img
from tests.unit import base


class QemuImgTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.access = self.useFixture(fixtures.MockPatch(
            'os.access', return_value=True)).mock
        self.privileged, self.unprivileged = mock.Mock(), mock.Mock()
        for name in ('commit_overlay', 'image_info', 'change_backing_file',
                     'change_snapshots'):
            for prefix, functions in (('', self.privileged),
                                      ('unprivileged_', self.unprivileged)):
                self.useFixture(fixtures.MockPatchObject(
                    privsep, prefix + name, getattr(functions, name)))
        for functions in (self.privileged, self.unprivileged):
            functions.image_info.return_value = '[{"filename": "/i/disk"}]'

    def run_all(self):
        qemu_img.commit('/i/overlay', base.QCOW2)
        qemu_img.backing_chain('/i/overlay', 'qcow2')
        qemu_img.change_backing_file('/i/top', 'qcow2', base.QCOW2)
        qemu_img.create_snapshot('name', '/i/disk')

    def test_own_image_needs_no_privileges(self):
        self.run_all()
        self.assertEqual([], self.privileged.mock_calls)
        self.assertEqual(4, len(self.unprivileged.mock_calls))

    def test_image_of_another_user_needs_privileges(self):
        self.access.return_value = False
        self.run_all()
        self.assertEqual([], self.unprivileged.mock_calls)
        self.assertEqual(4, len(self.privileged.mock_calls))

    def test_commit_into_disk_of_another_user_needs_privileges(self):
        self.access.side_effect = lambda path, _mode: path == '/i/overlay'
        qemu_img.commit('/i/overlay', base.QCOW2)
        self.privileged.commit_overlay.assert_called_once_with(
            '/i/overlay', '/i/disk', 'file', 'qcow2')

    def backing_file(self, **info):
        self.unprivileged.image_info.return_value = json.dumps(info)
        return qemu_img.backing_file('/i/overlay')

    def test_backing_file_without_format_is_raw(self):
        self.assertEqual(('/i/disk', 'raw'), self.backing_file(**{
            'full-backing-filename': '/i/disk'}))

    def test_overlay_without_backing_file_is_named_in_error(self):
        self.assertIn('/i/overlay', str(self.assertRaises(
            exception.UnexpectedState, self.backing_file)))

    def test_failed_create_leaves_no_overlay(self):
        directory = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self.useFixture(fixtures.MockPatch(
            'oslo_concurrency.processutils.execute',
            side_effect=OSError('no qemu-img')))
        self.assertRaises(OSError, qemu_img.create_overlay,
                          str(directory / 'overlay'), base.QCOW2, 1)
        self.assertEqual([], list(directory.iterdir()))

    def test_existing_overlay_is_left_as_it_is(self):
        directory = self.useFixture(fixtures.TempDir())
        path = pathlib.Path(directory.join('overlay'))
        path.write_text('data')
        self.assertRaises(FileExistsError, qemu_img.create_overlay,
                          str(path), base.QCOW2, 1)
        self.assertEqual('data', path.read_text())
