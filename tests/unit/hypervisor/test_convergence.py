# SPDX-License-Identifier: Apache-2.0

import itertools

from oslo_utils import units
from oslotest import base

from nova_snapext.hypervisor import convergence
from nova_snapext.hypervisor import write_limit

# Bytes a second that the disk takes.
SPEED = 10 * units.Mi


class ConvergenceTest(base.BaseTestCase):

    def overtaken_at(self, writes, size=units.Gi, limited=False):
        """Follow a commit until the guest has overtaken it.

        :param writes: bytes of the guest in each second
        :returns: that second; None if the commit comes to its end
        """
        self.watched = convergence.Convergence(limited)
        copied, total, written = 0, size, 0
        for second, wrote in enumerate(writes):
            copied = min(total, copied + SPEED)
            if copied == total:
                return None
            total += wrote
            written += wrote
            self.watched.add(convergence.Sample(
                second, copied, total, written, written // 4096))
            if self.watched.is_overtaken:
                return second
        raise AssertionError('neither overtaken nor at its end')

    def test_commit_that_gains_is_never_overtaken(self):
        for part in (0, 0.3, 0.6, 0.85):
            self.assertIsNone(self.overtaken_at(
                itertools.repeat(int(SPEED * part), 10000),
                size=10 * units.Gi))

    def test_commit_of_cycles_of_write_back_gains(self):
        cycle = [0] * 25 + [4 * SPEED] * 5
        for shift in range(30):
            self.assertIsNone(self.overtaken_at(
                itertools.islice(itertools.cycle(cycle), shift, 4000)))

    def test_commit_survives_a_short_burst_of_writes(self):
        for length in (5, 20, 35):
            self.assertIsNone(self.overtaken_at(
                [0] * 10 + [5 * SPEED] * length + [0] * 10000))

    def test_guest_that_writes_as_fast_as_the_disk_overtakes(self):
        for part in (0.95, 1, 1.01, 3):
            self.assertEqual(convergence.PATIENCE, self.overtaken_at(
                itertools.repeat(int(SPEED * part), 1000)))

    def test_guest_that_overtakes_in_bursts_is_seen(self):
        for cycle in ([SPEED * 5] * 10 + [0] * 20,
                      [SPEED * 5] * 40 + [0] * 80):
            self.assertIsNotNone(self.overtaken_at(
                itertools.islice(itertools.cycle(cycle), 1000)))

    def test_guest_that_begins_late_is_seen(self):
        at = self.overtaken_at([0] * 50 + [2 * SPEED] * 1000)
        self.assertTrue(100 < at < 130, at)

    def test_limited_guest_is_seen_sooner(self):
        self.assertEqual(convergence.WINDOW, self.overtaken_at(
            itertools.repeat(2 * SPEED, 1000), limited=True))

    def test_search_for_data_is_no_copying(self):
        watched = convergence.Convergence(False)
        for second in range(200):
            watched.add(convergence.Sample(second, 0, second and units.Gi,
                                           0, 0))
        for second in range(200, 300):
            watched.add(convergence.Sample(
                second, (second - 199) * SPEED, units.Gi, 0, 0))
            self.assertFalse(watched.is_overtaken)

    def test_stopped_commit_of_an_idle_guest_is_not_overtaken(self):
        watched = convergence.Convergence(False)
        for second in range(200):
            watched.add(convergence.Sample(second, SPEED, units.Gi, 0, 0))
            self.assertFalse(watched.is_overtaken)

    def test_new_rate_is_half_of_what_the_commit_copies_at_most(self):
        self.overtaken_at(itertools.repeat(4 * SPEED, 1000))
        self.assertEqual(
            write_limit.WriteRate(SPEED // 2, SPEED // 2 // 4096),
            self.watched.lower_rate())

    def test_new_rate_considers_that_small_writes_are_copied_as_large(self):
        watched = convergence.Convergence(True)
        for second in range(convergence.WINDOW + 1):
            # 16 bytes are copied for each one that the guest writes.
            watched.add(convergence.Sample(
                second, (second + 1) * SPEED, units.Gi + second * 4 * SPEED,
                second * SPEED // 4, second * 640))
        self.assertEqual(write_limit.WriteRate(SPEED // 32, 80),
                         watched.lower_rate())
