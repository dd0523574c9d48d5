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
    def make(cls):
        print('made')
        return cls()

    def read(self):
        print('read')
'''

PROGRAM = '''
import disk

try:
    made = disk.Disk.make()
    for _ in range(3):
        made.read()
except OSError as error:
    print(type(error).__name__)
print('done')
'''


class FaultHookTest(unittest.TestCase):

    def setUp(self):
        self.place = pathlib.Path(
            self.enterContext(tempfile.TemporaryDirectory()))
        (self.place / 'disk.py').write_text(MODULE)
        self.write('functions', ['disk:Disk.make', 'disk:Disk.read'])

    def write(self, name, content):
        (self.place / name).write_text(json.dumps(content))

    def arm(self, function, moment, action='kill', nth=1):
        self.write('armed', {
            'id': 'one', 'function': function, 'moment': moment,
            'action': action, 'nth': nth, 'delay': 0})

    def begin(self, program=PROGRAM):
        return subprocess.Popen(
            [sys.executable, '-u', '-c', program],
            stdout=subprocess.PIPE, text=True, env={
                **os.environ, 'PYTHONPATH': f'{HOOK}:{self.place}',
                'SNAPEXT_FAULTS': str(self.place)})

    def run_program(self, program=PROGRAM):
        """Give the words that it prints, and its exit code."""
        program = self.begin(program)
        output, _ = program.communicate(timeout=60)
        return output.split(), program.returncode

    def test_nothing_happens_where_nothing_is_armed(self):
        self.assertEqual((['made', 'read', 'read', 'read', 'done'], 0),
                         self.run_program())

    def test_it_is_killed_before_a_function(self):
        self.arm('disk:Disk.make', 'before')
        self.assertEqual(([], -signal.SIGKILL), self.run_program())
        self.assertTrue((self.place / 'acted').exists())

    def test_it_is_killed_after_the_nth_call_of_a_method(self):
        self.arm('disk:Disk.read', 'after', nth=2)
        self.assertEqual((['made', 'read', 'read'], -signal.SIGKILL),
                         self.run_program())

    def test_a_function_of_python_s_own_is_wrapped_too(self):
        self.write('functions', ['os:getcwd'])
        self.arm('os:getcwd', 'before')
        self.assertEqual((['made'], -signal.SIGKILL), self.run_program(
            'import os; print("made"); os.getcwd(); print("read")'))

    def test_a_fault_comes_once(self):
        self.arm('disk:Disk.make', 'before', 'raise')
        self.assertEqual((['OSError', 'done'], 0), self.run_program())
        self.assertEqual((['made', 'read', 'read', 'read', 'done'], 0),
                         self.run_program())

    def test_it_waits_until_it_is_let_go_on(self):
        self.arm('disk:Disk.read', 'before', 'wait')
        with self.begin() as program:
            self.assertEqual('made\n', program.stdout.readline())
            while not (self.place / 'acted').exists():
                self.assertIsNone(program.poll())
            (self.place / 'acted').unlink()
            output, _ = program.communicate(timeout=60)
        self.assertEqual(['read', 'read', 'read', 'done'], output.split())

    def test_what_is_reached_is_written_down_once(self):
        (self.place / 'reached').touch()
        self.run_program()
        self.assertEqual(
            [f'disk:Disk.{name} {moment}' for name in ('make', 'read')
             for moment in ('before', 'during', 'after')],
            (self.place / 'reached').read_text().splitlines())
