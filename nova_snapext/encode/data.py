# SPDX-License-Identifier: Apache-2.0
"""Which parts of a disk an image has to hold.

Each function here gives the extents of data of a disk, in ascending order;
all the rest of it reads as zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator

from nova_snapext import read

FindData = Callable[[read.Disk], Iterator[read.Extent]]

# Bytes that are looked at together: a qcow2 cluster.
GRAIN = 64 * 1024


def allocated(disk: read.Disk) -> Iterator[read.Extent]:
    """Trust the server: find data wherever it promises no zeros.

    Reads nothing of the disk. The zeros that a guest wrote, and those of a
    block device, count as data.
    """
    return (extent for extent in disk.extents() if extent.data)


def nonzero(disk: read.Disk) -> Iterator[read.Extent]:
    """Read all that is allocated, and find data where it isn't all zeros."""
    return read.coalesced(_nonzero_grains(disk))


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
