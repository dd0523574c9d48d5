# SPDX-License-Identifier: Apache-2.0

from oslotest import base

from nova_snapext.encode import clusters
from nova_snapext.encode import sample
from tests.unit.encode import fake_disk

KIB = 1024


class SampleTest(base.BaseTestCase):

    def test_a_map_of_the_data_reads_nothing(self):
        disk = fake_disk.FakeDisk(1024 * KIB, [(0, 64 * KIB),
                                               (512 * KIB, 4 * KIB)])
        disk.read = None
        self.assertEqual([(0, 1), (8, 9)],
                         list(clusters.ClusterMap.of(disk).spans()))

    def test_a_sample_is_a_hundredth_and_spread_over_all(self):
        clusters_read = []
        size = 4 << 30

        class Noted(fake_disk.FakeDisk):
            def read(self, runs):
                for offset, length in runs:
                    clusters_read.append(offset // (64 * KIB))
                    yield offset, memoryview(b'x' * length)

        disk = Noted(size, [(0, size)])
        list(sample.sample(disk, clusters.ClusterMap.of(disk)))
        self.assertEqual(list(range(0, size // (64 * KIB), 128)),
                         clusters_read)
