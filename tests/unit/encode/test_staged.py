# SPDX-License-Identifier: Apache-2.0

from oslo_utils import units
from oslotest import base

from nova_snapext import encode
from tests.unit.encode import fake_disk

KIB, MIB, GIB, TIB = units.Ki, units.Mi, units.Gi, units.Ti
CLUSTER = 64 * KIB

STAGED = (encode.VdiEncoder, encode.VmdkEncoder)


def largest_size(encoder, size, data):
    return encoder(fake_disk.FakeDisk(size, data)).largest_size()


class LargestSizeTest(base.BaseTestCase):

    def test_nothing_takes_its_tables(self):
        self.assertEqual(
            [512 + 8 * 512, 3 * CLUSTER],
            [largest_size(encoder, GIB, []) for encoder in STAGED])

    def test_a_byte_takes_what_the_format_allocates_at_once(self):
        for encoder in STAGED:
            for offset in (0, GIB - 1):
                self.assertEqual(
                    largest_size(encoder, GIB, []) + encoder.GRAIN,
                    largest_size(encoder, GIB, [(offset, 1)]))

    def test_neighbours_share_what_is_allocated_at_once(self):
        for encoder in STAGED:
            self.assertEqual(
                largest_size(encoder, GIB, [(0, 1)]),
                largest_size(encoder, GIB, [(0, 1), (4 * KIB, 1)]))

    def test_scattered_clusters_take_16_times_as_much_of_a_vdi(self):
        data = [(number * MIB, CLUSTER) for number in range(1024)]
        vdi, nothing = (largest_size(encode.VdiEncoder, GIB, found)
                        for found in (data, []))
        self.assertEqual(16 * len(data) * CLUSTER, vdi - nothing)

    def test_a_full_disk_takes_little_more_than_itself(self):
        for encoder in STAGED:
            for size in (GIB, TIB):
                most = largest_size(encoder, size, [(0, size)])
                self.assertGreater(most, size)
                self.assertLess(most, size * 1.001)
