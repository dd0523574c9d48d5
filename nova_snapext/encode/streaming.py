# SPDX-License-Identifier: Apache-2.0
"""A qcow2 image without zeros, compressed or not, sent while it is made.

A reader finds everything in a qcow2 image through its header, which comes
first and contains the offset of the tables, which in turn contain the offset
of each cluster. How many clusters contain more than zeros, and their size when
compressed, is not known when the header is sent. So the tables are placed
*after* about as many clusters as a sample of the disk makes expect. The
clusters before the tables are sent as soon as they are read and compressed.
Only the clusters after the tables have to be read before the tables can be
sent. These are few, and are kept in a buffer; clusters that exceed the buffer
are read and compressed a second time. However long that takes, and however
many zeros follow each other, some bytes are sent every few seconds.

The codecs are deterministic and the disk is frozen: all streams are identical.
"""

from __future__ import annotations

import array
import collections
from collections.abc import Callable
from collections.abc import Generator
from collections.abc import Iterable
from collections.abc import Iterator
from concurrent import futures
import contextlib
import dataclasses
import itertools
import statistics
import typing as ty

from oslo_utils import timeutils

from nova_snapext import compat
from nova_snapext.encode import allocator
from nova_snapext.encode import base
from nova_snapext.encode import clusters
from nova_snapext.encode import codec as codecs
from nova_snapext.encode import keepalive
from nova_snapext.encode import layout
from nova_snapext.encode import sample
from nova_snapext import read

# A cluster is stored uncompressed unless compression saves more than this
# share of it: a compressed cluster has to be inflated each time that a guest
# reads a sector of it.
MIN_CLUSTER_SAVING = 1 / 16

# Chunks of 512 KiB that are being compressed, or are compressed and not sent
# yet: for each thread, and in total.
CHUNKS_PER_THREAD, MAX_CHUNKS = 8, 32

