# SPDX-License-Identifier: Apache-2.0

import os
import random

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
        self.assertEqual(len(image), CLUSTER * self.allocator.end)
        self.assertEqual(self.allocator.end, len(self.refcounts()))
        return image

    def entries(self, first=0):
        return list(self.allocator.entries(first))

    def refcounts(self):
        return list(self.allocator.refcounts())

    def test_compressed_clusters_are_placed_without_gaps(self):
        image = self.image(b'a' * 1000, b'b' * 24, b'c' * 512)
        self.assertEqual(b'a' * 1000 + b'b' * 24 + b'c' * 512, image[:1536])
        self.assertEqual([(0, 2), (1000, 1), (1024, 1)], [
            descriptor(entry) for entry in self.entries()])
        self.assertEqual([3], self.refcounts())

    def test_compressed_cluster_across_a_boundary_has_two_refcounts(self):
        self.image(b'a' * 60000, b'b' * 10000, b'c')
        self.assertEqual([2, 2], self.refcounts())

    def test_uncompressed_clusters_are_aligned_and_precede_the_batch(self):
        image = self.image(b'a' * 1000, PLAIN, b'b' * 1000)
        self.assertEqual(PLAIN + b'a' * 1000 + b'b' * 1000,
                         image[:CLUSTER + 2000])
        self.assertEqual(
            [(CLUSTER, 2), COPIED, (CLUSTER + 1000, 3)],
            [entry if entry & COPIED else descriptor(entry)
             for entry in self.entries()])
        self.assertEqual([1, 2], self.refcounts())

    def test_clusters_of_zeros_take_no_space(self):
        self.assertEqual(b'', self.image(None, None))
        self.assertEqual([0, 0], self.entries())

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
        self.assertEqual(end, self.allocator.end)

    def test_each_entry_leads_to_its_cluster_in_the_image(self):
        chance = random.Random(1)
        clusters = [chance.choice((
            None, os.urandom(CLUSTER), os.urandom(CLUSTER * 3),
            os.urandom(chance.randrange(1, 61000)))) for _ in range(500)]
        image = self.image(*clusters)
        refcounts = [0] * self.allocator.end
        entries = iter(self.entries(5))
        for cluster in clusters:
            if cluster is None:
                self.assertEqual(0, next(entries))
                continue
            for begin in range(0, len(cluster), CLUSTER):
                part = cluster[begin:begin + CLUSTER]
                entry = next(entries)
                offset = (entry - COPIED if entry & COPIED else
                          descriptor(entry)[0]) - 5 * CLUSTER
                self.assertEqual(part, image[offset:offset + len(part)])
                for number in range(offset // CLUSTER, (
                        offset + len(part) - 1) // CLUSTER + 1):
                    refcounts[number] += 1
        self.assertEqual([], list(entries))
        self.assertEqual(refcounts, self.refcounts())

    def test_clusters_are_placed_the_same_without_keeping_their_sizes(self):
        clusters = [PLAIN, b'a' * 60000, None, b'b' * 50000] * 20
        image = self.image(*clusters)
        other = allocator.ClusterAllocator()
        chunks = [chunk for cluster in clusters
                  for chunk in other.place(cluster)]
        self.assertEqual(image, b''.join(chunks + other.flush()))
        self.assertEqual(0, len(other.sizes))
