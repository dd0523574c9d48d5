# SPDX-License-Identifier: Apache-2.0

import unittest

from devbench import bars
from devbench import page
from devbench import terminal
from tests.unit.benchmark import test_figures

HOST = {'cores': 2, 'processor': 'a processor', 'memory_mib': 4096,
        'system': 'a system', 'qemu': '7.2', 'libvirt': '9.0',
        'when': '2026-01-02T03:04:05'}


def results():
    case = {'title': 'a case', 'virtual': 1 << 30, 'runs': {},
            'failures': ['round 1: external: it failed\nand a log'],
            **test_figures.BarsTest().case()}
    case['ratios'] = bars.ratios(case)
    case['bars'] = bars.bars(case)
    return {'kind': 'cloud', 'rounds': 3, 'host': HOST, 'cases': [case],
            'failures': []}


class PageTest(unittest.TestCase):

    def test_a_page_has_plots_tables_bars_and_a_place_for_words(self):
        text = page.render([results()], {'Wall time': 'wall.svg'})
        self.assertIn('.. include:: performance-profile.inc\n', text)
        self.assertIn('.. figure:: wall.svg\n\n   Wall time\n', text)
        self.assertIn('A case\n------\n', text)
        self.assertIn('   * - backup\n     - 10.50 (10.50-10.50)\n'
                      '     - 1.05\n', text)
        self.assertIn('   * - backup: wall / best PUT\n     - 1.05\n'
                      '     - at most 1.1\n     - reached\n', text)
        self.assertIn('* ``round 1: external: it failed``\n', text)

    def test_several_runs_on_the_cloud_are_one_with_all_cases(self):
        micro = {'kind': 'micro'}
        first, second = results(), results()
        second['cases'][0]['title'] = 'another case'
        cloud, alone = page.merged([first, micro, second])
        self.assertEqual(micro, alone)
        self.assertEqual(['a case', 'another case'],
                         [case['title'] for case in cloud['cases']])
        text = page.render([cloud], {})
        self.assertEqual(1, text.count("Through Nova's API"))
        self.assertIn('rounds: 1.', text)

    def test_every_row_of_a_table_has_as_many_cells(self):
        lines = list(page.table(['a', 'b'], [['1', ''], ['2', '3']]))
        self.assertEqual(
            ['   * - a', '     - b', '   * - 1', '     -', '   * - 2',
             '     - 3'], lines[3:])

    def test_the_terminal_has_the_same_verdicts(self):
        text = terminal.case(results()['cases'][0])
        self.assertRegex(text, r'backup: wall / best PUT +1\.05 +<= 1\.1 +'
                               r'reached')
        self.assertRegex(text, r'(?m)^backup +10\.50 \(10\.50-10\.50\)')
