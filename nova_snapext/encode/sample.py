# SPDX-License-Identifier: Apache-2.0
"""A sample of a disk's data, to estimate the size of an image."""

from __future__ import annotations

from collections.abc import Iterator

from nova_snapext.encode import clusters
from nova_snapext import read

# One of so many clusters is sampled, which adds little to the reading ...
STEP = 128
# ... but at least so many, if there are, and at most so many: a larger sample
# would not improve the estimate.
MIN_CLUSTERS, MAX_CLUSTERS = 64, 1024


def sample(disk: read.Disk, data_clusters: clusters.ClusterMap,
           max_clusters: int = MAX_CLUSTERS) -> Iterator[memoryview]:
    """Read some of the clusters with data, evenly spread over the disk.

    :param max_clusters: read about as many at most
    :raises DiskReadError: the disk can't be read
    """
    count = len(data_clusters)
    wanted = min(max(count // STEP, MIN_CLUSTERS), max_clusters)
    runs = data_clusters.every(max(1, count // wanted))
    for _offset, chunk in disk.read(clusters.byte_ranges(runs, disk.size)):
        yield chunk
