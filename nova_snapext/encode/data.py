# SPDX-License-Identifier: Apache-2.0
"""Which parts of a disk an image has to hold.

Each function here gives the extents of data of a disk, in ascending order;
all the rest of it reads as zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator

from oslo_log import log as logging

from nova_snapext.encode import clusters
from nova_snapext.encode import layout
from nova_snapext.encode import sample
from nova_snapext import read

LOG = logging.getLogger(__name__)

FindData = Callable[[read.Disk], Iterator[read.Extent]]

# Bytes that are looked at together.
GRAIN = layout.CLUSTER_SIZE

# To look at all of a disk takes about as long as to send a twentieth of it.
WORTHWHILE = 0.05


def allocated(disk: read.Disk) -> Iterator[read.Extent]:
    """Trust the server: find data wherever it promises no zeros.

    Reads nothing of the disk. The zeros that a guest wrote, and those of a
    block device, count as data.
    """
    return (extent for extent in disk.extents() if extent.data)


def nonzero(disk: read.Disk) -> Iterator[read.Extent]:
    """Read all that is allocated, and find data where it isn't all zeros."""
    return read.coalesced(_nonzero_grains(disk))


def sampled(disk: read.Disk) -> Iterator[read.Extent]:
    """Look for zeros where a sample shows that there are many of them."""
    zeros = share_of_zeros(disk)
    LOG.debug('Of what %(disk)s has allocated, %(share).1f %% of a sample are '
              'zeros', {'disk': disk.uri, 'share': 100 * zeros})
    return nonzero(disk) if zeros >= WORTHWHILE else allocated(disk)


def share_of_zeros(disk: read.Disk) -> float:
    """Estimate how much of what is allocated is zeros, from 0 to 1."""
    looks = [read.is_zero(cluster) for cluster in sample.sample(
        disk, clusters.ClusterMap.of(disk.size, allocated(disk)))]
    return sum(looks) / len(looks) if looks else 0.0


#: By the values of [snapext]find_zeros.
FIND: dict[str, FindData] = {
    'always': nonzero,
    'auto': sampled,
    'never': allocated,
}


def _nonzero_grains(disk: read.Disk) -> Iterator[read.Extent]:
    runs = ((extent.offset, extent.length) for extent in allocated(disk))
    for offset, piece in disk.read(runs):
        # The first grain may be a part of one: pieces begin and end where
        # the server's extents do.
        begin = 0
        while begin < len(piece):
            end = min(begin + GRAIN - (offset + begin) % GRAIN, len(piece))
            if not read.is_zero(piece[begin:end]):
                yield read.Extent(offset + begin, end - begin, True)
            begin = end
