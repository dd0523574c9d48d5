# SPDX-License-Identifier: Apache-2.0

import random

from oslotest import base

from nova_snapext.encode import clusters


class ClusterMapTest(base.BaseTestCase):

    def runs(self, found):
        return [(table * clusters.TABLE_CLUSTERS + begin,
                 table * clusters.TABLE_CLUSTERS + end)
                for table in found.tables()
                for begin, end in found.runs(table)]

    def test_added_runs_are_returned(self):
        found = clusters.ClusterMap()
        found.add(3, 5)
        found.add(100, 101)
        self.assertEqual([(3, 5), (100, 101)], self.runs(found))
        self.assertEqual(3, len(found))

    def test_run_across_tables_is_split_between_them(self):
        found = clusters.ClusterMap()
        found.add(8000, 20000)
        self.assertEqual([(8000, 8192), (8192, 16384), (16384, 20000)],
                         self.runs(found))
        self.assertEqual([0, 1, 2], found.tables())

    def test_cluster_added_twice_counts_once(self):
        found = clusters.ClusterMap()
        found.add(5, 10)
        found.add(9, 12)
        self.assertEqual([(5, 12)], self.runs(found))
        self.assertEqual(7, len(found))

    def test_empty_run_adds_nothing(self):
        found = clusters.ClusterMap()
        found.add(5, 5)
        self.assertEqual([], found.tables())

    def test_empty_disk_has_no_tables(self):
        self.assertEqual([], clusters.ClusterMap().tables())

    def test_random_runs_equal_a_set_of_clusters(self):
        chance = random.Random(1)
        found = clusters.ClusterMap()
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

    def scattered(self):
        found = clusters.ClusterMap()
        for first, end in ((5, 10), (8190, 8195), (20000, 20001)):
            found.add(first, end)
        return found

    def test_disk_runs_are_counted_from_the_start_of_the_disk(self):
        self.assertEqual(
            [(5, 10), (8190, 8192), (8192, 8195), (20000, 20001)],
            list(self.scattered().disk_runs()))

    def test_disk_runs_can_skip_any_number_of_clusters(self):
        found = self.scattered()
        all_clusters = [cluster for begin, end in found.disk_runs()
                        for cluster in range(begin, end)]
        for skip in range(13):
            self.assertEqual(
                all_clusters[skip:],
                [cluster for begin, end in found.disk_runs(skip)
                 for cluster in range(begin, end)])

    def test_every_nth_cluster_is_counted_across_runs(self):
        found = self.scattered()
        all_clusters = [cluster for begin, end in found.disk_runs()
                        for cluster in range(begin, end)]
        for step in range(1, 14):
            self.assertEqual(
                [(cluster, cluster + 1) for cluster in all_clusters[::step]],
                list(found.every(step)))

    def test_byte_ranges_end_with_the_disk(self):
        self.assertEqual(
            [(0, 65536), (131072, 65536 + 512)],
            list(clusters.byte_ranges([(0, 1), (2, 4)], 3 * 65536 + 512)))
