# SPDX-License-Identifier: Apache-2.0
"""The command tools/benchmark."""

import json
import pathlib
import subprocess
import sys

from devcloud import state as cloud_state

from tests.e2e import base

BENCHMARK = cloud_state.CHECKOUT / 'tools' / 'benchmark'

# Quantities of every contestant that takes a snapshot of a running guest.
QUANTITIES = {
    'wall', 'until_released', 'stall', 'stall_before', 'records',
    'records_before', 'read', 'sent', 'memory', 'space_staged',
    'space_scratch', 'space_disk', 'compute_cpu_per_gib', 'qemu_cpu_per_gib',
    'glance_cpu_per_gib', 'glance_faults'}


class BenchmarkTest(base.CloudTestCase):
    # Checks which quantities are measured, and not their values.

    def test_smoke_run_measures_puts_backup_and_nova_live(self):
        output = pathlib.Path(self.directory, 'benchmark')
        subprocess.run([sys.executable, BENCHMARK, 'run', '--smoke',
                        '--output', output], check=True)
        results = json.loads((output / 'benchmark.json').read_text())
        self.assertEqual([], results['failures'])
        self.assertIn('cores', results['host'])
        [case] = results['cases']
        self.assertEqual([], case['failures'])
        self.assertEqual({'best PUT', 'plain PUT', 'backup', 'Nova live'},
                         set(case['runs']))
        for name, runs in case['runs'].items():
            self.assertEqual(1, len(runs))
            missing = QUANTITIES - {
                key for key, value in runs[0].items() if value is not None}
            self.assertEqual({'read'} if name.endswith('PUT') else set(),
                             missing, name)
        self.assertIn('freeze', case['runs']['backup'][0])
        self.assertIn('best PUT', case['ratios']['backup'])
        self.assertLessEqual(
            {one['verdict'] for one in case['bars']},
            {'reached', 'missed', 'not measured'})
        images = self.client.get('glance', '/images?name=benchmark')
        self.assertEqual([], images['images'])
