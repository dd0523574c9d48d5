# SPDX-License-Identifier: Apache-2.0

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import unittest

HOOK = pathlib.Path(__file__).parents[2] / 'faults' / 'hook'

MODULE = '''
class Disk:

    @classmethod
    def create(cls):
        print('created')
        return cls()

    def read(self):
        print('read')
'''

PROGRAM = '''
import disk

try:
    created = disk.Disk.create()
    for _ in range(3):
        created.read()
except OSError as error:
    print(type(error).__name__)
print('done')
'''


class FaultHookTest(unittest.TestCase):

    def setUp(self):
        self.directory = pathlib.Path(
            self.enterContext(tempfile.TemporaryDirectory()))
        (self.directory / 'disk.py').write_text(MODULE)
        self.write('functions', ['disk:Disk.create', 'disk:Disk.read'])

    def write(self, name, content):
        (self.directory / name).write_text(json.dumps(content))

    def arm(self, function, moment, action='kill', nth=1):
        self.write('armed', {
            'id': 'one', 'function': function, 'moment': moment,
            'action': action, 'nth': nth, 'delay': 0})

    def start(self, program=PROGRAM):
        return subprocess.Popen(
            [sys.executable, '-u', '-c', program],
            stdout=subprocess.PIPE, text=True, env={
                **os.environ, 'PYTHONPATH': f'{HOOK}:{self.directory}',
                'SNAPEXT_FAULTS': str(self.directory)})

    def run_program(self, program=PROGRAM):
        """Return the words that it prints, and its exit code."""
        program = self.start(program)
        output, _ = program.communicate(timeout=60)
        return output.split(), program.returncode

    def test_program_runs_unchanged_if_no_fault_is_armed(self):
        self.assertEqual((['created', 'read', 'read', 'read', 'done'], 0),
                         self.run_program())

    def test_program_is_killed_before_a_function(self):
        self.arm('disk:Disk.create', 'before')
        self.assertEqual(([], -signal.SIGKILL), self.run_program())
        self.assertTrue((self.directory / 'occurred').exists())

    def test_program_is_killed_after_the_nth_call_of_a_method(self):
        self.arm('disk:Disk.read', 'after', nth=2)
        self.assertEqual((['created', 'read', 'read'], -signal.SIGKILL),
                         self.run_program())

    def test_function_of_the_standard_library_is_wrapped(self):
        self.write('functions', ['os:getcwd'])
        self.arm('os:getcwd', 'before')
        self.assertEqual((['created'], -signal.SIGKILL), self.run_program(
            'import os; print("created"); os.getcwd(); print("read")'))

    def test_fault_occurs_only_once(self):
        self.arm('disk:Disk.create', 'before', 'raise')
        self.assertEqual((['OSError', 'done'], 0), self.run_program())
        self.assertEqual((['created', 'read', 'read', 'read', 'done'], 0),
                         self.run_program())

    def test_call_waits_until_the_fault_is_removed(self):
        self.arm('disk:Disk.read', 'before', 'wait')
        with self.start() as program:
            self.assertEqual('created\n', program.stdout.readline())
            while not (self.directory / 'occurred').exists():
                self.assertIsNone(program.poll())
            (self.directory / 'occurred').unlink()
            output, _ = program.communicate(timeout=60)
        self.assertEqual(['read', 'read', 'read', 'done'], output.split())

    def test_each_moment_is_recorded_once(self):
        (self.directory / 'reached').touch()
        self.run_program()
        self.assertEqual(
            [f'disk:Disk.{name} {moment}' for name in ('create', 'read')
             for moment in ('before', 'during', 'after')],
            (self.directory / 'reached').read_text().splitlines())
