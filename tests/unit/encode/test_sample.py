# SPDX-License-Identifier: Apache-2.0

from oslotest import base

from nova_snapext.encode import clusters
from nova_snapext.encode import sample
from tests.unit.encode import fake_disk

KIB = 1024


class SampleTest(base.BaseTestCase):

    def test_cluster_map_reads_no_data(self):
        disk = fake_disk.FakeDisk(1024 * KIB, [(0, 64 * KIB),
                                               (512 * KIB, 4 * KIB)])
        disk.read = None
        self.assertEqual([(0, 1), (8, 9)],
                         list(clusters.ClusterMap.of_disk(disk).disk_runs()))

    def sample(self, size, **limit):
        """Return the numbers of the clusters in the sample of a full disk."""
        clusters_read = []

        class RecordingDisk(fake_disk.FakeDisk):
            def read(self, ranges):
                for offset, length in ranges:
                    clusters_read.append(offset // (64 * KIB))
                    yield offset, memoryview(b'x' * length)

        disk = RecordingDisk(size, [(0, size)])
        list(sample.sample(disk, clusters.ClusterMap.of_disk(disk), **limit))
        return clusters_read

    def test_sample_is_every_128th_cluster_of_the_disk(self):
        size = 4 << 30
        self.assertEqual(list(range(0, size // (64 * KIB), 128)),
                         self.sample(size))

    def test_smaller_sample_is_still_spread_over_the_disk(self):
        size = 4 << 30
        self.assertEqual(list(range(0, size // (64 * KIB), 512)),
                         self.sample(size, max_clusters=128))
