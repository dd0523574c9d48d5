# SPDX-License-Identifier: Apache-2.0

import pathlib
import tempfile
import unittest

from devcloud import watch

from devbench import guest


def records_of(*records):
    return [watch.Record(number, 0.0, when, 0.0) for number, when in records]


class ConsoleTest(unittest.TestCase):

    def console(self, *records):
        console = guest.Console(pathlib.Path('console.log'))
        console.records = records_of(*records)
        return console

    def test_longest_pause_includes_the_beginning_and_the_end(self):
        console = self.console((1, 0.0), (2, 11.0), (3, 12.5))
        self.assertEqual(4.5, console.pause(10.0, 17.0))

    def test_repeated_records_of_restored_guest_do_not_count(self):
        console = self.console((1, 10.0), (2, 11.0), (1, 13.0), (2, 14.0),
                               (3, 15.0))
        self.assertEqual(4.0, console.pause(10.0, 15.0))
        self.assertEqual(0.6, console.rate(10.0, 15.0))

    def test_silent_guest_has_no_pause(self):
        self.assertIsNone(self.console().pause(1.0, 2.0))

    def test_truncated_log_is_read_from_its_start(self):
        with tempfile.NamedTemporaryFile('w') as log:
            console = guest.Console(pathlib.Path(log.name))
            log.write('MOUNTED clean\nREC 1 1.0\nREC 2 2.0\nLOAD 4096\n')
            log.flush()
            console.poll()
            log.truncate(0)
            log.seek(0)
            log.write('REC 3 3.0\n')
            log.flush()
            console.poll()
        self.assertEqual([1, 2, 3], [one.number for one in console.records])
        self.assertEqual([4096], [written for _, written in console.loads])

    def test_rewrites_are_counted_from_first_and_last_line(self):
        console = self.console()
        console.loads = [(1.0, 0), (2.0, 10), (3.0, 40), (9.0, 90)]
        self.assertEqual(30, console.load_rate(1.5, 4.0))
        self.assertIsNone(console.load_rate(4.0, 8.0))
