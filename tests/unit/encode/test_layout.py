# SPDX-License-Identifier: Apache-2.0

from oslotest import base

from nova_snapext.encode import layout

GIB = 1024 ** 3
TIB = 1024 * GIB


class MakeLayoutTest(base.BaseTestCase):

    def make_layout(self, disk_size, l2_tables, data_clusters, **options):
        found = layout.make_layout(disk_size, l2_tables, data_clusters,
                                   **options)
        self.assertGreaterEqual(found.refcount_blocks * 32768, found.end)
        self.assertGreaterEqual(found.refcount_table_clusters * 8192,
                                found.refcount_blocks)
        # And no surplus cluster.
        self.assertLess((found.refcount_blocks - 1) * 32768, found.end)
        return found

    def test_empty_image_has_header_refcounts_and_l1_table(self):
        self.assertEqual(4, self.make_layout(1, 0, 0).end)

    def test_refcount_blocks_include_themselves(self):
        # Around the maximum number of clusters for one block.
        for data_clusters in range(32755, 32775):
            self.make_layout(4 * GIB // 2, 4, data_clusters)

    def test_large_image_has_a_refcount_table_of_several_clusters(self):
        # 32 TiB of data: 16,388 refcount blocks, in a table of 3 clusters.
        found = self.make_layout(32 * TIB, 65536, 65536 * 8192)
        self.assertEqual(3, found.refcount_table_clusters)

    def test_tables_can_be_placed_after_data(self):
        found = self.make_layout(GIB, 2, 100, refcount_table=40000)
        self.assertEqual((40000, 40001, 40002, 2, 40004, 40006, 40106), (
            found.refcount_table, found.l1_table, found.first_refcount_block,
            found.refcount_blocks, found.first_l2_table, found.first_data,
            found.end))

    def test_refcount_table_can_be_larger_than_needed(self):
        found = self.make_layout(GIB, 0, 0, refcount_table_clusters=5)
        self.assertEqual(6, found.l1_table)
