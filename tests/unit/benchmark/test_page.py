# SPDX-License-Identifier: Apache-2.0

import csv
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

    def rows(self, text):
        """Return the rows of all tables in a page."""
        lines = [line.strip() for line in text.splitlines()
                 if line.startswith('   ') and ',' in line]
        return list(csv.reader(lines))

    def test_page_has_one_row_per_case_plot_and_written_reasons(self):
        text = page.render([results()], {'Wall time': 'overview.png'})
        self.assertIn(
            ['A case', '10.0', '10.5', '20.0', '1.05', '0.53', '0.30', '',
             '0', ''], self.rows(text))
        self.assertIn('.. figure:: overview.png\n\n   Wall time\n', text)
        self.assertIn('.. include:: performance-why.inc\n', text)
        self.assertIn('   performance-appendix\n', text)

    def test_compressed_snapshot_has_a_row_of_its_own(self):
        rows = self.rows(page.render([results()], {}))
        self.assertIn(['A case, compressed', '10.0', '8.0', '20.0'],
                      [row[:4] for row in rows])

    def test_busy_host_has_a_row_of_the_strategy_for_it(self):
        result = results()
        [case] = result['cases']
        case['summaries']['external'] = case['summaries']['backup']
        for name, expected in ('case', []), ('busy', ['10.5']):
            case['name'] = name
            self.assertEqual(expected, [
                row[2] for row in self.rows(page.render([result], {}))
                if row[0] == 'A case, by external'])

    def test_case_without_live_snapshot_is_compared_with_the_cold_one(self):
        result = results()
        [case] = result['cases']
        case['summaries']['Nova cold'] = case['summaries'].pop('Nova live')
        case['ratios'] = bars.ratios(case)
        rows = self.rows(page.render([result], {}))
        self.assertIn(['A case', '10.0', '10.5', '20.0 (cold)', '1.05',
                       '0.53'], [row[:6] for row in rows])

    def test_page_counts_reached_targets_and_lists_missed_ones(self):
        text = page.render([results()], {})
        self.assertIn('7 of 10 targets were reached. These were missed:\n',
                      text)
        self.assertIn(['A case', 'backup: wall / Nova live', 'at most 0.5',
                       '0.53'], self.rows(text))

    def test_missed_value_that_rounds_to_its_target_is_just_beyond_it(self):
        result = results()
        result['cases'][0]['bars'] = [
            {'what': 'sent', 'value': 1.001, 'bar': 1, 'at_least': False,
             'verdict': 'missed'}]
        self.assertIn(['A case', 'sent', 'at most 1', 'just above 1'],
                      self.rows(page.render([result], {})))

    def test_appendix_has_plots_tables_targets_failures_and_profile(self):
        text = page.render_appendix([results()], {'Wall time': 'wall.png'})
        self.assertIn('.. include:: performance-profile.inc\n', text)
        self.assertIn('.. figure:: wall.png\n\n   Wall time\n', text)
        self.assertIn('A case\n------\n', text)
        rows = self.rows(text)
        self.assertIn(['backup', '10.50 (10.50-10.50)', '1.05'],
                      [row[:3] for row in rows])
        self.assertIn(['backup: wall / best PUT', '1.05', 'at most 1.1',
                       'reached'], rows)
        self.assertIn('* ``round 1: external: it failed``\n', text)

    def test_several_runs_on_the_cloud_become_one_with_all_cases(self):
        micro = {'kind': 'micro'}
        first, second = results(), results()
        second['cases'][0]['title'] = 'another case'
        cloud, alone = page.merged([first, micro, second])
        self.assertEqual(micro, alone)
        self.assertEqual(['a case', 'another case'],
                         [case['title'] for case in cloud['cases']])
        text = page.render_appendix([cloud], {})
        self.assertEqual(1, text.count("Through Nova's API"))
        self.assertIn('rounds: 1.', text)

    def test_every_row_of_a_table_has_as_many_cells(self):
        lines = list(page.table(['a', 'b, c'], [['1', ''], ['2', '3,000']]))
        self.assertEqual(
            ['   a,"b, c"', '   1,', '   2,"3,000"'], lines[3:])
        self.assertEqual([2, 2, 2], [
            len(row) for row in csv.reader(lines[3:])])

    def test_terminal_shows_the_same_verdicts(self):
        text = terminal.case(results()['cases'][0])
        self.assertRegex(text, r'backup: wall / best PUT +1\.05 +<= 1\.1 +'
                               r'reached')
        self.assertRegex(text, r'(?m)^backup +10\.50 \(10\.50-10\.50\)')
