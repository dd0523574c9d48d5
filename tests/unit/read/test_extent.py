# SPDX-License-Identifier: Apache-2.0

from oslotest import base

from nova_snapext import read


class CoalescedTest(base.BaseTestCase):

    def test_neighbours_of_one_kind_become_one_extent(self):
        self.assertEqual(
            [read.Extent(0, 3, True), read.Extent(3, 4, False),
             read.Extent(7, 1, True)],
            list(read.coalesced([
                read.Extent(0, 1, True), read.Extent(1, 2, True),
                read.Extent(3, 4, False), read.Extent(7, 1, True)])))

    def test_extents_that_do_not_touch_stay_apart(self):
        apart = [read.Extent(0, 1, True), read.Extent(2, 1, True)]
        self.assertEqual(apart, list(read.coalesced(apart)))

    def test_nothing_stays_nothing(self):
        self.assertEqual([], list(read.coalesced([])))
