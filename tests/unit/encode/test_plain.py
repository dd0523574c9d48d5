# SPDX-License-Identifier: Apache-2.0

import itertools
import struct
import tracemalloc

from oslotest import base

from nova_snapext import encode
from nova_snapext import read
from tests.unit.encode import fake_disk
from tests.unit.encode import images

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB
CLUSTER = 64 * KIB


class PlainQcow2ImageTest(base.BaseTestCase):

    def image(self, size, data):
        disk = fake_disk.FakeDisk(size, data)
        encoder = images.plain_encoder(disk)
        image = b''.join(encoder.stream())
        self.assertEqual(encoder.size, len(image))
        return image

    def test_header_follows_docs_interop_qcow2(self):
        header = self.image(3 * GIB, [(0, 1)])[:112]
        self.assertEqual(b'QFI\xfb', header[:4])
        (version, backing_file_offset, backing_file_size, cluster_bits, size,
         crypt_method, l1_size, l1_table_offset, refcount_table_offset,
         refcount_table_clusters, nb_snapshots, snapshots_offset,
         incompatible, compatible, autoclear, refcount_order, header_length,
         extension) = struct.unpack('>IQIIQIIQQIIQQQQIIQ', header[4:])
        self.assertEqual((3, 0, 0, 16, 3 * GIB, 0, 6),
                         (version, backing_file_offset, backing_file_size,
                          cluster_bits, size, crypt_method, l1_size))
        self.assertEqual((2 * CLUSTER, CLUSTER, 1),
                         (l1_table_offset, refcount_table_offset,
                          refcount_table_clusters))
        self.assertEqual(0, nb_snapshots + snapshots_offset)
        self.assertEqual(0, incompatible + compatible + autoclear)
        self.assertEqual((4, 104), (refcount_order, header_length))
        self.assertEqual(0, extension)

    def test_size_in_the_header_is_rounded_up_to_a_sector(self):
        # QEMU would ignore a partial sector.
        header = self.image(MIB + 1, [])
        self.assertEqual(MIB + 512, struct.unpack_from('>Q', header, 24)[0])

    def test_l2_table_maps_data_at_its_offset(self):
        image = self.image(2 * GIB, [(GIB + CLUSTER, CLUSTER)])
        l1_table = struct.unpack_from('>4Q', image, 2 * CLUSTER)
        self.assertEqual((0, 0, 1 << 63 | 4 * CLUSTER, 0), l1_table)
        l2_table = struct.unpack_from('>8192Q', image, 4 * CLUSTER)
        self.assertEqual({1: 1 << 63 | 5 * CLUSTER},
                         {index: entry for index, entry
                          in enumerate(l2_table) if entry})
        self.assertEqual(b'x' * CLUSTER, image[5 * CLUSTER:])

    def test_refcount_of_each_cluster_is_one(self):
        image = self.image(GIB, [(0, 3 * MIB)])
        refcounts = struct.unpack_from('>32768H', image, 3 * CLUSTER)
        used = len(image) // CLUSTER
        self.assertEqual((1,) * used + (0,) * (32768 - used),
                         refcounts)

    def test_end_of_the_disk_is_padded_to_a_cluster(self):
        image = self.image(MIB + 512, [(MIB, 512)])
        self.assertEqual(b'x' * 512 + bytes(CLUSTER - 512),
                         image[-CLUSTER:])

    def test_data_in_part_of_a_cluster_adds_the_whole_cluster(self):
        image = self.image(MIB, [(CLUSTER + 4096, 512)])
        self.assertEqual(b'x' * CLUSTER, image[-CLUSTER:])

    def test_disk_that_returns_less_data_than_mapped_fails(self):
        disk = fake_disk.FakeDisk(MIB, [(0, MIB)])
        encoder = images.plain_encoder(disk)
        disk.read = lambda runs: iter([(0, memoryview(bytes(CLUSTER)))])
        self.assertRaises(encode.EncodeError, list, encoder.stream())


class MemoryTest(base.BaseTestCase):
    """A disk of any size takes little memory."""

    def peak(self, disk):
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        encoder = images.plain_encoder(disk)
        stream = encoder.stream()
        # All refcounts, the L1 table, and more L2 tables than would fit into
        # the limit if they were kept. Each chunk is a cluster here.
        tables = encoder.size // CLUSTER - len(encoder._image._map)
        for _chunk in itertools.islice(stream, min(tables, 800)):
            pass
        return tracemalloc.get_traced_memory()[1]

    def test_one_gib_scattered_over_one_tib_takes_less_than_4_mib(self):
        disk = fake_disk.FakeDisk(TIB, [
            (number * 64 * MIB, CLUSTER) for number in range(16384)])
        self.assertLess(self.peak(disk), 4 * MIB)

    def test_one_tib_full_of_data_takes_less_than_4_mib(self):
        disk = fake_disk.FakeDisk(TIB, [(0, TIB)])
        self.assertLess(self.peak(disk), 4 * MIB)

    def test_one_tib_fragmented_in_the_worst_way_takes_less_than_4_mib(self):
        disk = fake_disk.FakeDisk(TIB, [])
        # 16 GiB with every other cluster are enough, and take less time.
        disk.extents = lambda: (
            read.Extent(number * CLUSTER, CLUSTER, True)
            for number in range(0, 1 << 18, 2))
        self.assertLess(self.peak(disk), 4 * MIB)
