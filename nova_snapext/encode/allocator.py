# SPDX-License-Identifier: Apache-2.0
"""Allocation of compressed and uncompressed clusters, side by side.

The descriptors are those of "L2 table entry" in QEMU's docs/interop/qcow2.txt.
"""

from __future__ import annotations

import array

from nova_snapext.encode import base
from nova_snapext.encode import layout

# The content of one cluster in the image: shorter than a cluster if it is
# compressed, None if it is all zeros and takes no space. Uncompressed clusters
# may come several at once, all of them complete.
EncodedCluster = bytes | memoryview | None

# "Compressed Clusters Descriptor", bit 62. The number of additional sectors
# takes so many of the bits below that the offset has the rest.
OFLAG_COMPRESSED = 1 << 62
SECTORS_SHIFT = 62 - (layout.CLUSTER_BITS - 8)

# Compressed clusters are collected up to this size, and the batch starts at a
# cluster boundary of the image. Uncompressed clusters, which must start at
# one too, can be placed before the batch until it is full. The unused end of
# the batch's last cluster is lost, 1 % on average.
BATCH_SIZE = 16 * layout.CLUSTER_SIZE


class ClusterAllocator:
    """Allocates consecutive space for clusters, from offset 0 on.

    :ivar entries: L2 table entry of each added cluster; 0 if it takes no
        space
    :ivar refcounts: of the clusters of the image
    """

    def __init__(self) -> None:
        self.entries = array.array('Q')
        self.refcounts = array.array('H')
        self._batch = bytearray()
        # Index of the entry, and offset in the batch, of each of its clusters.
        self._batch_members: list[tuple[int, int]] = []

    @property
    def final_entries(self) -> int:
        """The number of entries, from the first, that won't change."""
        return (self._batch_members[0][0] if self._batch_members
                else len(self.entries))

    def end_after(self, cluster: EncodedCluster) -> int:
        """Return the size of the image with one more cluster, in clusters."""
        batch = len(self._batch)
        if cluster is None:
            more = 0
        elif len(cluster) >= layout.CLUSTER_SIZE:
            more = len(cluster) // layout.CLUSTER_SIZE
        elif batch + len(cluster) <= BATCH_SIZE:
            more, batch = 0, batch + len(cluster)
        else:
            more = 1
        return (len(self.refcounts) + more +
                base.ceil_div(batch, layout.CLUSTER_SIZE))

    def add(self, cluster: EncodedCluster) -> list[base.Chunk]:
        """Allocate space for the next cluster, or for several.

        :returns: the next chunks of the image, as far as they are complete,
            in whole clusters
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
        chunks = []
        if len(self._batch) + len(cluster) > BATCH_SIZE:
            chunks = self.flush()
        self._batch_members.append((len(self.entries), len(self._batch)))
        self.entries.append(len(cluster))
        self._batch += cluster
        return chunks

    def flush(self) -> list[base.Chunk]:
        """Allocate space for the batch of compressed clusters.

        :returns: the next chunks of the image, in whole clusters
        """
        first = len(self.refcounts)
        self.refcounts.extend(
            [0] * base.ceil_div(len(self._batch), layout.CLUSTER_SIZE))
        for number, begin in self._batch_members:
            self._set_descriptor(number, first * layout.CLUSTER_SIZE + begin)
        batch = memoryview(layout.pad_to_cluster(bytes(self._batch)))
        self._batch = bytearray()
        self._batch_members = []
        step = len(base.ZEROS)
        return [batch[begin:begin + step]
                for begin in range(0, len(batch), step)]

    def _set_descriptor(self, number: int, offset: int) -> None:
        last = offset + self.entries[number] - 1
        sectors = last // layout.SECTOR_SIZE - offset // layout.SECTOR_SIZE
        self.entries[number] = (
            OFLAG_COMPRESSED | sectors << SECTORS_SHIFT | offset)
        for cluster in range(offset // layout.CLUSTER_SIZE,
                             last // layout.CLUSTER_SIZE + 1):
            self.refcounts[cluster] += 1
