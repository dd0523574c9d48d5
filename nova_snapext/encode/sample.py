# SPDX-License-Identifier: Apache-2.0
"""What a disk holds, told from a small part of it."""

from __future__ import annotations

from collections.abc import Iterator

from nova_snapext.encode import clusters
from nova_snapext import read

# One cluster in so many is looked at, which hardly adds to what is read ...
STEP = 128
# ... but so many at the least, where there are, and at the most: more would
# not tell it better.
LEAST, MOST = 64, 1024


def sample(disk: read.Disk,
           data_clusters: clusters.ClusterMap) -> Iterator[memoryview]:
    """Read some of the clusters that hold data, evenly spread over the disk.

    :raises DiskReadError: the disk can't be read
    """
    count = len(data_clusters)
    wanted = min(max(count // STEP, LEAST), MOST)
    spans = data_clusters.every(max(1, count // wanted))
    for _offset, piece in disk.read(clusters.parts(spans, disk.size)):
        yield piece
