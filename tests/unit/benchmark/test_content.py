# SPDX-License-Identifier: Apache-2.0

import itertools
import pathlib
import tempfile
import unittest

from devbench import cases
from devbench import content
from devbench import contestants

MIB = 1 << 20


class ContentTest(unittest.TestCase):

    def setUp(self):
        self.place = tempfile.TemporaryDirectory()
        self.addCleanup(self.place.cleanup)
        self.file = pathlib.Path(self.place.name, 'disk')

    def test_noise_is_where_it_should_be_and_always_the_same(self):
        content.sparse(self.file, 4 * MIB)
        content.noise(self.file, MIB, 2 * MIB)
        first = self.file.read_bytes()
        content.noise(self.file, MIB, 2 * MIB)
        self.assertEqual(first, self.file.read_bytes())
        self.assertEqual(bytes(MIB), first[:MIB])
        self.assertEqual(bytes(MIB), first[3 * MIB:])
        self.assertNotIn(bytes(16), first[MIB:3 * MIB])

    def test_scattered_pieces_lie_alone(self):
        content.sparse(self.file, 16 * MIB)
        content.scattered(self.file, MIB, 12 * MIB, 2 * MIB)
        disk = self.file.read_bytes()
        pieces = [any(disk[offset:offset + content.PIECE])
                  for offset in range(0, len(disk), content.PIECE)]
        self.assertEqual(32, sum(pieces))
        self.assertFalse(any(first and second for first, second
                             in itertools.pairwise(pieces)))
        self.assertFalse(any(disk[:MIB]) or any(disk[13 * MIB:]))

    def test_too_many_pieces_for_a_disk_are_refused(self):
        content.sparse(self.file, 4 * MIB)
        self.assertRaises(ValueError, content.scattered, self.file, 0,
                          3 * MIB, 2 * MIB)

    def test_a_copied_file_s_zeros_stay_holes(self):
        source = self.file.with_name('source')
        source.write_bytes(b'a' * MIB + bytes(6 * MIB) + b'b')
        content.sparse(self.file, 16 * MIB)
        content.copy_sparse(source, self.file, 4 * MIB)
        self.assertEqual(
            bytes(4 * MIB) + source.read_bytes(),
            self.file.read_bytes()[:source.stat().st_size + 4 * MIB])
        self.assertLess(self.file.stat().st_blocks * 512, 3 * MIB)


class ContestantsTest(unittest.TestCase):

    def test_who_can_t_serve_a_case_does_not_take_part(self):
        names = [one.name for one in contestants.of(
            cases.BY_NAME['block'], contestants.USUAL)]
        self.assertNotIn('internal', names)
        self.assertIn('backup', names)

    def test_the_puts_take_part_in_every_case(self):
        for case in (*cases.CASES, cases.SMOKE):
            self.assertFalse({contestants.BEST_PUT, contestants.PLAIN_PUT}
                             & set(case.without))

    def test_less_data_leaves_all_else_of_a_case(self):
        case = cases.BY_NAME['chain']
        self.assertIs(case, case.scaled(1))
        self.assertEqual((case.data // 4, case.overlays), (
            case.scaled(4).data, case.scaled(4).overlays))
