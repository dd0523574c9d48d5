# SPDX-License-Identifier: Apache-2.0

import os

from oslotest import base

from nova_snapext.encode import packing

CLUSTER = 64 * 1024
PLAIN = bytes(CLUSTER)
COPIED, COMPRESSED = 1 << 63, 1 << 62


def described(entry):
    """Give offset and number of sectors of a compressed cluster."""
    assert entry & COMPRESSED and not entry & COPIED
    return entry & (1 << 54) - 1, (entry >> 54 & 0xff) + 1


class PackerTest(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.packer = packing.Packer()

    def packed(self, *clusters):
        """Pack clusters, and give the image."""
        pieces = []
        for cluster in clusters:
            pieces += self.packer.add(cluster)
        pieces += self.packer.flush()
        image = b''.join(pieces)
        self.assertEqual(len(image), CLUSTER * len(self.packer.refcounts))
        return image

    def test_compressed_clusters_lie_one_behind_the_other(self):
        image = self.packed(b'a' * 1000, b'b' * 24, b'c' * 512)
        self.assertEqual(b'a' * 1000 + b'b' * 24 + b'c' * 512, image[:1536])
        self.assertEqual([(0, 2), (1000, 1), (1024, 1)],
                         [described(entry) for entry in self.packer.entries])
        self.assertEqual([3], list(self.packer.refcounts))

    def test_one_that_lies_in_two_clusters_counts_in_both(self):
        self.packed(b'a' * 60000, b'b' * 10000, b'c')
        self.assertEqual([2, 2], list(self.packer.refcounts))

    def test_plain_clusters_begin_with_one_of_the_image_and_go_first(self):
        image = self.packed(b'a' * 1000, PLAIN, b'b' * 1000)
        self.assertEqual(PLAIN + b'a' * 1000 + b'b' * 1000,
                         image[:CLUSTER + 2000])
        self.assertEqual(
            [(CLUSTER, 2), COPIED, (CLUSTER + 1000, 3)],
            [entry if entry & COPIED else described(entry)
             for entry in self.packer.entries])
        self.assertEqual([1, 2], list(self.packer.refcounts))

    def test_zeros_are_not_in_the_image(self):
        self.assertEqual(b'', self.packed(None, None))
        self.assertEqual([0, 0], list(self.packer.entries))

    def test_alternating_clusters_hardly_take_more_than_they_are(self):
        clusters = [PLAIN, os.urandom(20000)] * 200
        image = self.packed(*clusters)
        self.assertLess(len(image), 1.02 * sum(map(len, clusters)))

    def test_the_end_with_one_more_is_told_before_it_is_added(self):
        for cluster in (b'a' * 60000, b'b' * 5000, None, PLAIN,
                        b'c' * 65000, *[b'd' * 60000] * 40, PLAIN):
            end = self.packer.end_with(cluster)
            self.packer.add(cluster)
            self.assertEqual(end, self.packer.end_with(None))
        self.packer.flush()
        self.assertEqual(end, len(self.packer.refcounts))

    def test_entries_are_settled_up_to_the_first_that_waits_for_its_place(
            self):
        for cluster, settled in ((PLAIN, 1), (b'a', 1), (PLAIN, 1),
                                 (None, 1)):
            self.packer.add(cluster)
            self.assertEqual(settled, self.packer.settled)
        self.packer.flush()
        self.assertEqual(4, self.packer.settled)
