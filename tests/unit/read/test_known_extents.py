# SPDX-License-Identifier: Apache-2.0

from unittest import mock

from nova_snapext import encode
from nova_snapext import exception
from nova_snapext import read
from tests.unit import base


class KnownExtentsTest(base.TestCase):
    """Extents that the storage knows better than the server."""

    def extents(self, known, size=8):
        disk = read.Disk('nbd://', known_extents=lambda: (
            None if known is None else read.ExtentMap(known)))
        disk.size = size
        return list(disk.extents())

    def test_known_extents_replace_those_of_the_server(self):
        self.assertEqual(
            [read.Extent(0, 2, True), read.Extent(2, 6, False)],
            self.extents([read.Extent(0, 2, True), read.Extent(2, 4, False),
                          read.Extent(6, 2, False)]))

    def test_storage_that_does_not_tell_leaves_it_to_the_server(self):
        self.assertEqual([read.Extent(0, 8, True)], self.extents(None))

    def test_extents_of_another_size_leave_it_to_the_server(self):
        # QEMU rounds the size of an odd image up.
        for known in ([read.Extent(0, 4, True)], [read.Extent(0, 9, True)],
                      []):
            self.assertEqual([read.Extent(0, 8, True)], self.extents(known))

    def test_storage_is_asked_once_and_before_the_first_byte_of_an_image(self):
        ask = mock.Mock(return_value=read.ExtentMap(
            [read.Extent(0, 8, False)]))
        disk = read.Disk('nbd://', known_extents=ask)
        disk.size = 8
        for _ in range(2):
            with encode.RawEncoder(disk) as encoder:
                ask.assert_called_once_with()
                self.assertEqual([bytes(8)], list(encoder.stream()))
        ask.assert_called_once_with()


class LostDiskTest(base.TestCase):
    """A disk that the storage has lost, though the server reads zeros."""

    def test_disk_of_which_nothing_is_known_is_frozen(self):
        read.Disk('nbd://').check_frozen()

    def test_reason_of_the_storage_is_an_error(self):
        self.assertIn('somebody', str(self.assertRaises(
            exception.DiskReadError, read.Disk(
                'nbd://', lost_reason=lambda: 'somebody').check_frozen)))
