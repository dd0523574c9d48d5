# SPDX-License-Identifier: Apache-2.0
"""A qcow2 image with its tables first, whose size is known in advance."""

from __future__ import annotations

from collections.abc import Iterator

from nova_snapext.encode import base
from nova_snapext.encode import clusters
from nova_snapext.encode import layout
from nova_snapext import read

ONE = b'\0\1'


class PlainQcow2Image:
    """A qcow2 version 3 image of all allocated clusters, also of zeros.

    :param data_clusters: of the disk
    """

    def __init__(self, disk: read.Disk,
                 data_clusters: clusters.ClusterMap) -> None:
        self._disk = disk
        self._map = data_clusters
        self._tables = self._map.tables()
        self._layout = layout.make_layout(disk.size, len(self._tables),
                                          len(self._map))

    @property
    def size(self) -> int:
        return self._layout.end * layout.CLUSTER_SIZE

    @property
    def expected_size(self) -> int:
        return self.size

    def chunks(self) -> Iterator[base.Chunk]:
        yield layout.header(self._layout, self._disk.size)
        yield from layout.refcount_table(self._layout)
        yield from layout.l1_table(self._layout, self._tables)
        yield from self._refcounts()
        yield from self._l2_tables()
        yield from self._data()

    def _refcounts(self) -> Iterator[base.Chunk]:
        full, rest = divmod(self._layout.end, layout.BLOCK_REFCOUNTS)
        block = ONE * layout.BLOCK_REFCOUNTS
        for _block in range(full):
            yield block
        if rest:
            yield layout.pad_to_cluster(ONE * rest)

    def _l2_tables(self) -> Iterator[base.Chunk]:
        cluster = self._layout.first_data
        for table in self._tables:
            entries = layout.empty_table(layout.TABLE_ENTRIES)
            for begin, end in self._map.runs(table):
                entries[begin:end] = layout.offsets(
                    cluster, end - begin, layout.OFLAG_COPIED)
                cluster += end - begin
            yield from layout.table(entries)

    def _data(self) -> Iterator[base.Chunk]:
        position = 0
        for offset, chunk in self._disk.read(
                clusters.byte_ranges(self._map.disk_runs(), self._disk.size)):
            yield chunk
            position = offset + len(chunk)
        # The disk may end within its last cluster, the image may not.
        yield from base.zeros(-position % layout.CLUSTER_SIZE)
