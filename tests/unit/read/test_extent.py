# SPDX-License-Identifier: Apache-2.0

import tracemalloc

from oslotest import base

from nova_snapext import read
from nova_snapext.read import extent


class CoalescedTest(base.BaseTestCase):

    def test_adjacent_extents_of_one_kind_become_one_extent(self):
        self.assertEqual(
            [read.Extent(0, 3, True), read.Extent(3, 4, False),
             read.Extent(7, 1, True)],
            list(extent.coalesced([
                read.Extent(0, 1, True), read.Extent(1, 2, True),
                read.Extent(3, 4, False), read.Extent(7, 1, True)])))

    def test_extents_with_a_gap_are_not_joined(self):
        apart = [read.Extent(0, 1, True), read.Extent(2, 1, True)]
        self.assertEqual(apart, list(extent.coalesced(apart)))

    def test_no_extents_give_no_extents(self):
        self.assertEqual([], list(extent.coalesced([])))


class ExtentMapTest(base.BaseTestCase):

    def test_map_has_the_extents_joined_and_can_be_read_again(self):
        found = read.ExtentMap(
            [read.Extent(0, 2, False), read.Extent(2, 2, True),
             read.Extent(4, 4, True), read.Extent(8, 1, False)])
        self.assertEqual(9, found.end)
        for _ in range(2):
            self.assertEqual(
                [read.Extent(0, 2, False), read.Extent(2, 6, True),
                 read.Extent(8, 1, False)], list(found))

    def test_map_of_an_empty_disk_is_empty(self):
        self.assertEqual([], list(read.ExtentMap([])))

    def test_gap_or_overlap_is_an_error(self):
        for second in (read.Extent(5, 3, True), read.Extent(3, 5, True)):
            self.assertRaises(ValueError, read.ExtentMap,
                              [read.Extent(0, 4, True), second])
        self.assertRaises(ValueError, read.ExtentMap,
                          [read.Extent(1, 7, True)])

    def test_many_extents_take_some_bytes_each(self):
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        found = read.ExtentMap(
            read.Extent(number, 1, bool(number % 2))
            for number in range(50_000))
        sum(part.length for part in found)
        self.assertLess(tracemalloc.get_traced_memory()[1], 16 * 50_000)
