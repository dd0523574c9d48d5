# SPDX-License-Identifier: Apache-2.0

import csv
import json
import pathlib
import tempfile
import unittest

from tests.faults import table

KILLED = 'nova-compute is killed'


def result(strategy, point, **more):
    return {'fault': KILLED, 'strategy': strategy, 'guest': 'running',
            'point': point, **more}


class FaultTableTest(unittest.TestCase):

    def rows(self, *results):
        """Return the rows of the table of all faults."""
        return list(table.Results(results).rows())

    def test_points_of_all_strategies_are_in_one_order(self):
        self.assertEqual(
            [['Fault', 'When', 'backup, running', 'cold, running'],
             [KILLED, 'created', 'recovered', 'recovered'],
             [KILLED, 'suspended', '', 'recovered'],
             [KILLED, 'started', 'recovered', ''],
             [KILLED, 'done', 'recovered', 'recovered']],
            self.rows(result('backup', 'created'),
                      result('backup', 'started'), result('backup', 'done'),
                      result('cold', 'created'), result('cold', 'suspended'),
                      result('cold', 'done')))

    def test_fault_that_was_not_recovered_has_its_reason(self):
        failed = result('backup', 'created', failure='1 file\n  is `left`')
        self.assertEqual(
            [KILLED, 'created', '**not recovered**: ``1 file is left``'],
            self.rows(failed)[1])

    def test_faults_are_counted_by_kind_and_column(self):
        page = table.Results([
            result('backup', 'created', failure='1 file is left'),
            result('backup', 'started'), result('cold', 'created'),
            {**result('cold', 'created'), 'fault': 'libvirtd hangs'},
        ]).render()
        self.assertIn('4 faults were tried, and 3 were recovered:', page)
        self.assertIn(
            '   Fault,"backup, running","cold, running",Total\n'
            f'   "{KILLED}",1 of 2,1,2 of 3\n'
            '   "libvirtd hangs",,1,1\n', page)

    def test_repeated_fault_counts_once_with_its_last_result(self):
        self.assertIn('1 faults were tried, and 1 were recovered:',
                      table.Results([
                          result('backup', 'created', failure='left'),
                          result('backup', 'created')]).render())

    def test_page_includes_the_table_that_is_written_beside_it(self):
        directory = pathlib.Path(self.enterContext(
            tempfile.TemporaryDirectory()))
        source = directory / 'faults.json'
        source.write_text(f'{json.dumps(result("backup", "created"))}\n')
        table.main(source, directory)
        self.assertIn(f'   :file: {table.TABLE}\n',
                      (directory / table.PAGE).read_text())
        with open(directory / table.TABLE) as written:
            self.assertEqual(self.rows(result('backup', 'created')),
                             list(csv.reader(written)))
