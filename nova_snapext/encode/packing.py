# SPDX-License-Identifier: Apache-2.0
"""Compressed clusters, and plain ones among them, one behind the other.

The descriptors are those of "L2 table entry" in QEMU's docs/interop/qcow2.txt.
"""

from __future__ import annotations

import array

from nova_snapext.encode import base
from nova_snapext.encode import layout

# What the image holds of a cluster: less, where it is compressed; or nothing,
# None, where it is all zeros. Plain ones may come several at once, all of them
# whole.
Packed = bytes | memoryview | None

# "Compressed Clusters Descriptor", bit 62; the offset has as many bits as are
# left by the number of additional sectors.
OFLAG_COMPRESSED = 1 << 62
SECTORS_SHIFT = 62 - (layout.CLUSTER_BITS - 8)

# Compressed clusters are gathered up to so many bytes, and begin with a
# cluster of the image: plain ones can pass them meanwhile, which have to begin
# with one too. What is left at the end is lost, 1 % on average.
RUN_SIZE = 16 * layout.CLUSTER_SIZE


class Packer:
    """Finds the places of clusters, from offset 0 on.

    :ivar entries: what the L2 tables say of each cluster that was added; 0 of
        one that the image has not
    :ivar refcounts: of the clusters of the image
    """

    def __init__(self) -> None:
        self.entries = array.array('Q')
        self.refcounts = array.array('H')
        self._run = bytearray()
        # Of each cluster in the run, its entry and where it begins.
        self._members: list[tuple[int, int]] = []

    @property
    def settled(self) -> int:
        """How many entries are as they stay."""
        return self._members[0][0] if self._members else len(self.entries)

    def end_with(self, cluster: Packed) -> int:
        """Tell at how many clusters the image would end with one more."""
        run = len(self._run)
        if cluster is None:
            more = 0
        elif len(cluster) >= layout.CLUSTER_SIZE:
            more = len(cluster) // layout.CLUSTER_SIZE
        elif run + len(cluster) <= RUN_SIZE:
            more, run = 0, run + len(cluster)
        else:
            more = 1
        return (len(self.refcounts) + more +
                layout.ceil(run, layout.CLUSTER_SIZE))

    def add(self, cluster: Packed) -> list[base.Piece]:
        """Find the place of the next cluster, or of several.

        :returns: what comes next in the image, if that is known now: pieces
            of whole clusters
        """
        if cluster is None:
            self.entries.append(0)
            return []
        if len(cluster) >= layout.CLUSTER_SIZE:
            count = len(cluster) // layout.CLUSTER_SIZE
            self.entries += layout.offsets(
                len(self.refcounts), count, layout.OFLAG_COPIED)
            self.refcounts.extend([1] * count)
            return [cluster]
        pieces = []
        if len(self._run) + len(cluster) > RUN_SIZE:
            pieces = self.flush()
        self._members.append((len(self.entries), len(self._run)))
        self.entries.append(len(cluster))
        self._run += cluster
        return pieces

    def flush(self) -> list[base.Piece]:
        """Have what was gathered come next.

        :returns: it
        """
        first = len(self.refcounts)
        self.refcounts.extend(
            [0] * layout.ceil(len(self._run), layout.CLUSTER_SIZE))
        for number, begin in self._members:
            self._settle(number, first * layout.CLUSTER_SIZE + begin)
        run = memoryview(layout.whole_clusters(bytes(self._run)))
        self._run = bytearray()
        self._members = []
        step = len(base.ZEROS)
        return [run[begin:begin + step]
                for begin in range(0, len(run), step)]

    def _settle(self, number: int, offset: int) -> None:
        last = offset + self.entries[number] - 1
        sectors = last // layout.SECTOR_SIZE - offset // layout.SECTOR_SIZE
        self.entries[number] = (
            OFLAG_COMPRESSED | sectors << SECTORS_SHIFT | offset)
        for cluster in range(offset // layout.CLUSTER_SIZE,
                             last // layout.CLUSTER_SIZE + 1):
            self.refcounts[cluster] += 1
