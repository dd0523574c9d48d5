# SPDX-License-Identifier: Apache-2.0
"""A qcow2 without zeros, and compressed or not, that is sent as it is made.

A qcow2 image is found through its header, which comes first and names the
place of its tables, which in turn name the place of each cluster. How many of
the clusters hold more than zeros, and how large they become compressed, is not
known then. So the tables are put *behind* about as many clusters as a sample
promises that there are: up to there clusters are sent as soon as they are
read, and compressed. Only what comes behind the tables is read before they are
sent. It is little, and is kept in memory; what does not fit is read and
compressed a second time.

The codecs are deterministic and the disk is frozen: each stream is the same.
"""

from __future__ import annotations

import array
import collections
from collections.abc import Generator
from collections.abc import Iterable
from collections.abc import Iterator
from concurrent import futures
import contextlib
import dataclasses
import itertools
import statistics
import typing as ty

from nova_snapext.encode import base
from nova_snapext.encode import clusters
from nova_snapext.encode import codec as codecs
from nova_snapext.encode import layout
from nova_snapext.encode import packing
from nova_snapext.encode import sample
from nova_snapext import read

# A cluster stays plain unless it shrinks by more than this share: it has to be
# inflated each time that a guest reads a sector of it.
WORTHWHILE = 1 / 16

# Pieces of 512 KiB that are being compressed, or wait for their turn to be
# sent: for each thread, and at the most.
LOOK_AHEAD, MOST_AHEAD = 8, 32


@dataclasses.dataclass(frozen=True)
class Estimate:
    """How large the clusters with data become, told from a sample.

    :param sizes: of each cluster of the sample, in bytes
    """

    sizes: array.array[int]

    @property
    def mean(self) -> float:
        """Size of a cluster, in bytes; zeros have none."""
        return statistics.fmean(self.sizes) if self.sizes else 0.0

    @property
    def error(self) -> float:
        """Standard error of the mean, in bytes.

        By the mean square of successive differences (von Neumann and others,
        Annals of Mathematical Statistics 12, 1941): data and zeros lie in long
        runs, which a sample that is spread evenly tells far better than one at
        random.
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
        """The share that is saved of what isn't zeros, from 0 to 1."""
        return 1 - self.mean / (self.uncompressed().mean or 1)

    def uncompressed(self) -> Estimate:
        """Give the estimate for the same without compression."""
        return Estimate(array.array('I', (
            layout.CLUSTER_SIZE if size else 0 for size in self.sizes)))


def estimate(disk: read.Disk, data_clusters: clusters.ClusterMap,
             codec: codecs.Codec) -> Estimate:
    """Compress a sample of a disk.

    :raises DiskReadError: the disk can't be read
    """
    return Estimate(array.array('I', (
        len(cluster or b'')
        for piece in sample.sample(disk, data_clusters)
        for cluster in _packed(codec, piece))))


def _packed(codec: codecs.Codec, piece: memoryview) -> list[packing.Packed]:
    """Leave zeros out of a piece of the disk, and compress what is worth it.

    :param piece: begins with a cluster; its last one may be cut short by the
        disk's end
    """
    found: list[packing.Packed] = []
    # Where the plain clusters begin that end here.
    plain = 0
    for begin in range(0, len(piece), layout.CLUSTER_SIZE):
        end = begin + layout.CLUSTER_SIZE
        packed = _packed_cluster(codec, piece[begin:end])
        if isinstance(packed, memoryview):
            if plain < begin:
                found.pop()
            found.append(piece[plain:end])
        else:
            found.append(packed)
            plain = end
    return found


def _packed_cluster(codec: codecs.Codec,
                    cluster: memoryview) -> packing.Packed:
    """Compress one cluster.

    :returns: the same where it stays plain
    """
    if read.is_zero(cluster):
        return None
    whole: memoryview | bytes = cluster
    if len(cluster) < layout.CLUSTER_SIZE:
        whole = layout.whole_clusters(bytes(cluster))
    packed = codec.compress(whole)
    return packed if len(packed) < (
        1 - WORTHWHILE) * layout.CLUSTER_SIZE else whole


class _Rest(ty.NamedTuple):
    """What comes behind the tables.

    :ivar packer: of all of it
    :ivar kept: of it, from its beginning
    :ivar kept_clusters: that were added until then
    """

    packer: packing.Packer
    kept: list[base.Piece]
    kept_clusters: int


