# SPDX-License-Identifier: Apache-2.0

from oslotest import base

from nova_snapext import read


class CoalescedTest(base.BaseTestCase):

    def test_adjacent_extents_of_one_kind_become_one_extent(self):
        self.assertEqual(
            [read.Extent(0, 3, True), read.Extent(3, 4, False),
             read.Extent(7, 1, True)],
            list(read.coalesced([
                read.Extent(0, 1, True), read.Extent(1, 2, True),
                read.Extent(3, 4, False), read.Extent(7, 1, True)])))

    def test_extents_with_a_gap_are_not_joined(self):
        apart = [read.Extent(0, 1, True), read.Extent(2, 1, True)]
        self.assertEqual(apart, list(read.coalesced(apart)))

    def test_no_extents_give_no_extents(self):
        self.assertEqual([], list(read.coalesced([])))
