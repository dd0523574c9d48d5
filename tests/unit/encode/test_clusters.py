# SPDX-License-Identifier: Apache-2.0

import random

from oslotest import base

from nova_snapext.encode import clusters


class ClusterMapTest(base.BaseTestCase):

    def runs(self, found):
        return [(table * clusters.TABLE_CLUSTERS + begin,
                 table * clusters.TABLE_CLUSTERS + end)
                for table in found.tables() if table is not None
                for begin, end in found.runs(table)]

    def test_what_was_added_is_found_again(self):
        found = clusters.ClusterMap(20000)
        found.add(3, 5)
        found.add(100, 101)
        self.assertEqual([(3, 5), (100, 101)], self.runs(found))
        self.assertEqual(3, len(found))

    def test_a_run_across_tables_is_cut_between_them(self):
        found = clusters.ClusterMap(30000)
        found.add(8000, 20000)
        self.assertEqual([(8000, 8192), (8192, 16384), (16384, 20000)],
                         self.runs(found))
        self.assertEqual([0, 1, 2, None], list(found.tables()))

    def test_what_is_added_twice_counts_once(self):
        found = clusters.ClusterMap(100)
        found.add(5, 10)
        found.add(9, 12)
        self.assertEqual([(5, 12)], self.runs(found))
        self.assertEqual(7, len(found))

    def test_an_empty_run_adds_nothing(self):
        found = clusters.ClusterMap(100)
        found.add(5, 5)
        self.assertEqual([None], list(found.tables()))

    def test_a_disk_of_nothing_has_no_tables(self):
        self.assertEqual([], list(clusters.ClusterMap(0).tables()))

    def test_random_runs_equal_a_plain_set(self):
        chance = random.Random(1)
        found = clusters.ClusterMap(50000)
        expected = set()
        for _run in range(300):
            first = chance.randrange(49000)
            end = first + chance.randrange(1000)
            found.add(first, end)
            expected.update(range(first, end))
        self.assertEqual(sorted(expected),
                         [cluster for begin, end in self.runs(found)
                          for cluster in range(begin, end)])
        self.assertEqual(len(expected), len(found))
