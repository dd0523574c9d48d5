# SPDX-License-Identifier: Apache-2.0
"""Headers that QEMU would not write.

Those that it writes are in tests/functional/hypervisor/test_image_header.py.
"""

import os
import pathlib
import struct
from unittest import mock

import fixtures

from nova_snapext import exception
from nova_snapext.hypervisor import image_header
from nova_snapext.hypervisor import privsep
from tests.unit import base

BACKING = b'/i/base'


def head(version=3, name_offset=112, name=BACKING, length=104, snapshots=0,
         snapshots_offset=512):
    """Return the header of a qcow2, with the name of its backing file."""
    data = bytearray(1024)
    image_header.BEGIN.pack_into(
        data, 0, privsep.QCOW2_MAGIC, version, name_offset, len(name))
    image_header.SNAPSHOTS.pack_into(
        data, image_header.SNAPSHOTS_OFFSET, snapshots, snapshots_offset)
    if version > 2:
        image_header.LENGTH.pack_into(
            data, image_header.LENGTH_OFFSET, length)
    data[112:112 + len(name)] = name
    return bytes(data)


class ImageHeaderTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.path = pathlib.Path(
            self.useFixture(fixtures.TempDir()).join('disk'))

    def read(self, data):
        self.path.write_bytes(data)
        return image_header.Header.read(str(self.path))

    def refused(self, data):
        self.assertIn(str(self.path), str(self.assertRaises(
            exception.UnexpectedHeader, self.read, data)))

    def test_backing_file_is_read(self):
        self.assertEqual('/i/base', self.read(head()).backing_file)
        self.assertIsNone(self.read(head(name_offset=0)).backing_file)

    def test_what_is_no_qcow2_is_refused(self):
        for data in (b'', bytes(1024), b'QFI', privsep.QCOW2_MAGIC,
                     head()[:100], head(version=1), head(version=4)):
            with self.subTest(data[:8]):
                self.refused(data)

    def test_name_that_does_not_end_in_the_head_is_refused(self):
        for offset in (1 << 63, image_header.HEAD_SIZE, 1020):
            self.refused(head(name_offset=offset))

    def test_name_that_qemu_would_cut_is_refused(self):
        self.refused(head(name=b'/i/base\0/etc/shadow'))

    def test_extensions_that_do_not_end_are_no_error(self):
        for length in (104, 1 << 31, 1020):
            data = bytearray(head(length=length))
            struct.pack_into('>II', data, 104, image_header.BACKING_FORMAT,
                             1 << 31)
            self.read(bytes(data))

    def test_last_format_of_the_backing_file_counts_as_in_qemu(self):
        data = bytearray(head(name_offset=512))
        data[104:136] = b''.join(
            struct.pack('>II8s', image_header.BACKING_FORMAT, 3, name)
            for name in (b'raw', b'vdi'))
        data[512:512 + len(BACKING)] = BACKING
        self.assertEqual('vdi', self.read(bytes(data)).backing_format)

    def test_version_2_has_no_features(self):
        data = bytearray(head(version=2))
        data[72:80] = b'\xff' * 8
        self.read(bytes(data)).check('/i/disk')

    def test_table_of_snapshots_that_does_not_end_is_refused(self):
        for offset in (1 << 62, 512, 1020):
            self.path.write_bytes(head(
                snapshots=1 << 31, snapshots_offset=offset))
            self.assertRaises(exception.UnexpectedHeader,
                              image_header.snapshot_names, str(self.path))

    def test_pipe_is_not_waited_for(self):
        os.mkfifo(self.path)
        self.assertRaises(exception.UnexpectedHeader,
                          image_header.Header.read, str(self.path))

    def test_only_an_unreadable_file_needs_privileges(self):
        privileged = self.useFixture(fixtures.MockPatchObject(
            privsep, 'read_qcow2', return_value=head())).mock
        self.read(head())
        privileged.assert_not_called()
        self.useFixture(fixtures.MockPatchObject(
            privsep, 'unprivileged_read_qcow2',
            side_effect=PermissionError()))
        self.assertEqual('/i/base', image_header.Header.read(
            '/i/disk').backing_file)
        privileged.assert_called_once_with(
            '/i/disk', 0, image_header.HEAD_SIZE)

    def test_missing_file_is_no_unexpected_header(self):
        self.assertRaises(FileNotFoundError, image_header.Header.read,
                          str(self.path))

    def test_block_device_below_is_a_block_device_for_qemu(self):
        self.path.write_bytes(head())
        self.useFixture(fixtures.MockPatch(
            'pathlib.Path.is_block_device', return_value=True))
        disk = mock.Mock(path=str(self.path), format='qcow2', storage='file')
        self.useFixture(fixtures.MockPatchObject(
            image_header, '_probe', return_value='raw'))
        self.assertEqual(
            ('/i/base', 'raw', 'block'),
            image_header.checked_chain(disk, ['/i/base'])[1])
