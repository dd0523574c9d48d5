# SPDX-License-Identifier: Apache-2.0
"""A qcow2 image whose clusters come in the order in which they are sent."""

from __future__ import annotations

from collections.abc import Iterator

from nova_snapext.encode import base
from nova_snapext.encode import clusters
from nova_snapext.encode import layout
from nova_snapext import read

ONE = b'\0\1'


class Qcow2Encoder(base.Encoder):
    """A plain qcow2 version 3 of all that is allocated, zeros among it.

    :param data_clusters: of the disk
    """

    image_format = 'qcow2'

    def __init__(self, disk: read.Disk,
                 data_clusters: clusters.ClusterMap) -> None:
        super().__init__(disk)
        self._map = data_clusters
        self._tables = self._map.tables()
        self._layout = layout.lay_out(disk.size, len(self._tables),
                                      len(self._map))

    @property
    def size(self) -> int:
        return self._layout.end * layout.CLUSTER_SIZE

    def _pieces(self) -> Iterator[base.Piece]:
        yield layout.header(self._layout, self.disk.size)
        yield from layout.refcount_table(self._layout)
        yield from layout.l1_table(self._layout, self._tables)
        yield from self._refcounts()
        yield from self._l2_tables()
        yield from self._data()

    def _refcounts(self) -> Iterator[base.Piece]:
        full, rest = divmod(self._layout.end, layout.BLOCK_REFCOUNTS)
        block = ONE * layout.BLOCK_REFCOUNTS
        for _block in range(full):
            yield block
        if rest:
            yield layout.whole_clusters(ONE * rest)

    def _l2_tables(self) -> Iterator[base.Piece]:
        cluster = self._layout.first_data
        for table in self._tables:
            entries = layout.unallocated(layout.TABLE_ENTRIES)
            for begin, end in self._map.runs(table):
                entries[begin:end] = layout.offsets(
                    cluster, end - begin, layout.OFLAG_COPIED)
                cluster += end - begin
            yield from layout.table(entries)

    def _data(self) -> Iterator[base.Piece]:
        position = 0
        for offset, piece in self.disk.read(
                clusters.parts(self._map.spans(), self.disk.size)):
            yield piece
            position = offset + len(piece)
        # The disk may end within its last cluster, the image may not.
        yield from base.zeros(-position % layout.CLUSTER_SIZE)
