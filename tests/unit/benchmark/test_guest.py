# SPDX-License-Identifier: Apache-2.0

import pathlib
import tempfile
import unittest

from devcloud import watch

from devbench import guest


def seen(*records):
    return [watch.Seen(number, 0.0, when, 0.0) for number, when in records]


class ConsoleTest(unittest.TestCase):

    def console(self, *records):
        console = guest.Console(pathlib.Path('console.log'))
        console.seen = seen(*records)
        return console

    def test_the_longest_pause_counts_from_the_beginning_to_the_end(self):
        console = self.console((1, 0.0), (2, 11.0), (3, 12.5))
        self.assertEqual(4.5, console.pause(10.0, 17.0))

    def test_records_that_a_restored_guest_repeats_are_no_life(self):
        console = self.console((1, 10.0), (2, 11.0), (1, 13.0), (2, 14.0),
                               (3, 15.0))
        self.assertEqual(4.0, console.pause(10.0, 15.0))
        self.assertEqual(0.6, console.rate(10.0, 15.0))

    def test_a_guest_that_is_silent_has_no_pause(self):
        self.assertIsNone(self.console().pause(1.0, 2.0))

    def test_a_log_that_begins_anew_is_read_from_its_start(self):
        with tempfile.NamedTemporaryFile('w') as log:
            console = guest.Console(pathlib.Path(log.name))
            log.write('MOUNTED clean\nREC 1 1.0\nREC 2 2.0\nLOAD 4096\n')
            log.flush()
            console.look()
            log.truncate(0)
            log.seek(0)
            log.write('REC 3 3.0\n')
            log.flush()
            console.look()
        self.assertEqual([1, 2, 3], [one.number for one in console.seen])
        self.assertEqual([4096], [written for _, written in console.loads])

    def test_what_it_rewrites_is_told_by_the_first_and_the_last_word(self):
        console = self.console()
        console.loads = [(1.0, 0), (2.0, 10), (3.0, 40), (9.0, 90)]
        self.assertEqual(30, console.load_rate(1.5, 4.0))
        self.assertIsNone(console.load_rate(4.0, 8.0))
