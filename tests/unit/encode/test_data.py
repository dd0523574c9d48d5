# SPDX-License-Identifier: Apache-2.0

from oslotest import base

from nova_snapext import encode
from nova_snapext import read
from tests.unit.encode import fake_disk

KIB = 1024


class ZeroDisk(fake_disk.FakeDisk):
    """Has data, and holds zeros all over but for one byte."""

    def content(self, offset, length):
        content = bytearray(length)
        if offset <= 200 * KIB < offset + length:
            content[200 * KIB - offset] = 1
        return memoryview(content)


class FindDataTest(base.BaseTestCase):

    def test_allocated_gives_what_the_server_calls_data_and_reads_nothing(
            self):
        disk = fake_disk.FakeDisk(1024 * KIB, [(0, 64 * KIB),
                                               (512 * KIB, 4 * KIB)])
        disk.read = None
        self.assertEqual([read.Extent(0, 64 * KIB, True),
                          read.Extent(512 * KIB, 4 * KIB, True)],
                         list(encode.allocated(disk)))

    def test_nonzero_leaves_out_clusters_of_zeros(self):
        disk = ZeroDisk(1024 * KIB, [(0, 1024 * KIB)])
        self.assertEqual([read.Extent(192 * KIB, 64 * KIB, True)],
                         list(encode.nonzero(disk)))

    def test_nonzero_copes_with_extents_that_begin_within_a_cluster(self):
        disk = ZeroDisk(1024 * KIB, [(196 * KIB, 8 * KIB),
                                     (300 * KIB, 512)])
        self.assertEqual([read.Extent(196 * KIB, 8 * KIB, True)],
                         list(encode.nonzero(disk)))

    def test_nonzero_looks_at_clusters_and_not_at_parts_of_extents(self):
        disk = ZeroDisk(1024 * KIB, [(196 * KIB, 300 * KIB)])
        self.assertEqual([read.Extent(196 * KIB, 60 * KIB, True)],
                         list(encode.nonzero(disk)))

    def test_nonzero_joins_neighbours(self):
        disk = fake_disk.FakeDisk(1024 * KIB, [(0, 1000 * KIB)])
        self.assertEqual([read.Extent(0, 1000 * KIB, True)],
                         list(encode.nonzero(disk)))

    def test_sampled_reads_all_only_of_what_has_zeros(self):
        size = 64 * 1024 * KIB
        zeros = ZeroDisk(size, [(0, size)])
        self.assertEqual([read.Extent(192 * KIB, 64 * KIB, True)],
                         list(encode.sampled(zeros)))
        full = fake_disk.FakeDisk(size, [(0, size)])
        self.assertEqual([read.Extent(0, size, True)],
                         list(encode.sampled(full)))

    def test_sampled_finds_nothing_on_an_empty_disk(self):
        self.assertEqual(
            [], list(encode.sampled(fake_disk.FakeDisk(1024 * KIB, []))))

    def test_a_sample_is_a_hundredth_and_spread_over_all(self):
        clusters_read = []
        size = 4 << 30

        class Noted(fake_disk.FakeDisk):
            def read(self, runs):
                for offset, length in runs:
                    clusters_read.append(offset // (64 * KIB))
                    yield offset, memoryview(b'x' * length)

        list(encode.sampled(Noted(size, [(0, size)])))
        self.assertEqual(list(range(0, size // (64 * KIB), 128)),
                         clusters_read)
