# SPDX-License-Identifier: Apache-2.0

import unittest

from devbench import page
from devbench import several
from tests.unit.benchmark import test_page

MIB = 1 << 20


def runs(**walls):
    """Return the runs of `backup`, by number; all others are constant."""
    return {('backup', int(number.removeprefix('of_'))): [
        {'wall': wall, 'cpu_per_gib': 2.0, 'memory': 15 * MIB}
        for wall in found] for number, found in walls.items()}


class RowsTest(unittest.TestCase):

    def test_wall_is_compared_with_as_many_one_after_the_other(self):
        rows = several.rows(runs(of_4=[30.0, 10.0, 20.0], of_1=[6.0, 5.0]))
        self.assertEqual([1, 4], [row['number'] for row in rows])
        self.assertEqual([1.0, 20.0 / (4 * 5.5)],
                         [row['of_one'] for row in rows])

    def test_number_without_a_single_one_has_nothing_to_compare_with(self):
        [row] = several.rows(runs(of_2=[1.0]))
        self.assertIsNone(row['of_one'])

    def results(self, **walls):
        rows = several.rows(runs(**walls))
        return {'kind': 'several', 'title': '8 guests', 'rounds': 3,
                'host': test_page.HOST, 'rows': rows,
                'bars': several._bars(rows)}

    def test_slower_than_one_after_the_other_misses_its_target(self):
        found = {bar['what']: bar['verdict'] for bar in self.results(
            of_1=[5.0], of_2=[11.0], of_4=[19.0])['bars']}
        self.assertEqual('missed', found[
            '2 at once, backup: wall / one after the other'])
        self.assertEqual('reached', found[
            '4 at once, backup: wall / one after the other'])
        self.assertEqual('reached', found[
            '4 at once, backup: memory of each, MiB'])

    def test_both_pages_have_a_row_of_each_number(self):
        results = self.results(of_1=[5.0], of_2=[11.0])
        for text in (page.render([results], {}),
                     page.render_appendix([results], {})):
            self.assertIn('Several snapshots at once\n=====', text)
            self.assertIn('backup,2,11.00 (11.00-11.00),1.10,2.0,15', text)

    def test_its_targets_count_as_those_of_the_cases(self):
        results = self.results(of_1=[5.0], of_2=[11.0])
        text = page.render([test_page.results(), results], {})
        self.assertIn('9 of 13 targets were reached', text)
        self.assertIn('8 guests,"2 at once, backup: wall / one after the '
                      'other",at most 1,1.10', text)
