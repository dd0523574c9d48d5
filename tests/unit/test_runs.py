# SPDX-License-Identifier: Apache-2.0

import unittest

from devcloud import errors

from tests import runs

SUMMARY = """
======
Totals
======
Ran: 9 tests in 20.4200 sec.
 - Passed: 6
 - Skipped: 2
 - Expected Fail: 0
 - Unexpected Success: 0
 - Failed: 1
Sum of execute time for each test: 20.1 sec.
"""


def row(passed, nova='34.0', date='2026-01-01', tests='unit'):
    return [tests, nova, '3.11', '9.0', '7.2', '', passed, '0', '0', date]


class RunsTest(unittest.TestCase):

    def test_numbers_are_those_of_the_summary(self):
        self.assertEqual(['6', '1', '2'], runs.counts(SUMMARY))

    def test_several_summaries_are_added_up(self):
        self.assertEqual(['12', '2', '4'], runs.counts(SUMMARY * 2))

    def test_output_without_a_summary_is_refused(self):
        self.assertRaisesRegex(errors.CloudError, 'Passed: NUMBER',
                               runs.counts, '6 passed, 1 failed')

    def test_later_run_replaces_the_one_on_the_same_versions(self):
        self.assertEqual(
            [row('1', nova='33.0'), row('3', date='2026-01-02')],
            runs.merged([row('1', nova='33.0'), row('2')],
                        row('3', date='2026-01-02')))

    def test_table_of_the_documentation_has_the_columns(self):
        with open(runs.TABLE) as file:
            self.assertEqual(','.join(runs.HEADER), file.readline().rstrip())
        for one in runs.read():
            self.assertEqual(len(runs.HEADER), len(one))
            self.assertEqual('0', one[runs.HEADER.index('Failed')],
                             'a failed run belongs into an issue')
