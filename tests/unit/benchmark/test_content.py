# SPDX-License-Identifier: Apache-2.0

import itertools
import os
import pathlib
import tempfile
import unittest

from devbench import cases
from devbench import content
from devbench import contestants

MIB = 1 << 20


class ContentTest(unittest.TestCase):

    def setUp(self):
        self.directory = tempfile.TemporaryDirectory()
        self.addCleanup(self.directory.cleanup)
        self.file = pathlib.Path(self.directory.name, 'disk')

    def test_noise_fills_its_range_and_is_always_the_same(self):
        content.sparse(self.file, 4 * MIB)
        content.noise(self.file, MIB, 2 * MIB)
        first = self.file.read_bytes()
        content.noise(self.file, MIB, 2 * MIB)
        self.assertEqual(first, self.file.read_bytes())
        self.assertEqual(bytes(MIB), first[:MIB])
        self.assertEqual(bytes(MIB), first[3 * MIB:])
        self.assertNotIn(bytes(16), first[MIB:3 * MIB])

    def test_disk_of_zeros_has_no_hole(self):
        content.zeros(self.file, content.STRETCH + MIB)
        with open(self.file, 'rb') as disk:
            self.assertEqual(content.STRETCH + MIB,
                             os.lseek(disk.fileno(), 0, os.SEEK_HOLE))
        self.assertFalse(any(self.file.read_bytes()))

    def test_scattered_chunks_do_not_touch(self):
        content.sparse(self.file, 16 * MIB)
        content.scattered(self.file, MIB, 12 * MIB, 2 * MIB)
        disk = self.file.read_bytes()
        chunks = [any(disk[offset:offset + content.CHUNK])
                  for offset in range(0, len(disk), content.CHUNK)]
        self.assertEqual(32, sum(chunks))
        self.assertFalse(any(first and second for first, second
                             in itertools.pairwise(chunks)))
        self.assertFalse(any(disk[:MIB]) or any(disk[13 * MIB:]))

    def test_more_chunks_than_a_disk_has_space_for_are_refused(self):
        content.sparse(self.file, 4 * MIB)
        self.assertRaises(ValueError, content.scattered, self.file, 0,
                          3 * MIB, 2 * MIB)

    def test_zeros_of_copied_file_become_holes(self):
        source = self.file.with_name('source')
        source.write_bytes(b'a' * MIB + bytes(6 * MIB) + b'b')
        content.sparse(self.file, 16 * MIB)
        content.copy_sparse(source, self.file, 4 * MIB)
        self.assertEqual(
            bytes(4 * MIB) + source.read_bytes(),
            self.file.read_bytes()[:source.stat().st_size + 4 * MIB])
        self.assertLess(self.file.stat().st_blocks * 512, 3 * MIB)


class ContestantsTest(unittest.TestCase):

    def test_unsupported_contestant_takes_no_part_in_case(self):
        names = [one.name for one in contestants.of(
            cases.BY_NAME['block'], contestants.USUAL)]
        self.assertNotIn('internal', names)
        self.assertIn('backup', names)

    def test_puts_take_part_in_every_case(self):
        for case in (*cases.CASES, cases.SMOKE):
            self.assertFalse({contestants.BEST_PUT, contestants.PLAIN_PUT}
                             & set(case.without))

    def test_scaled_case_differs_only_in_its_data(self):
        case = cases.BY_NAME['chain']
        self.assertIs(case, case.scaled(1))
        self.assertEqual((case.data // 4, case.overlays), (
            case.scaled(4).data, case.scaled(4).overlays))
