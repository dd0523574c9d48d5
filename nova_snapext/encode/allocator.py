# SPDX-License-Identifier: Apache-2.0
"""Allocation of compressed and uncompressed clusters, side by side.

Where a cluster is follows from the sizes of those before it. So only the sizes
are kept; refcounts and L2 table entries are computed from them when they are
sent.

The descriptors are those of "L2 table entry" in QEMU's docs/interop/qcow2.txt.
"""

from __future__ import annotations

import array
from collections.abc import Iterator

from nova_snapext.encode import base
from nova_snapext.encode import layout
from nova_snapext.encode import sizes

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

# Size of an uncompressed cluster. Its real size does not fit into 16 bits, and
# compressed clusters are smaller.
UNCOMPRESSED = (1 << 16) - 1


def sizes_of(cluster: EncodedCluster) -> list[int]:
    """Return the size of one cluster, or of several that come at once.

    :returns: in bytes; UNCOMPRESSED, or 0 if a cluster takes no space
    """
    if cluster is None:
        return [0]
    if len(cluster) >= layout.CLUSTER_SIZE:
        return [UNCOMPRESSED] * (len(cluster) // layout.CLUSTER_SIZE)
    return [len(cluster)]


class ClusterAllocator:
    """Allocates consecutive space for clusters.

    :ivar sizes: of the added clusters, see :func:`sizes_of`
    :ivar end: size of the allocated space, in clusters
    """

    def __init__(self) -> None:
        self.sizes = sizes.ClusterSizes()
        self.end = 0
        self._batch = bytearray()
        # Of each flushed batch, its first cluster: 4 bytes for each MiB of
        # compressed data. They are enough for 256 TiB.
        self._batches = array.array('I')

    def end_after(self, cluster: EncodedCluster) -> int:
        """Return the size of the space with one more cluster, in clusters."""
        batch = len(self._batch)
        if cluster is None:
            more = 0
        elif len(cluster) >= layout.CLUSTER_SIZE:
            more = len(cluster) // layout.CLUSTER_SIZE
        elif batch + len(cluster) <= BATCH_SIZE:
            more, batch = 0, batch + len(cluster)
        else:
            more = 1
        return self.end + more + base.ceil_div(batch, layout.CLUSTER_SIZE)

    def add(self, cluster: EncodedCluster) -> list[base.Chunk]:
        """Allocate space for the next cluster, or for several.

        :returns: the next chunks of the image, as far as they are complete,
            in whole clusters
        """
        self.sizes.extend(sizes_of(cluster))
        return self.place(cluster)

    def place(self, cluster: EncodedCluster) -> list[base.Chunk]:
        """Allocate space as :meth:`add` does, but do not keep the size."""
        if cluster is None:
            return []
        if len(cluster) >= layout.CLUSTER_SIZE:
            self.end += len(cluster) // layout.CLUSTER_SIZE
            return [cluster]
        chunks = []
        if len(self._batch) + len(cluster) > BATCH_SIZE:
            chunks = self.flush()
        self._batch += cluster
        return chunks

    def flush(self) -> list[base.Chunk]:
        """Allocate space for the batch of compressed clusters.

        To be called from outside after the last cluster only.

        :returns: the next chunks of the image, in whole clusters
        """
        if self._batch:
            self._batches.append(self.end)
        self._batch += bytes(-len(self._batch) % layout.CLUSTER_SIZE)
        batch = memoryview(bytes(self._batch))
        self.end += len(batch) // layout.CLUSTER_SIZE
        self._batch = bytearray()
        step = len(base.ZEROS)
        return [batch[begin:begin + step]
                for begin in range(0, len(batch), step)]

    def refcounts(self) -> Iterator[int]:
        """Return the refcount of each allocated cluster, after the end."""
        batch = 0
        counts: list[int] = []
        for size in self.sizes:
            if size == UNCOMPRESSED:
                yield 1
            elif size:
                if batch + size > BATCH_SIZE:
                    yield from counts
                    batch, counts = 0, []
                first = batch // layout.CLUSTER_SIZE
                batch += size
                end = base.ceil_div(batch, layout.CLUSTER_SIZE)
                counts += [0] * (end - len(counts))
                for cluster in range(first, end):
                    counts[cluster] += 1
        yield from counts

    def entries(self, first: int) -> Iterator[int]:
        """Return the L2 table entry of each added cluster, after the end.

        :param first: number of the space's first cluster in the image
        :returns: 0 for a cluster that takes no space
        """
        end = first
        batches = iter(self._batches)
        begin, batch = next(batches, 0), 0
        for size in self.sizes:
            if size == UNCOMPRESSED:
                yield layout.OFLAG_COPIED | end * layout.CLUSTER_SIZE
                end += 1
            elif size:
                if batch + size > BATCH_SIZE:
                    end += base.ceil_div(batch, layout.CLUSTER_SIZE)
                    begin, batch = next(batches), 0
                yield _descriptor(
                    (first + begin) * layout.CLUSTER_SIZE + batch, size)
                batch += size
            else:
                yield 0


def _descriptor(offset: int, size: int) -> int:
    """Return the L2 table entry of a compressed cluster.

    :param offset: in the image, in bytes
    :param size: in bytes
    """
    sectors = ((offset + size - 1) // layout.SECTOR_SIZE -
               offset // layout.SECTOR_SIZE)
    return OFLAG_COMPRESSED | sectors << SECTORS_SHIFT | offset