class PackedQcow2Encoder(base.Encoder):
    """A qcow2 version 3 of what isn't zeros, compressed or not.

    :param data_clusters: of the disk
    :param estimated: how large they become
    :param store: bytes of the image that are kept in memory
    :param threads: that compress; 0: who reads the stream does
    """

    image_format = 'qcow2'

    def __init__(self, disk: read.Disk, data_clusters: clusters.ClusterMap,
                 codec: codecs.Codec, estimated: Estimate, store: int,
                 threads: int) -> None:
        super().__init__(disk)
        self._map = data_clusters
        self._codec = codec
        self._store = store
        self._threads = threads
        self._size: int | None = None
        # So that the rest can be expected to fit into the store.
        front = len(data_clusters) * (estimated.mean + estimated.error) - store
        # The largest image that it can become.
        self._layout = layout.lay_out(
            disk.size, len(data_clusters.tables()), len(data_clusters),
            refcount_table=1 + layout.ceil(max(0, int(front)),
                                           layout.CLUSTER_SIZE))
        tables = self._layout.first_data - self._layout.refcount_table
        self._expected_size = ((1 + tables) * layout.CLUSTER_SIZE +
                               int(len(data_clusters) * estimated.mean))

    @property
    def size(self) -> int | None:
        return self._size

    @property
    def expected_size(self) -> int:
        return self._size or self._expected_size

    def _pieces(self) -> Iterator[base.Piece]:
        yield layout.header(self._layout, self.disk.size,
                            self._codec.compression_type)
        front = packing.Packer()
        with contextlib.closing(self._clusters()) as found:
            passed_on = yield from self._front(front, found)
            rest = self._rest(itertools.chain(passed_on, found))
        yield from self._tables(front, rest.packer)
        yield from rest.kept
        yield from self._once_more(len(front.entries), rest)

    def _front(
        self, packer: packing.Packer, found: Iterator[packing.Packed],
    ) -> Generator[base.Piece, None, list[packing.Packed]]:
        """Give what comes before the tables, and fill it up to them.

        :returns: of what was taken, the cluster that does not fit any more
        """
        room = self._layout.refcount_table - 1
        passed_on = []
        for cluster in found:
            if packer.end_with(cluster) > room:
                passed_on = [cluster]
                break
            yield from packer.add(cluster)
        yield from packer.flush()
        yield from base.zeros(
            (room - len(packer.refcounts)) * layout.CLUSTER_SIZE)
        return passed_on

    def _rest(self, found: Iterable[packing.Packed]) -> _Rest:
        """Find the places of what comes behind the tables."""
        packer = packing.Packer()
        kept: list[base.Piece] = []
        room, kept_clusters = self._store, 0
        for cluster in found:
            # Where it is kept, the buffer that it is in would be too.
            if isinstance(cluster, memoryview) and room > 0:
                cluster = bytes(cluster)
            pieces = packer.add(cluster)
            if room > 0:
                room -= len(cluster or b'')
                kept += pieces
                kept_clusters = len(packer.entries)
                if room <= 0:
                    kept += packer.flush()
        last = packer.flush()
        if room > 0:
            kept += last
        return _Rest(packer, kept, kept_clusters)

    def _once_more(self, passed_over: int,
                   rest: _Rest) -> Iterator[base.Piece]:
        """Give what was not kept of the rest.

        :param passed_over: how many clusters came before the rest
        :raises EncodeError: it has become something else
        """
        packer = packing.Packer()
        skipped = passed_over + rest.kept_clusters
        expected = rest.packer.entries[rest.kept_clusters:]
        before = sum(map(len, rest.kept))
        checked = 0

        def as_before(pieces: list[base.Piece]) -> list[base.Piece]:
            nonlocal checked
            now = _moved(packer.entries[checked:packer.settled], before)
            if now != expected[checked:packer.settled]:
                raise base.EncodeError(
                    image_format=self.image_format,
                    reason='a cluster was read twice, with results that '
                           'differ')
            checked = packer.settled
            return pieces

        with contextlib.closing(self._clusters(skipped)) as found:
            for cluster in found:
                yield from as_before(packer.add(cluster))
        yield from as_before(packer.flush())

    def _tables(self, front: packing.Packer,
                rest: packing.Packer) -> Iterator[base.Piece]:
        """Give refcounts and mappings, now that all is known."""
        counts = [sum(end - begin for begin, end in self._map.runs(table))
                  for table in self._map.tables()]
        behind = dict(zip(self._map.tables(), itertools.pairwise(
            itertools.accumulate(counts, initial=0)), strict=True))
        entries = front.entries + rest.entries
        tables = [table for table, (begin, end) in behind.items()
                  if any(entries[begin:end])]
        laid_out = layout.lay_out(
            self.disk.size, len(tables), len(rest.refcounts),
            refcount_table=self._layout.refcount_table,
            refcount_table_clusters=self._layout.refcount_table_clusters)
        entries = (_moved(front.entries, layout.CLUSTER_SIZE) +
                   _moved(rest.entries,
                          laid_out.first_data * layout.CLUSTER_SIZE))
        self._size = laid_out.end * layout.CLUSTER_SIZE
        yield from layout.refcount_table(laid_out)
        yield from layout.l1_table(laid_out, tables)
        yield from layout.table(_refcounts(laid_out, front, rest))
        for table in tables:
            begin, _end = behind[table]
            content = layout.unallocated(layout.TABLE_ENTRIES)
            for first, end in self._map.runs(table):
                content[first:end] = entries[begin:begin + end - first]
                begin += end - first
            yield from layout.table(content)

    def _clusters(
        self, skipped: int = 0,
    ) -> Generator[packing.Packed, None, None]:
        """Read and pack the clusters with data, several at once.

        :param skipped: so many are passed over
        """
        pieces = self.disk.read(clusters.parts(
            self._map.spans(skipped), self.disk.size))
        if not self._threads:
            for _offset, piece in pieces:
                yield from _packed(self._codec, piece)
            return
        pool = futures.ThreadPoolExecutor(self._threads, 'snapext-compress')
        ahead = min(self._threads * LOOK_AHEAD, MOST_AHEAD)
        pending: collections.deque[
            futures.Future[list[packing.Packed]]] = collections.deque()
        try:
            for _offset, piece in pieces:
                if len(pending) == ahead:
                    yield from pending.popleft().result()
                pending.append(pool.submit(_packed, self._codec, piece))
            while pending:
                yield from pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _moved(entries: array.array[int], offset: int) -> array.array[int]:
    """Give the entries of clusters that lie further back.

    :param offset: by so many bytes, in whole clusters
    """
    return array.array('Q', (entry + offset if entry else 0
                             for entry in entries))


def _refcounts(laid_out: layout.Layout, front: packing.Packer,
               rest: packing.Packer) -> array.array[int]:
    """Give the refcount of each cluster of an image."""
    unused = laid_out.refcount_table - 1 - len(front.refcounts)
    tables = laid_out.first_data - laid_out.refcount_table
    return (array.array('H', [1]) + front.refcounts +
            array.array('H', [0] * unused) +
            array.array('H', [1] * tables) + rest.refcounts)
