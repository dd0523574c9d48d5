# SPDX-License-Identifier: Apache-2.0

import unittest

from devbench import bars
from devbench import figures


def summarized(**medians):
    return {name: {'median': value, 'min': value, 'max': value, 'rounds': 1}
            for name, value in medians.items()}


class FiguresTest(unittest.TestCase):

    def test_summary_has_median_and_spread_of_known_values(self):
        self.assertEqual(
            {'median': 3, 'min': 1, 'max': 8, 'rounds': 3},
            figures.summary([8, None, 1, 3]))

    def test_unmeasured_quantity_has_no_summary(self):
        self.assertEqual({}, figures.summaries([{'read': None}, {}]))

    def test_ratio_of_unknown_value_or_to_zero_is_none(self):
        self.assertEqual(0.5, figures.ratio(1, 2))
        self.assertIsNone(figures.ratio(None, 2))
        self.assertIsNone(figures.ratio(1, None))
        self.assertIsNone(figures.ratio(1, 0))

    def test_target_is_reached_at_its_exact_value(self):
        self.assertEqual('reached', figures.verdict(1.1, 1.1))
        self.assertEqual('missed', figures.verdict(1.2, 1.1))
        self.assertEqual('reached', figures.verdict(2, 2, at_least=True))
        self.assertEqual('missed', figures.verdict(1, 2, at_least=True))
        self.assertEqual('not measured', figures.verdict(None, 1))


class BarsTest(unittest.TestCase):

    def case(self, name='incompressible'):
        return {
            'name': name, 'data': 100 << 20, 'allocated': 100 << 20,
            'summaries': {
                'best PUT': summarized(wall=10),
                'plain PUT': summarized(wall=14),
                'Nova live': summarized(wall=20, records=4,
                                        records_before=16),
                'backup': summarized(
                    wall=10.5, stall=0.3, stall_before=0.2, records=12,
                    records_before=16, read=101 << 20, sent=103 << 20,
                    space_staged=0, memory=80 << 20),
                'backup, compressed': summarized(wall=8, memory=80 << 20)}}

    def verdicts(self, case):
        case['ratios'] = bars.ratios(case)
        return {one['what']: one['verdict'] for one in bars.bars(case)}

    def test_wall_times_are_compared_with_puts_and_with_nova(self):
        case = self.case()
        self.assertEqual(
            {'best PUT': 1.05, 'plain PUT': 0.75, 'Nova live': 0.525},
            bars.ratios(case)['backup'])

    def test_each_target_of_a_case_has_a_verdict(self):
        self.assertEqual({
            'backup: wall / best PUT': 'reached',
            'backup: wall / plain PUT': 'reached',
            'backup: wall / Nova live': 'missed',
            'backup: wall / Nova live, below': 'reached',
            'backup: wall / Nova cold, below': 'not measured',
            'backup: host space beyond scratch, MiB': 'reached',
            'backup: read / allocated': 'reached',
            'backup: sent / data that is not zero': 'missed',
            "backup: longest stall beyond the baseline's, s": 'reached',
            "backup: guest records / Nova live's": 'reached',
            'backup: memory of nova-compute above idle, MiB': 'missed',
        }, self.verdicts(self.case()))

    def test_compression_has_targets_on_the_system_disk_only(self):
        verdicts = self.verdicts(self.case('system'))
        self.assertEqual(
            {'wall / plain PUT': 'reached', 'wall / best PUT': 'reached',
             'memory of nova-compute above idle, MiB': 'missed'},
            {what.removeprefix('backup, compressed: '): verdict
             for what, verdict in verdicts.items() if 'compressed' in what})
        self.assertFalse(any('compressed' in what for what
                             in self.verdicts(self.case())))

    def test_guest_throughput_is_relative_to_that_before(self):
        self.assertEqual(0.75, bars.throughput(
            self.case(), 'backup', 'records'))

    def test_all_contestants_have_the_same_throughput_before(self):
        case = self.case()
        case['summaries'] = {
            'backup': summarized(records=12, records_before=8),
            'external': summarized(records=12, records_before=24),
            'Nova live': summarized(records=6, records_before=12)}
        self.assertEqual([1, 1, 0.5], [
            bars.throughput(case, name, 'records')
            for name in case['summaries']])

    def test_reader_and_encoder_alone_have_targets_too(self):
        disk = {'name': 'sparse',
                'summaries': {'qcow2': summarized(
                    memory=1 << 20, planning=3)},
                'ratios': {'qcow2': {'qemu-img convert to a file': 0.4,
                                     'nbdcopy': 1.4}}}
        found = {one['what']: (one['value'], one['verdict'])
                 for one in bars.micro_bars(disk)
                 if one['what'].startswith('qcow2: ')}
        self.assertEqual({
            'qcow2: times the speed of qemu-img convert to a file':
                (2.5, 'reached'),
            'qcow2: wall / nbdcopy to null': (1.4, 'missed'),
            'qcow2: memory, MiB': (1, 'reached'),
            'qcow2: planning, s': (3, 'reached')}, found)
