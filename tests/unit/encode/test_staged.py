# SPDX-License-Identifier: Apache-2.0

from oslo_utils import units
from oslotest import base

from nova_snapext import encode
from tests.unit.encode import fake_disk

KIB, MIB, GIB, TIB = units.Ki, units.Mi, units.Gi, units.Ti
CLUSTER = 64 * KIB

STAGED = (encode.VdiEncoder, encode.VmdkEncoder)


def max_size(encoder, size, data):
    return encoder(fake_disk.FakeDisk(size, data)).max_size()


class MaxSizeTest(base.BaseTestCase):

    def test_empty_disk_takes_the_size_of_the_tables(self):
        self.assertEqual(
            [512 + 8 * 512, 3 * CLUSTER],
            [max_size(encoder, GIB, []) for encoder in STAGED])

    def test_one_byte_takes_one_allocation_unit(self):
        for encoder in STAGED:
            for offset in (0, GIB - 1):
                self.assertEqual(
                    max_size(encoder, GIB, []) + encoder.GRAIN,
                    max_size(encoder, GIB, [(offset, 1)]))

    def test_adjacent_data_shares_an_allocation_unit(self):
        for encoder in STAGED:
            self.assertEqual(
                max_size(encoder, GIB, [(0, 1)]),
                max_size(encoder, GIB, [(0, 1), (4 * KIB, 1)]))

    def test_scattered_clusters_take_16_times_their_size_in_a_vdi(self):
        data = [(number * MIB, CLUSTER) for number in range(1024)]
        vdi, empty = (max_size(encode.VdiEncoder, GIB, found)
                      for found in (data, []))
        self.assertEqual(16 * len(data) * CLUSTER, vdi - empty)

    def test_full_disk_takes_less_than_0_1_percent_more_than_its_size(self):
        for encoder in STAGED:
            for size in (GIB, TIB):
                largest = max_size(encoder, size, [(0, size)])
                self.assertGreater(largest, size)
                self.assertLess(largest, size * 1.001)
