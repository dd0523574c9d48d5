# SPDX-License-Identifier: Apache-2.0

import os

from oslotest import base

from nova_snapext.encode import allocator

CLUSTER = 64 * 1024
PLAIN = bytes(CLUSTER)
COPIED, COMPRESSED = 1 << 63, 1 << 62


def descriptor(entry):
    """Return offset and number of sectors of a compressed cluster."""
    assert entry & COMPRESSED and not entry & COPIED
    return entry & (1 << 54) - 1, (entry >> 54 & 0xff) + 1


class ClusterAllocatorTest(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.allocator = allocator.ClusterAllocator()

    def image(self, *clusters):
        """Add clusters, and return the image."""
        chunks = []
        for cluster in clusters:
            chunks += self.allocator.add(cluster)
        chunks += self.allocator.flush()
        image = b''.join(chunks)
        self.assertEqual(len(image), CLUSTER * len(self.allocator.refcounts))
        return image

    def test_compressed_clusters_are_placed_without_gaps(self):
        image = self.image(b'a' * 1000, b'b' * 24, b'c' * 512)
        self.assertEqual(b'a' * 1000 + b'b' * 24 + b'c' * 512, image[:1536])
        self.assertEqual([(0, 2), (1000, 1), (1024, 1)], [
            descriptor(entry) for entry in self.allocator.entries])
        self.assertEqual([3], list(self.allocator.refcounts))

    def test_compressed_cluster_across_a_boundary_has_two_refcounts(self):
        self.image(b'a' * 60000, b'b' * 10000, b'c')
        self.assertEqual([2, 2], list(self.allocator.refcounts))

    def test_uncompressed_clusters_are_aligned_and_precede_the_batch(self):
        image = self.image(b'a' * 1000, PLAIN, b'b' * 1000)
        self.assertEqual(PLAIN + b'a' * 1000 + b'b' * 1000,
                         image[:CLUSTER + 2000])
        self.assertEqual(
            [(CLUSTER, 2), COPIED, (CLUSTER + 1000, 3)],
            [entry if entry & COPIED else descriptor(entry)
             for entry in self.allocator.entries])
        self.assertEqual([1, 2], list(self.allocator.refcounts))

    def test_clusters_of_zeros_take_no_space(self):
        self.assertEqual(b'', self.image(None, None))
        self.assertEqual([0, 0], list(self.allocator.entries))

    def test_alternating_clusters_waste_less_than_2_percent(self):
        clusters = [PLAIN, os.urandom(20000)] * 200
        image = self.image(*clusters)
        self.assertLess(len(image), 1.02 * sum(map(len, clusters)))

    def test_end_after_a_cluster_is_that_after_adding_it(self):
        for cluster in (b'a' * 60000, b'b' * 5000, None, PLAIN,
                        b'c' * 65000, *[b'd' * 60000] * 40, PLAIN):
            end = self.allocator.end_after(cluster)
            self.allocator.add(cluster)
            self.assertEqual(end, self.allocator.end_after(None))
        self.allocator.flush()
        self.assertEqual(end, len(self.allocator.refcounts))

    def test_entries_are_final_up_to_the_first_of_the_batch(self):
        for cluster, final in ((PLAIN, 1), (b'a', 1), (PLAIN, 1),
                               (None, 1)):
            self.allocator.add(cluster)
            self.assertEqual(final, self.allocator.final_entries)
        self.allocator.flush()
        self.assertEqual(4, self.allocator.final_entries)
