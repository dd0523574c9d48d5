# SPDX-License-Identifier: Apache-2.0

import unittest

from tests.faults import table

KILLED = 'nova-compute is killed'


def result(strategy, point, **more):
    return {'fault': KILLED, 'strategy': strategy, 'guest': 'running',
            'point': point, **more}


class FaultTableTest(unittest.TestCase):

    def rows(self, *results):
        """Give the table's rows, each a list of its cells."""
        text = table.render(results).split(':header-rows: 1')[1]
        return [[cell.strip() for cell in row.split('\n     -')]
                for row in text.split('\n\n')[1].split('* - ')[1:]]

    def test_points_of_all_strategies_are_in_one_order(self):
        self.assertEqual(
            [['When', '``backup``, running', '``cold``, running'],
             ['made', 'healed', 'healed'],
             ['suspended', '', 'healed'],
             ['begun', 'healed', ''],
             ['done', 'healed', 'healed']],
            self.rows(result('backup', 'made'), result('backup', 'begun'),
                      result('backup', 'done'), result('cold', 'made'),
                      result('cold', 'suspended'), result('cold', 'done')))

    def test_what_has_not_healed_is_told_with_its_reason(self):
        failed = result('backup', 'made', failure='1 file\n  is `left`')
        self.assertEqual(['made', '**not healed** (1)'], self.rows(failed)[1])
        text = table.render([failed, result('backup', 'begun')])
        self.assertIn('\n1. ``1 file is left``\n', text)
        self.assertIn('2 faults were tried, and 1 of them healed.', text)

    def test_a_fault_that_is_tried_again_counts_once(self):
        self.assertIn('1 faults were tried, and 1 of them healed.',
                      table.render([result('backup', 'made', failure='left'),
                                    result('backup', 'made')]))
