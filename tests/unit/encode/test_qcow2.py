# SPDX-License-Identifier: Apache-2.0

import itertools
import struct
import tracemalloc

from oslotest import base

from nova_snapext import encode
from nova_snapext.encode import clusters
from nova_snapext.encode import layout
from nova_snapext import read
from tests.unit.encode import fake_disk

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB
CLUSTER = 64 * KIB


class LayOutTest(base.BaseTestCase):

    def assert_holds(self, disk_size, l2_tables, data_clusters, **options):
        found = layout.lay_out(disk_size, l2_tables, data_clusters, **options)
        self.assertGreaterEqual(found.refcount_blocks * 32768, found.end)
        self.assertGreaterEqual(found.refcount_table_clusters * 8192,
                                found.refcount_blocks)
        # And not a cluster more.
        self.assertLess((found.refcount_blocks - 1) * 32768, found.end)
        return found

    def test_an_empty_image_has_header_refcounts_and_an_l1_table(self):
        self.assertEqual(4, self.assert_holds(1, 0, 0).end)

    def test_refcount_blocks_count_themselves(self):
        # Around the number of clusters that one block is just enough for.
        for data_clusters in range(32755, 32775):
            self.assert_holds(4 * GIB // 2, 4, data_clusters)

    def test_a_refcount_table_of_many_clusters(self):
        # 32 TiB of data: 16,388 refcount blocks, in a table of 3 clusters.
        found = self.assert_holds(32 * TIB, 65536, 65536 * 8192)
        self.assertEqual(3, found.refcount_table_clusters)

    def test_the_tables_may_lie_behind_data(self):
        found = self.assert_holds(GIB, 2, 100, refcount_table=40000)
        self.assertEqual((40000, 40001, 40002, 2, 40004, 40006, 40106), (
            found.refcount_table, found.l1_table, found.first_refcount_block,
            found.refcount_blocks, found.first_l2_table, found.first_data,
            found.end))

    def test_a_refcount_table_can_be_larger_than_needed(self):
        found = self.assert_holds(GIB, 0, 0, refcount_table_clusters=5)
        self.assertEqual(6, found.l1_table)


class Qcow2EncoderTest(base.BaseTestCase):

    def image(self, size, data):
        disk = fake_disk.FakeDisk(size, data)
        encoder = encode.Qcow2Encoder(disk, clusters.ClusterMap.of(disk))
        image = b''.join(encoder.stream())
        self.assertEqual(encoder.size, len(image))
        return image

    def test_the_header_is_as_docs_interop_qcow2_wants_it(self):
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

    def test_the_size_in_the_header_is_rounded_up_to_a_sector(self):
        # Less would be left out by QEMU.
        header = self.image(MIB + 1, [])
        self.assertEqual(MIB + 512, struct.unpack_from('>Q', header, 24)[0])

    def test_data_is_mapped_where_it_lies(self):
        image = self.image(2 * GIB, [(GIB + CLUSTER, CLUSTER)])
        l1_table = struct.unpack_from('>4Q', image, 2 * CLUSTER)
        self.assertEqual((0, 0, 1 << 63 | 4 * CLUSTER, 0), l1_table)
        l2_table = struct.unpack_from('>8192Q', image, 4 * CLUSTER)
        self.assertEqual({1: 1 << 63 | 5 * CLUSTER},
                         {index: entry for index, entry
                          in enumerate(l2_table) if entry})
        self.assertEqual(b'x' * CLUSTER, image[5 * CLUSTER:])

    def test_every_cluster_of_the_image_has_a_refcount_of_one(self):
        image = self.image(GIB, [(0, 3 * MIB)])
        refcounts = struct.unpack_from('>32768H', image, 3 * CLUSTER)
        used = len(image) // CLUSTER
        self.assertEqual((1,) * used + (0,) * (32768 - used),
                         refcounts)

    def test_the_end_of_the_disk_is_padded_to_a_cluster(self):
        image = self.image(MIB + 512, [(MIB, 512)])
        self.assertEqual(b'x' * 512 + bytes(CLUSTER - 512),
                         image[-CLUSTER:])

    def test_a_part_of_a_cluster_brings_all_of_it(self):
        image = self.image(MIB, [(CLUSTER + 4096, 512)])
        self.assertEqual(b'x' * CLUSTER, image[-CLUSTER:])

    def test_a_disk_of_another_content_than_planned_is_an_error(self):
        disk = fake_disk.FakeDisk(MIB, [(0, MIB)])
        encoder = encode.Qcow2Encoder(disk, clusters.ClusterMap.of(disk))
        disk.read = lambda runs: iter([(0, memoryview(bytes(CLUSTER)))])
        self.assertRaises(encode.EncodeError, list, encoder.stream())


class MemoryTest(base.BaseTestCase):
    """A disk may be as large as it likes: memory is for many of them."""

    def peak(self, disk):
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        encoder = encode.Qcow2Encoder(disk, clusters.ClusterMap.of(disk))
        stream = encoder.stream()
        # All refcounts, the L1 table, and more L2 tables than fit into what
        # is allowed, if they were kept. Each piece is a cluster here.
        tables = encoder.size // CLUSTER - len(encoder._map)
        for _piece in itertools.islice(stream, min(tables, 800)):
            pass
        return tracemalloc.get_traced_memory()[1]

    def test_one_gib_scattered_over_one_tib(self):
        disk = fake_disk.FakeDisk(TIB, [
            (number * 64 * MIB, CLUSTER) for number in range(16384)])
        self.assertLess(self.peak(disk), 4 * MIB)

    def test_one_tib_full_of_data(self):
        disk = fake_disk.FakeDisk(TIB, [(0, TIB)])
        self.assertLess(self.peak(disk), 4 * MIB)

    def test_one_tib_fragmented_in_the_worst_way_for_a_list_of_runs(self):
        disk = fake_disk.FakeDisk(TIB, [])
        # A fragmented 16 GiB say enough, and take less time.
        disk.extents = lambda: (
            read.Extent(number * CLUSTER, CLUSTER, True)
            for number in range(0, 1 << 18, 2))
        self.assertLess(self.peak(disk), 4 * MIB)
