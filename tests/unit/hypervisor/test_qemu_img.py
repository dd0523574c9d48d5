# SPDX-License-Identifier: Apache-2.0

import pathlib
from unittest import mock

import fixtures
from oslo_concurrency import processutils

from nova_snapext import exception
from nova_snapext.hypervisor import image_header
from nova_snapext.hypervisor import ownership
from nova_snapext.hypervisor import qemu_img
from tests.unit import base

HEADER = image_header.Header(
    backing_file='/i/disk', backing_format='qcow2', features=0,
    data_file=None, snapshots=0, snapshots_offset=0)
NO_BACKING = image_header.Header(
    backing_file=None, backing_format=None, features=0, data_file=None,
    snapshots=0, snapshots_offset=0)


class QemuImgTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.calls = mock.Mock()
        self.calls.lent.side_effect = lambda *_args: mock.MagicMock()
        self.calls.read.side_effect = lambda path: (
            NO_BACKING if path == '/i/disk' else HEADER)
        for owner, name in ((ownership, 'lent'),
                            (image_header.Header, 'read'),
                            (processutils, 'execute')):
            self.useFixture(fixtures.MockPatchObject(
                owner, name, getattr(self.calls, name)))
        self.calls.execute.return_value = '{"virtual-size": 1}', ''

    def order(self):
        return [name for name, _args, _kwargs in self.calls.mock_calls]

    def test_headers_are_checked_before_and_after_the_owner_is_changed(self):
        qemu_img.commit('/i/overlay', base.QCOW2)
        checked = ['read', 'read']
        self.assertEqual(
            [*checked, 'lent', 'lent', *checked, 'execute'], self.order())
        self.calls.reset_mock()
        qemu_img.create_snapshot('name', '/i/disk')
        self.assertEqual(['read', 'lent', 'read', 'execute'], self.order())

    def test_commit_names_the_whole_chain_and_its_end(self):
        qemu_img.commit('/i/overlay', base.QCOW2)
        self.calls.execute.assert_called_once_with(
            'qemu-img', 'commit', '-q',
            'json:{"driver": "qcow2", "file": {"driver": "file", '
            '"filename": "/i/overlay"}, "backing": {"driver": "qcow2", '
            '"file": {"driver": "file", "filename": "/i/disk"}, '
            '"backing": null}}')

    def test_snapshot_is_changed_without_the_backing_file(self):
        qemu_img.delete_snapshot('name', '/i/disk')
        self.calls.execute.assert_called_once_with(
            'qemu-img', 'snapshot', '-d', 'name',
            'json:{"driver": "qcow2", "file": {"driver": "file", '
            '"filename": "/i/disk"}, "backing": null}')

    def test_only_the_exit_code_of_a_difference_is_no_error(self):
        for code in (1, 2, -11):
            self.calls.execute.side_effect = [
                ('{"virtual-size": 1}', ''), ('{"virtual-size": 1}', ''),
                processutils.ProcessExecutionError(exit_code=code)]
            if code == 1:
                self.assertFalse(
                    qemu_img.holds_same_data('/i/overlay', base.QCOW2))
            else:
                self.assertRaises(
                    processutils.ProcessExecutionError,
                    qemu_img.holds_same_data, '/i/overlay', base.QCOW2)

    def test_backing_file_without_format_is_raw(self):
        self.calls.read.side_effect = None
        self.calls.read.return_value = image_header.Header(
            backing_file='/i/disk', backing_format=None, features=0,
            data_file=None, snapshots=0, snapshots_offset=0)
        self.assertEqual(('/i/disk', 'raw'),
                         qemu_img.backing_file('/i/overlay'))

    def test_overlay_without_backing_file_is_named_in_error(self):
        self.assertIn('/i/disk', str(self.assertRaises(
            exception.UnexpectedState, qemu_img.backing_file, '/i/disk')))

    def test_failed_create_leaves_no_overlay(self):
        directory = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self.calls.execute.side_effect = OSError('no qemu-img')
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
