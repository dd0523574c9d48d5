# SPDX-License-Identifier: Apache-2.0

import unittest

from sizingmodel import simulation
from tests.unit.sizing import test_model


def run(**fields):
    done = simulation.Simulation(test_model.model(**fields))
    done.run()
    return done


def most_at_once(spans):
    """Return how many of some spans of time overlap at most."""
    # At the same moment, ends come first.
    steps = sorted([(round(begin, 6), 1) for begin, _ in spans]
                   + [(round(end, 6), -1) for _, end in spans])
    most = count = 0
    for _, change in steps:
        count += change
        most = max(most, count)
    return most


class SimulationTest(unittest.TestCase):

    def night(self, done):
        return max(one.ended_at for one in done.snapshots)

    def test_one_snapshot_of_one_host_is_as_by_formula(self):
        for merge_rate in (None, 4):
            with self.subTest(merge_rate=merge_rate):
                done = run(merge_rate=merge_rate)
                model = test_model.model(merge_rate=merge_rate)
                self.assertAlmostEqual(
                    model.snapshot_seconds(1, 1), self.night(done))
                self.assertAlmostEqual(model.host_space, done.hosts[0].space)
                self.assertEqual(10, done.peak_rate)
                self.assertEqual(1, done.peak_uploads)

    def test_equal_snapshots_at_once_are_as_by_formula(self):
        for fields in ({'host_network': 20}, {'glance_rate': 70},
                       {'host_read_rate': 15, 'sent': 0.5},
                       {'host_cores': 0.1}, {'merge_rate': 8}):
            with self.subTest(**fields):
                fields = {'hosts': 3, 'guests': 10, **fields}
                done, model = run(**fields), test_model.model(**fields)
                self.assertAlmostEqual(
                    model.night_seconds, self.night(done), places=3)
                for host in done.hosts:
                    self.assertAlmostEqual(
                        model.host_space, host.space, places=3)

    def test_night_bound_by_glance_takes_all_bytes_by_its_rate(self):
        done = run(hosts=20, guests=8, glance_rate=30, fixed=0, spread=0.5)
        self.assertAlmostEqual(
            sum(one.size for one in done.snapshots) / 30, self.night(done),
            delta=1000 / 10)
        self.assertAlmostEqual(30, done.peak_rate)

    def test_glance_receives_all_bytes(self):
        for fields in ({}, {'glance_rate': 35}, {'host_network': 17},
                       {'window': 5000}, {'merge_rate': 8, 'sent': 0.3}):
            with self.subTest(**fields):
                done = run(hosts=7, guests=9, spread=0.8, **fields)
                self.assertAlmostEqual(
                    sum(one.size for one in done.snapshots), done.received,
                    places=3)

    def test_host_runs_as_many_as_it_may_and_never_more(self):
        done = run(hosts=5, guests=30, spread=0.8, window=500, merge_rate=8)
        for host in done.hosts:
            self.assertEqual(4, most_at_once([
                (one.began_at, one.ended_at) for one in done.snapshots
                if one.host is host]))
            self.assertEqual(4, host.most_running)

    def test_peak_of_uploads_is_that_of_their_times(self):
        done = run(hosts=5, guests=30, spread=0.8, window=5000)
        self.assertEqual(done.peak_uploads, most_at_once([
            (one.began_at + 1, one.active_at) for one in done.snapshots]))

    def test_no_upload_is_faster_than_its_limits(self):
        done = run(hosts=5, guests=30, spread=0.8, window=500)
        for one in done.snapshots:
            self.assertGreaterEqual(
                one.active_at - one.began_at, 1 + one.size / 10 - 1e-6)
        self.assertLessEqual(done.peak_rate, 5 * 4 * 10)

    def test_hosts_share_glance(self):
        self.assertAlmostEqual(
            1 + 2000 / 15, self.night(run(hosts=2, glance_rate=15)))

    def test_fast_uploads_get_what_slow_ones_leave(self):
        slow, fast = simulation.Group(1), simulation.Group(50)
        slow.count, fast.count = 4, 2
        simulation.share([fast, slow], 24)
        self.assertEqual((1, 10), (slow.rate, fast.rate))

    def test_upload_that_comes_back_is_complete_when_its_rest_is(self):
        group = simulation.Group(10)
        late, early = (simulation.Snapshot(None, 0, 0) for _ in range(2))
        group.add(late, 5, 0)
        self.assertEqual(5, group.remove(late))
        group.add(early, 20, 1)
        group.add(late, 30, 2)
        self.assertIs(early, group.first())

    def test_upload_that_begins_when_another_ends_is_no_peak(self):
        done = run(hosts=2, window=200, is_even=True)
        first, second = done.snapshots
        self.assertEqual(first.active_at, second.began_at + 1)
        self.assertEqual((1, 10), (done.peak_uploads, done.peak_rate))

    def test_snapshots_of_a_host_begin_in_the_order_of_requests(self):
        done = run(guests=40, spread=0.8, window=1000)
        order = sorted(done.snapshots, key=lambda one: one.asked_at)
        begins = [one.began_at for one in order]
        self.assertEqual(sorted(begins), begins)
        self.assertTrue(all(one.began_at >= one.asked_at for one in order))

    def test_space_of_a_host_is_the_sum_of_what_runs(self):
        # 2 MiB/s each: 100 s of the first, when 2 others run for 50 s.
        done = run(guests=3, window=150, is_even=True)
        self.assertEqual([0, 50, 100], [
            one.asked_at for one in done.snapshots])
        self.assertAlmostEqual(2 * (101 + 51 + 1), done.hosts[0].space)

    def test_same_seed_gives_the_same_night_and_another_does_not(self):
        def ends(seed):
            return [one.ended_at for one in run(
                guests=9, window=900, seed=seed).snapshots]
        self.assertEqual(ends(1), ends(1))
        self.assertNotEqual(ends(1), ends(2))

    def test_percentile_is_the_value_that_a_part_does_not_exceed(self):
        values = list(range(100, 0, -1))
        self.assertEqual([50, 95, 100], [
            simulation.percentile(values, part) for part in (0.5, 0.95, 1)])
        self.assertEqual(7, simulation.percentile([7], 0.5))
