# SPDX-License-Identifier: Apache-2.0

import random
import tracemalloc

from oslotest import base

from nova_snapext.encode import sizes


class ClusterSizesTest(base.BaseTestCase):

    def memory(self, numbers):
        """Return the bytes that each number takes."""
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        before = tracemalloc.get_traced_memory()[0]
        kept = sizes.ClusterSizes()
        for number in numbers:
            kept.extend([number])
        after = tracemalloc.get_traced_memory()[0]
        return (after - before) / len(kept)

    def test_sizes_are_returned_in_order_several_times(self):
        numbers = [random.randrange(1 << 16)
                   for _ in range(3 * sizes.BLOCK + 5)]
        kept = sizes.ClusterSizes()
        kept.extend(numbers[:1])
        kept.extend(numbers[1:2 * sizes.BLOCK])
        for number in numbers[2 * sizes.BLOCK:]:
            kept.extend([number])
        self.assertEqual(len(numbers), len(kept))
        for _ in range(2):
            self.assertEqual(numbers, list(kept))

    def test_size_of_its_own_takes_two_bytes(self):
        self.assertLess(self.memory(
            random.randrange(1 << 16) for _ in range(10 * sizes.BLOCK)), 2.1)

    def test_mix_of_two_sizes_takes_half_a_byte_each(self):
        self.assertLess(self.memory(
            random.choice((0, 65535)) for _ in range(10 * sizes.BLOCK)), 0.6)

    def test_equal_sizes_take_next_to_nothing(self):
        self.assertLess(self.memory(65535 for _ in range(10 * sizes.BLOCK)),
                        0.1)
