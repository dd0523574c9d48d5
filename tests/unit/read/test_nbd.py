# SPDX-License-Identifier: Apache-2.0

from oslotest import base

from nova_snapext import exception
from nova_snapext import read
from nova_snapext.read import nbd
from tests.unit.read import fake_server

MIB = 1024 * 1024


class UnixUriTest(base.BaseTestCase):

    def test_what_a_uri_gives_a_meaning_to_is_escaped(self):
        self.assertEqual(
            'nbd+unix:///a%2Fb%3F%C3%A9?socket=/run/a%20b%26c%2Bd%25',
            read.unix_uri('/run/a b&c+d%', 'a/b?é'))


class IsZeroTest(base.BaseTestCase):

    def test_zeros_are_zero(self):
        self.assertTrue(read.is_zero(memoryview(bytes(65536))))

    def test_one_bit_in_the_first_middle_or_last_byte_is_not_zero(self):
        for position in (0, 32768, 65535):
            content = bytearray(65536)
            content[position] = 1
            self.assertFalse(read.is_zero(memoryview(content)))


class PiecesTest(base.BaseTestCase):

    def test_pieces_end_on_multiples_of_the_request_size(self):
        size = nbd.REQUEST_SIZE
        self.assertEqual(
            [(size - 10, 10), (size, size), (2 * size, 5),
             (4 * size, size)],
            list(nbd._pieces([(size - 10, size + 15), (4 * size, size)])))

    def test_a_run_of_nothing_gives_no_piece(self):
        self.assertEqual([], list(nbd._pieces([(5, 0)])))


class OddServerTest(base.BaseTestCase):
    """What a server may answer, and what it may not."""

    def connect(self, size, **answers):
        server = self.useFixture(fake_server.FakeServer(size, **answers))
        disk = read.Disk(read.unix_uri(server.socket, 'vda'), timeout=10)
        disk.__enter__()
        self.addCleanup(disk.__exit__)
        return disk

    def test_an_answer_for_less_than_asked_is_asked_on_from_there(self):
        disk = self.connect(
            3 * MIB, describe=lambda offset, length: [MIB, offset // MIB * 3])
        self.assertEqual([read.Extent(0, MIB, True),
                          read.Extent(MIB, 2 * MIB, False)],
                         list(disk.extents()))

    def test_an_extent_may_go_beyond_what_was_asked_for(self):
        size = 2 * nbd.STATUS_STRIDE
        disk = self.connect(size,
                            describe=lambda offset, length: [size, 3])
        self.assertEqual([read.Extent(0, size, False)],
                         list(disk.extents()))

    def test_a_hole_that_may_not_read_as_zeros_is_data(self):
        disk = self.connect(MIB, describe=lambda offset, length: [length, 1])
        self.assertEqual([read.Extent(0, MIB, True)], list(disk.extents()))

    def test_an_extent_beyond_the_end_of_the_disk_is_an_error(self):
        disk = self.connect(
            MIB, describe=lambda offset, length: [length, 0, 512, 0])
        self.assertRaisesRegex(exception.DiskReadError, '512',
                               list, disk.extents())

    def test_an_extent_of_no_length_is_an_error_and_no_endless_loop(self):
        disk = self.connect(MIB, describe=lambda offset, length: [0, 0])
        self.assertRaises(exception.DiskReadError, list, disk.extents())

    def test_an_answer_without_extents_is_an_error(self):
        disk = self.connect(MIB, describe=lambda offset, length: [])
        self.assertRaises(exception.DiskReadError, list, disk.extents())

    def test_content_shorter_than_asked_for_is_an_error(self):
        disk = self.connect(MIB, read=lambda offset, length: b'x' * 512)
        self.assertRaises(exception.DiskReadError,
                          list, disk.read([(0, MIB)]))

    def test_content_longer_than_asked_for_is_an_error(self):
        disk = self.connect(
            MIB, read=lambda offset, length: b'x' * (length + 512))
        self.assertRaises(exception.DiskReadError,
                          list, disk.read([(0, MIB)]))

    def test_whoever_keeps_an_error_does_not_keep_the_connection(self):
        server = self.useFixture(fake_server.FakeServer(
            MIB, read=lambda offset, length: b'x' * 512))
        with read.Disk(read.unix_uri(server.socket, 'vda')) as disk:
            error = self.assertRaises(exception.DiskReadError,
                                      list, disk.read([(0, MIB)]))
        server.thread.join(10)
        self.assertFalse(server.thread.is_alive(), error)

    def test_the_error_names_the_disk_and_is_no_network_error(self):
        disk = self.connect(MIB, describe=lambda offset, length: [])
        error = self.assertRaises(exception.DiskReadError,
                                  list, disk.extents())
        self.assertIn('nbd+unix:///vda', str(error))
        # Nova takes an OSError in an upload for one of Glance's.
        self.assertNotIsInstance(error, OSError)
