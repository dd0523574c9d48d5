# SPDX-License-Identifier: Apache-2.0

from oslotest import base

from nova_snapext.read import window


class WindowTest(base.BaseTestCase):

    def sizes(self, rounds, waits, between):
        """Let rounds of reads arrive, and return the size after each."""
        tested = window.Window(4, 16)
        now, sizes = 100.0, []
        for _round in range(rounds):
            for _read in range(tested.size):
                tested.arrived(now, now + waits)
                now += waits + between
            sizes.append(tested.size)
        return sizes

    def test_waiting_for_reads_doubles_the_window_up_to_the_maximum(self):
        self.assertEqual([8, 16, 16], self.sizes(3, waits=2, between=1))

    def test_reads_that_arrive_early_leave_the_window_at_the_minimum(self):
        self.assertEqual([4, 4, 4], self.sizes(3, waits=1, between=2))

    def test_one_long_wait_among_short_ones_doubles_the_window(self):
        tested = window.Window(4, 16)
        tested.arrived(100, 104)
        for now in (105, 106, 107):
            tested.arrived(now, now)
        self.assertEqual(8, tested.size)

    def test_window_shrinks_again_when_reads_arrive_early(self):
        tested = window.Window(4, 16)
        for now in range(4):
            tested.arrived(now, now + 1)
        self.assertEqual(8, tested.size)
        for tenth in range(8):
            now = 4 + tenth / 10
            tested.arrived(now, now)
        self.assertEqual(4, tested.size)
