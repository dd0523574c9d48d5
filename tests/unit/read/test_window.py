# SPDX-License-Identifier: Apache-2.0

from oslotest import base

from nova_snapext.read import window


class WindowTest(base.BaseTestCase):

    def sizes(self, windowfuls, waits, between):
        """Let windowfuls of reads arrive, and give the size after each."""
        tested = window.Window(4, 16)
        now, sizes = 100.0, []
        for _windowful in range(windowfuls):
            for _read in range(tested.size):
                tested.arrived(now, now + waits)
                now += waits + between
            sizes.append(tested.size)
        return sizes

    def test_reads_that_are_waited_for_become_more(self):
        self.assertEqual([8, 16, 16], self.sizes(3, waits=2, between=1))

    def test_reads_that_are_there_already_stay_few(self):
        self.assertEqual([4, 4, 4], self.sizes(3, waits=1, between=2))

    def test_one_long_wait_in_a_windowful_counts(self):
        tested = window.Window(4, 16)
        tested.arrived(100, 104)
        for now in (105, 106, 107):
            tested.arrived(now, now)
        self.assertEqual(8, tested.size)

    def test_reads_become_few_again_when_they_are_waited_for_no_more(self):
        tested = window.Window(4, 16)
        for now in range(4):
            tested.arrived(now, now + 1)
        self.assertEqual(8, tested.size)
        for tenth in range(8):
            now = 4 + tenth / 10
            tested.arrived(now, now)
        self.assertEqual(4, tested.size)