# What a cluster gives that completes no chunk, for keepalive.
NO_CHUNKS = (None,)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The size of the clusters with data in the image, estimated by a sample.

    :param sizes: of each cluster of the sample, in bytes
    """

    sizes: array.array[int]

    @property
    def mean(self) -> float:
        """Mean size of a cluster, in bytes; a cluster of zeros has size 0."""
        return statistics.fmean(self.sizes) if self.sizes else 0.0

    @property
    def error(self) -> float:
        """Standard error of the mean, in bytes.

        Computed from the mean square of successive differences (von Neumann
        and others, Annals of Mathematical Statistics 12, 1941): data and
        zeros form long runs, for which an evenly spread sample is much more
        accurate than a random one.
        """
        count = len(self.sizes)
        if count < 2:
            return 0.0
        squares = sum((one - other) ** 2 for one, other
                      in itertools.pairwise(self.sizes))
        return float((squares / (2 * (count - 1) * count)) ** 0.5)

    @property
    def has_zeros(self) -> bool:
        return 0 in self.sizes

    @property
    def saving(self) -> float:
        """Share of the data, without zeros, that is saved, from 0 to 1."""
        return 1 - self.mean / (self.uncompressed().mean or 1)

    def uncompressed(self) -> Estimate:
        """Return the estimate for the same sample without compression."""
        return Estimate(array.array('I', (
            layout.CLUSTER_SIZE if size else 0 for size in self.sizes)))


def estimate_size(disk: read.Disk, data_clusters: clusters.ClusterMap,
                  codec: codecs.Codec,
                  max_clusters: int = sample.MAX_CLUSTERS) -> Estimate:
    """Compress a sample of a disk.

    :param max_clusters: size of the sample at most, roughly
    :raises DiskReadError: the disk can't be read
    """
    return Estimate(array.array('I', (
        len(cluster or b'')
        for chunk in sample.sample(disk, data_clusters, max_clusters)
        for cluster in _encode(codec, chunk))))


def _encode(codec: codecs.Codec,
            chunk: memoryview) -> list[allocator.EncodedCluster]:
    """Compress the clusters of a chunk of the disk, and drop zeros.

    :param chunk: starts at a cluster boundary; its last cluster may be cut
        short by the end of the disk
    """
    found: list[allocator.EncodedCluster] = []
    # Start of the consecutive uncompressed clusters before the current one.
    plain = 0
    for begin in range(0, len(chunk), layout.CLUSTER_SIZE):
        end = begin + layout.CLUSTER_SIZE
        encoded = _encode_cluster(codec, chunk[begin:end])
        if isinstance(encoded, memoryview):
            if plain < begin:
                found.pop()
            found.append(chunk[plain:end])
        else:
            found.append(encoded)
            plain = end
    return found


def _encode_cluster(codec: codecs.Codec,
                    cluster: memoryview) -> allocator.EncodedCluster:
    """Compress one cluster.

    :returns: the cluster itself if it is stored uncompressed
    """
    if read.is_zero(cluster):
        return None
    whole: memoryview | bytes = cluster
    if len(cluster) < layout.CLUSTER_SIZE:
        whole = layout.pad_to_cluster(bytes(cluster))
    compressed = codec.compress(whole)
    return compressed if len(compressed) < (
        1 - MIN_CLUSTER_SAVING) * layout.CLUSTER_SIZE else whole


class _Tail(ty.NamedTuple):
    """The clusters after the tables.

    :ivar buffered: those in the buffer
    :ivar chunks: their content
    :ivar rest: those that follow, whose content is not kept
    """

    buffered: allocator.ClusterAllocator
    chunks: list[base.Chunk]
    rest: allocator.ClusterAllocator


class StreamingQcow2Image:
    """A qcow2 version 3 image without zeros, compressed or not.

    :param data_clusters: of the disk
    :param estimate: of their size in the image
    :param buffer_size: bytes of the image to keep in memory
    :param threads: number of threads that compress; 0: the thread that reads
        the stream compresses
    :param clock: returns seconds; it must not jump
    """

    def __init__(self, disk: read.Disk, data_clusters: clusters.ClusterMap,
                 codec: codecs.Codec, estimate: Estimate, buffer_size: int,
                 threads: int,
                 clock: Callable[[], float] = timeutils.now) -> None:
        self._disk = disk
        self._map = data_clusters
        self._codec = codec
        self._buffer_size = buffer_size
        self._threads = threads
        self._clock = clock
        self._size: int | None = None
        # So that the tail is likely to fit into the buffer.
        head = (len(data_clusters) * (estimate.mean + estimate.error) -
                buffer_size)
        # For the largest image that may result.
        self._layout = layout.make_layout(
            disk.size, len(data_clusters.tables()), len(data_clusters),
            refcount_table=1 + base.ceil_div(max(0, int(head)),
                                             layout.CLUSTER_SIZE))
        tables = self._layout.first_data - self._layout.refcount_table
        self._expected_size = ((1 + tables) * layout.CLUSTER_SIZE +
                               int(len(data_clusters) * estimate.mean))

    @property
    def codec(self) -> codecs.Codec:
        return self._codec

    @property
    def size(self) -> int | None:
        return self._size

    @property
    def expected_size(self) -> int:
        return self._size or self._expected_size

    def chunks(self) -> Iterator[base.Chunk]:
        return keepalive.keep_alive(self._chunks(), self._clock)

    def _chunks(self) -> Iterator[base.Chunk | None]:
        """Return the image, and None for clusters that complete no chunk."""
        yield layout.header(self._layout, self._disk.size,
                            self._codec.compression_type)
        head = allocator.ClusterAllocator()
        with contextlib.closing(self._clusters()) as found:
            left_over = yield from self._head(head, found)
            tail = yield from self._tail(itertools.chain(left_over, found))
        yield from self._tables(head, tail)
        yield from tail.chunks
        yield from self._unbuffered_tail(
            len(head.sizes) + len(tail.buffered.sizes), tail.rest.sizes)

    def _head(
        self, head: allocator.ClusterAllocator,
        found: Iterator[allocator.EncodedCluster],
    ) -> Generator[base.Chunk | None, None, list[allocator.EncodedCluster]]:
        """Return the clusters before the tables, and pad up to these.

        :returns: the cluster that was read and does not fit any more, if any
        """
        limit = self._layout.refcount_table - 1
        left_over = []
        for cluster in found:
            if head.end_after(cluster) > limit:
                left_over = [cluster]
                break
            yield from head.add(cluster) or NO_CHUNKS
        yield from head.flush()
        yield from base.zeros(
            (limit - head.end) * layout.CLUSTER_SIZE)
        return left_over

    def _tail(
        self, found: Iterator[allocator.EncodedCluster],
    ) -> Generator[None, None, _Tail]:
        """Allocate the clusters after the tables."""
        buffered = allocator.ClusterAllocator()
        chunks: list[base.Chunk] = []
        left = self._buffer_size
        for cluster in found:
            yield None
            # A view would keep the whole read buffer in use.
            if isinstance(cluster, memoryview):
                cluster = bytes(cluster)
            chunks += buffered.add(cluster)
            left -= len(cluster or b'')
            if left <= 0:
                break
        chunks += buffered.flush()
        rest = allocator.ClusterAllocator()
        for cluster in found:
            yield None
            rest.add(cluster)
        rest.flush()
        return _Tail(buffered, chunks, rest)

    def _unbuffered_tail(self, skip: int,
                         expected: Iterable[int],
                         ) -> Iterator[base.Chunk | None]:
        """Read and compress the part of the tail that was not buffered.

        :param skip: number of clusters before it
        :param expected: sizes of its clusters
        :raises EncodeError: the result differs from the first one
        """
        repeated = allocator.ClusterAllocator()
        left = iter(expected)
        with contextlib.closing(self._clusters(skip)) as found:
            for cluster in found:
                sizes = allocator.sizes_of(cluster)
                if sizes != list(itertools.islice(left, len(sizes))):
                    raise base.EncodeError(
                        image_format='qcow2',
                        reason='a cluster was read twice, with different '
                               'results')
                yield from repeated.place(cluster) or NO_CHUNKS
        yield from repeated.flush()

    def _tables(self, head: allocator.ClusterAllocator,
                tail: _Tail) -> Iterator[base.Chunk]:
        """Return the refcounts and mappings of all clusters."""
        sizes = itertools.chain(
            head.sizes, tail.buffered.sizes, tail.rest.sizes)
        # All sizes of a table are taken, also those after the first above 0.
        tables = [table for table in self._map.tables()
                  if max(itertools.islice(sizes, self._map.count(table)))]
        final = layout.make_layout(
            self._disk.size, len(tables), tail.buffered.end + tail.rest.end,
            refcount_table=self._layout.refcount_table,
            refcount_table_clusters=self._layout.refcount_table_clusters)
        self._size = final.end * layout.CLUSTER_SIZE
        yield from layout.refcount_table(final)
        yield from layout.l1_table(final, tables)
        yield from _refcount_blocks(final, head, tail)
        entries = itertools.chain(
            head.entries(1), tail.buffered.entries(final.first_data),
            tail.rest.entries(final.first_data + tail.buffered.end))
        for table in self._map.tables():
            content = layout.empty_table(layout.TABLE_ENTRIES)
            for begin, end in self._map.runs(table):
                content[begin:end] = array.array(
                    'Q', itertools.islice(entries, end - begin))
            if any(content):
                yield from layout.table(content)

    def _clusters(
        self, skip: int = 0,
    ) -> Generator[allocator.EncodedCluster, None, None]:
        """Read and encode the clusters with data, several in parallel.

        :param skip: number of clusters to leave out at the start
        """
        chunks = self._disk.read(clusters.byte_ranges(
            self._map.disk_runs(skip), self._disk.size))
        if not self._threads:
            for _offset, chunk in chunks:
                yield from _encode(self._codec, chunk)
            return
        pool = compat.thread_pool(self._threads, 'snapext-compress')
        limit = min(self._threads * CHUNKS_PER_THREAD, MAX_CHUNKS)
        pending: collections.deque[
            futures.Future[list[allocator.EncodedCluster]]
        ] = collections.deque()
        try:
            for _offset, chunk in chunks:
                if len(pending) == limit:
                    yield from pending.popleft().result()
                pending.append(pool.submit(_encode, self._codec, chunk))
            while pending:
                yield from pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _refcount_blocks(final: layout.Layout, head: allocator.ClusterAllocator,
                     tail: _Tail) -> Iterator[base.Chunk]:
    """Return the refcount of each cluster of an image."""
    counts = itertools.chain(
        [1], head.refcounts(),
        itertools.repeat(0, final.refcount_table - 1 - head.end),
        itertools.repeat(1, final.first_data - final.refcount_table),
        tail.buffered.refcounts(), tail.rest.refcounts())
    while block := array.array(
            'H', itertools.islice(counts, layout.BLOCK_REFCOUNTS)):
        yield from layout.table(block)
