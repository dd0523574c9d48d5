# SPDX-License-Identifier: Apache-2.0

import collections
import itertools
import unittest

from devbench import turns


GROUPS = {'on': ['a', 'b', 'c'], 'off': ['d', 'e']}


class TurnsTest(unittest.TestCase):

    def test_each_contestant_has_one_turn_in_each_round(self):
        counts = collections.Counter(
            (number, one) for number, _, one in turns.rounds(GROUPS, 4))
        self.assertEqual(20, len(counts))
        self.assertEqual({1}, set(counts.values()))

    def test_contestants_of_a_group_follow_each_other(self):
        for number in range(4):
            groups = [group for at, group, _ in turns.rounds(GROUPS, 4)
                      if at == number]
            changes = sum(first != second for first, second
                          in itertools.pairwise(groups))
            self.assertEqual(1, changes)

    def test_each_round_starts_with_another_group_and_contestant(self):
        orders = [[one for at, _, one in turns.rounds(GROUPS, 3)
                   if at == number] for number in range(3)]
        self.assertEqual([['a', 'b', 'c', 'd', 'e'],
                          ['e', 'd', 'b', 'c', 'a'],
                          ['c', 'a', 'b', 'd', 'e']], orders)

    def test_contestants_with_equal_needs_form_one_group(self):
        self.assertEqual({1: ['a', 'c'], 2: ['bb']},
                         turns.grouped(['a', 'bb', 'c'], len))
