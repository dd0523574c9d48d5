# SPDX-License-Identifier: Apache-2.0

from oslotest import base

from nova_snapext.read import window


class WindowTest(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.tested = window.Window(4, 16, 8)

    def fill(self, size=1):
        """Request reads until no more may be in flight, and return how many.

        :param size: of each
        """
        count = 0
        while self.tested.may_request():
            self.tested.requested(size)
            count += 1
        return count

    def arrive(self, waits, at=None):
        """Let reads arrive, each after a wait.

        :param at: starts of the waits; one of each second by default
        """
        for wait, begin in zip(waits, at or range(100, 100 + len(waits)),
                               strict=True):
            self.tested.arrived(begin, begin + wait)

    def sizes(self, rounds, waits, between):
        """Let rounds of reads arrive, and return the size after each."""
        now, sizes = 100.0, []
        for _round in range(rounds):
            for _read in range(self.tested.size):
                self.fill()
                self.tested.arrived(now, now + waits)
                now += waits + between
            sizes.append(self.tested.size)
        return sizes

    def test_waiting_for_reads_doubles_the_window_up_to_the_maximum(self):
        self.assertEqual([8, 16, 16], self.sizes(3, waits=2, between=1))

    def test_reads_that_arrive_early_leave_the_window_at_the_minimum(self):
        self.assertEqual([4, 4, 4], self.sizes(3, waits=1, between=2))

    def test_one_long_wait_among_short_ones_doubles_the_window(self):
        self.fill()
        self.arrive([4, 0, 0, 0], [100, 105, 106, 107])
        self.assertEqual(8, self.tested.size)

    def test_window_shrinks_again_when_reads_arrive_early(self):
        self.fill()
        self.arrive([1] * 4, range(4))
        self.assertEqual(8, self.tested.size)
        self.fill()
        self.arrive([0] * 8, [4 + tenth / 10 for tenth in range(8)])
        self.assertEqual(4, self.tested.size)

    def test_early_reads_are_requested_again_when_half_have_arrived(self):
        self.assertEqual(4, self.fill())
        self.arrive([0])
        self.assertEqual(0, self.fill())
        self.arrive([0])
        self.assertEqual(2, self.fill())

    def test_each_late_read_is_replaced_at_once(self):
        self.fill()
        self.arrive([1] * 4)
        self.assertEqual(8, self.fill())
        self.arrive([0])
        self.assertEqual(1, self.fill())

    def test_small_reads_are_limited_in_their_number(self):
        self.assertEqual(8, self.fill(size=0.25))
        self.arrive([0] * 3)
        self.assertEqual(0, self.fill(size=0.25))
        self.arrive([0])
        self.assertEqual(4, self.fill(size=0.25))

    def test_read_longer_than_the_window_is_requested_alone(self):
        count = self.fill(size=4)
        self.assertEqual(1, count)
        self.arrive([0])
        self.assertEqual(1, self.fill(size=4))
