# SPDX-License-Identifier: Apache-2.0

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

from tests import in_full

BENCHMARK = pathlib.Path(__file__).parents[3] / 'tools' / 'benchmark'


@in_full.only
class MicroBenchmarkTest(unittest.TestCase):

    def test_micro_benchmark_measures_all_contestants_on_all_disks(self):
        with tempfile.TemporaryDirectory(prefix='snapext-') as place:
            subprocess.run([sys.executable, BENCHMARK, 'micro', '--smoke',
                            '--output', place], check=True,
                           stdout=subprocess.DEVNULL)
            results = json.loads(
                pathlib.Path(place, 'micro.json').read_text())
        disks = {disk['name']: disk for disk in results['disks']}
        self.assertEqual(
            {'incompressible', 'system', 'sparse', 'without holes'},
            set(disks))
        runs = disks['incompressible']['runs']
        self.assertLessEqual(
            {'reader', 'raw', 'qcow2', 'qcow2, zeros found',
             'qcow2, compressed', 'qemu-img convert to a file',
             'qemu-img convert to null', 'nbdcopy'}, set(runs))
        for [run] in runs.values():
            self.assertLessEqual({'wall', 'cpu', 'server_cpu'}, set(run))
        self.assertEqual(results['data'], runs['reader'][0]['read'])
        self.assertGreater(runs['qcow2'][0]['sent'], results['data'])
