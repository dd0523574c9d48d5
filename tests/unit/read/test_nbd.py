# SPDX-License-Identifier: Apache-2.0

import nbd as libnbd
from oslotest import base

from nova_snapext import exception
from nova_snapext import read
from nova_snapext.read import nbd
from tests.unit.read import fake_server

MIB = 1024 * 1024


class UnixUriTest(base.BaseTestCase):

    def test_reserved_characters_are_escaped(self):
        self.assertEqual(
            'nbd+unix:///a%2Fb%3F%C3%A9?socket=/run/a%20b%26c%2Bd%25',
            read.unix_uri('/run/a b&c+d%', 'a/b?é'))

    def test_socket_and_export_are_found_in_a_uri(self):
        for found in (('/run/a b&c+d%=,', 'a/b?é%41'), ('/run/nbd', '')):
            self.assertEqual(found, read.unix_export(read.unix_uri(*found)))

    def test_uri_of_another_transport_names_no_socket(self):
        for uri in ('nbd://host:10809/vda', 'nbds://host/vda?socket=/run/nbd',
                    'nbd+unix:///vda'):
            self.assertIsNone(read.unix_export(uri))


class IsZeroTest(base.BaseTestCase):

    def test_buffer_of_zeros_is_zero(self):
        self.assertTrue(read.is_zero(memoryview(bytes(65536))))

    def test_buffer_with_one_bit_set_is_not_zero(self):
        for position in (0, 32768, 65535):
            content = bytearray(65536)
            content[position] = 1
            self.assertFalse(read.is_zero(memoryview(content)))


class SplitTest(base.BaseTestCase):

    def test_range_is_split_at_multiples_of_the_request_size(self):
        size = nbd.REQUEST_SIZE
        self.assertEqual(
            [(size - 10, 10), (size, size), (2 * size, 5),
             (4 * size, size)],
            list(nbd._split([(size - 10, size + 15), (4 * size, size)])))

    def test_empty_range_gives_no_chunk(self):
        self.assertEqual([], list(nbd._split([(5, 0)])))


class UnusualReplyTest(base.BaseTestCase):
    """Replies that a server may send, and replies that it may not."""

    def connect(self, size, **replies):
        server = self.useFixture(fake_server.FakeServer(size, **replies))
        disk = read.Disk(read.unix_uri(server.socket, 'vda'), timeout=10)
        disk.__enter__()
        self.addCleanup(disk.__exit__)
        return disk

    def test_server_that_ends_after_the_last_read_is_no_error(self):
        server = self.useFixture(fake_server.FakeServer(MIB))
        disk = read.Disk(read.unix_uri(server.socket, 'vda'), timeout=10)

        def fail():
            raise libnbd.Error('the server has ended', 0)

        with disk:
            disk._handle.aio_disconnect = fail
        self.assertFalse(hasattr(disk, '_handle'))

    def test_short_reply_is_continued_by_another_request(self):
        disk = self.connect(
            3 * MIB, extents=lambda offset, length: [MIB, offset // MIB * 3])
        self.assertEqual([read.Extent(0, MIB, True),
                          read.Extent(MIB, 2 * MIB, False)],
                         list(disk.extents()))

    def test_extent_beyond_the_requested_range_is_accepted(self):
        size = 2 * nbd.STATUS_STRIDE
        disk = self.connect(size,
                            extents=lambda offset, length: [size, 3])
        self.assertEqual([read.Extent(0, size, False)],
                         list(disk.extents()))

    def test_hole_without_the_zero_flag_is_data(self):
        disk = self.connect(MIB, extents=lambda offset, length: [length, 1])
        self.assertEqual([read.Extent(0, MIB, True)], list(disk.extents()))

    def test_extent_beyond_the_end_of_the_disk_fails(self):
        disk = self.connect(
            MIB, extents=lambda offset, length: [length, 0, 512, 0])
        self.assertRaisesRegex(exception.DiskReadError, '512',
                               list, disk.extents())

    def test_empty_extent_fails_and_does_not_loop(self):
        disk = self.connect(MIB, extents=lambda offset, length: [0, 0])
        self.assertRaises(exception.DiskReadError, list, disk.extents())

    def test_reply_without_extents_fails(self):
        disk = self.connect(MIB, extents=lambda offset, length: [])
        self.assertRaises(exception.DiskReadError, list, disk.extents())

    def test_content_shorter_than_requested_fails(self):
        disk = self.connect(MIB, read=lambda offset, length: b'x' * 512)
        self.assertRaises(exception.DiskReadError,
                          list, disk.read([(0, MIB)]))

    def test_content_longer_than_requested_fails(self):
        disk = self.connect(
            MIB, read=lambda offset, length: b'x' * (length + 512))
        self.assertRaises(exception.DiskReadError,
                          list, disk.read([(0, MIB)]))

    def test_error_that_is_kept_does_not_keep_the_connection(self):
        server = self.useFixture(fake_server.FakeServer(
            MIB, read=lambda offset, length: b'x' * 512))
        with read.Disk(read.unix_uri(server.socket, 'vda')) as disk:
            error = self.assertRaises(exception.DiskReadError,
                                      list, disk.read([(0, MIB)]))
        server.thread.join(10)
        self.assertFalse(server.thread.is_alive(), error)

    def test_error_names_the_disk_and_is_not_an_os_error(self):
        disk = self.connect(MIB, extents=lambda offset, length: [])
        error = self.assertRaises(exception.DiskReadError,
                                  list, disk.extents())
        self.assertIn('nbd+unix:///vda', str(error))
        # Nova takes an OSError during an upload for a network error.
        self.assertNotIsInstance(error, OSError)
