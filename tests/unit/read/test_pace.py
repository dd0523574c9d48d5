# SPDX-License-Identifier: Apache-2.0

import time
from unittest import mock

from oslotest import base

from nova_snapext.read import pace


class PaceTest(base.BaseTestCase):

    def turns(self, *asked):
        """Ask for turns at given times, and give when they begin."""
        tested = pace.Pace()
        found = []
        for now, length, limit in asked:
            with mock.patch.object(time, 'monotonic', return_value=now):
                found.append(tested.turn(length, limit))
        return found

    def test_the_first_turn_is_now(self):
        self.assertEqual([5.0], self.turns((5.0, 100, 10)))

    def test_the_next_turn_comes_when_the_one_before_may_have_been_read(self):
        self.assertEqual([5.0, 15.0, 17.0],
                         self.turns((5.0, 100, 10), (5.0, 20, 10),
                                    (6.0, 1, 10)))

    def test_what_was_not_used_is_not_made_up_for(self):
        self.assertEqual([5.0, 100.0, 101.0],
                         self.turns((5.0, 10, 10), (100.0, 10, 10),
                                    (100.0, 10, 10)))
