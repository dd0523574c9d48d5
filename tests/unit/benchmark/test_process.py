# SPDX-License-Identifier: Apache-2.0

import os
import subprocess
import unittest

from devbench import process


class UsageTest(unittest.TestCase):

    def test_finished_children_are_counted(self):
        before = process.usage(os.getpid())
        subprocess.run(['dd', 'if=/dev/zero', 'of=/dev/null', 'bs=1M',
                        'count=64'], check=True, stderr=subprocess.DEVNULL)
        used = process.usage(os.getpid()) - before
        self.assertGreaterEqual(used.read_calls, 64 << 20)

    def test_name_with_brackets_and_blanks_shifts_no_field(self):
        stat = '7 (a) b (c) S 1 7 7 0 -1 0 11 22 0 0 300 40 5 6 20 0'
        io = ('rchar: 1\nwchar: 2\nsyscr: 0\nsyscw: 0\nread_bytes: 3\n'
              'write_bytes: 4\ncancelled_write_bytes: 0\n')
        self.assertEqual(
            process.Usage(cpu=351 / process.TICK, minor_faults=33,
                          read_calls=1, write_calls=2, read_disk=3,
                          written_disk=4),
            process.parse_usage(stat, io))

    def test_processes_that_have_ended_use_nothing(self):
        child = subprocess.Popen(['true'])
        child.wait()
        self.assertEqual(process.Usage(), process.total([child.pid]))

    def test_memory_peak_can_be_reset(self):
        pid = os.getpid()
        memory = bytearray(64 << 20)
        self.assertGreater(process.memory(pid, 'VmHWM'), len(memory))
        del memory
        process.reset_peak(pid)
        self.assertLess(process.memory(pid, 'VmHWM') - process.memory(pid),
                        32 << 20)
