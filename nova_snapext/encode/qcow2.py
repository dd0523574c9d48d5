# SPDX-License-Identifier: Apache-2.0
"""A qcow2 image whose clusters come in the order in which they are sent.

The names are those of QEMU's docs/interop/qcow2.txt.
"""

from __future__ import annotations

import array
from collections.abc import Iterator
import dataclasses
import struct
import sys

from nova_snapext.encode import base
from nova_snapext.encode import clusters
from nova_snapext.encode import data
from nova_snapext import read

CLUSTER_BITS = 16
CLUSTER_SIZE = 1 << CLUSTER_BITS

MAGIC = b'QFI\xfb'
VERSION = 3
# "Header": version 3 up to and including header_length, no extension.
HEADER = struct.Struct('>4sIQIIQIIQQIIQQQQII')
HEADER_LENGTH = 104
# Refcounts of 1 << 4 bits.
REFCOUNT_ORDER = 4

# Entries of the tables, and refcounts in a refcount block.
TABLE_ENTRIES = CLUSTER_SIZE // 8
BLOCK_REFCOUNTS = CLUSTER_SIZE // 2

# "Standard Cluster Descriptor", bit 63: the refcount is exactly one.
OFLAG_COPIED = 1 << 63

# The size is told in bytes, but QEMU leaves out what isn't a whole sector.
SECTOR_SIZE = 512

ONE = b'\0\1'


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where everything is in the image, in clusters of 64 KiB.

    Header, refcount table, refcount blocks, L1 table, L2 tables, data: each
    begins where the one before it ends.

    :ivar l1_size: entries of the L1 table
    """

    refcount_table_clusters: int
    refcount_blocks: int
    l1_size: int
    l2_tables: int
    data_clusters: int

    @property
    def refcount_table(self) -> int:
        return 1

    @property
    def first_refcount_block(self) -> int:
        return self.refcount_table + self.refcount_table_clusters

    @property
    def l1_table(self) -> int:
        return self.first_refcount_block + self.refcount_blocks

    @property
    def first_l2_table(self) -> int:
        return self.l1_table + _ceil(self.l1_size, TABLE_ENTRIES)

    @property
    def first_data(self) -> int:
        return self.first_l2_table + self.l2_tables

    @property
    def end(self) -> int:
        return self.first_data + self.data_clusters


def lay_out(l1_size: int, l2_tables: int, data_clusters: int) -> Layout:
    """Find room for refcounts of all clusters, their own among them.

    :param l1_size: entries of the L1 table
    """
    blocks = 0
    while True:
        layout = Layout(_ceil(blocks, TABLE_ENTRIES), blocks, l1_size,
                        l2_tables, data_clusters)
        needed = _ceil(layout.end, BLOCK_REFCOUNTS)
        if needed == blocks:
            return layout
        blocks = needed


def lay_out_map(disk_size: int, data_clusters: clusters.ClusterMap) -> Layout:
    """Lay out the image of a disk.

    :param disk_size: in bytes
    """
    l1_size = _ceil(_ceil(disk_size, CLUSTER_SIZE), TABLE_ENTRIES)
    return lay_out(l1_size, sum(table is not None for table
                                in data_clusters.tables()),
                   len(data_clusters))


class Qcow2Encoder(base.Encoder):
    """A plain qcow2 version 3, with only the clusters that hold data.

    Looks for the data at once, which may mean to read all of the disk.
    """

    image_format = 'qcow2'

    def __init__(self, disk: read.Disk,
                 find_data: data.FindData = data.nonzero) -> None:
        super().__init__(disk, find_data)
        self._map = clusters.ClusterMap.of(disk.size, find_data(disk),
                                           CLUSTER_SIZE)
        self._tables = [table for table in self._map.tables()
                        if table is not None]
        self._layout = lay_out_map(disk.size, self._map)

    @property
    def size(self) -> int:
        return self._layout.end * CLUSTER_SIZE

    def _pieces(self) -> Iterator[base.Piece]:
        yield _whole_clusters(self._header())
        yield from self._refcounts()
        yield from self._l1_table()
        yield from self._l2_tables()
        yield from self._data()

    def _header(self) -> bytes:
        layout = self._layout
        return HEADER.pack(
            MAGIC, VERSION,
            0, 0,                       # no backing file
            CLUSTER_BITS,
            _ceil(self.disk.size, SECTOR_SIZE) * SECTOR_SIZE,
            0,                          # not encrypted
            layout.l1_size, layout.l1_table * CLUSTER_SIZE,
            layout.refcount_table * CLUSTER_SIZE,
            layout.refcount_table_clusters,
            0, 0,                       # no snapshots
            0, 0, 0,                    # no incompatible or other features
            REFCOUNT_ORDER, HEADER_LENGTH)

    def _refcounts(self) -> Iterator[base.Piece]:
        layout = self._layout
        yield from _table(
            _offsets(layout.first_refcount_block, layout.refcount_blocks))
        full, rest = divmod(layout.end, BLOCK_REFCOUNTS)
        block = ONE * BLOCK_REFCOUNTS
        for _block in range(full):
            yield block
        if rest:
            yield _whole_clusters(ONE * rest)

    def _l1_table(self) -> Iterator[base.Piece]:
        layout = self._layout
        entries = _unallocated(layout.l1_size)
        offsets = _offsets(layout.first_l2_table, layout.l2_tables,
                           OFLAG_COPIED)
        for table, offset in zip(self._tables, offsets, strict=True):
            entries[table] = offset
        yield from _table(entries)

    def _l2_tables(self) -> Iterator[base.Piece]:
        cluster = self._layout.first_data
        for table in self._tables:
            entries = _unallocated(TABLE_ENTRIES)
            for begin, end in self._map.runs(table):
                entries[begin:end] = _offsets(cluster, end - begin,
                                              OFLAG_COPIED)
                cluster += end - begin
            yield from _table(entries)

    def _data(self) -> Iterator[base.Piece]:
        position = 0
        for offset, piece in self.disk.read(self._runs()):
            yield piece
            position = offset + len(piece)
        # The disk may end within its last cluster, the image may not.
        yield from base.zeros(-position % CLUSTER_SIZE)

    def _runs(self) -> Iterator[tuple[int, int]]:
        for table in self._tables:
            first = table * TABLE_ENTRIES
            for begin, end in self._map.runs(table):
                offset = (first + begin) * CLUSTER_SIZE
                yield offset, min((first + end) * CLUSTER_SIZE,
                                  self.disk.size) - offset


def _ceil(amount: int, unit: int) -> int:
    return -(-amount // unit)


def _unallocated(entries: int) -> array.array[int]:
    return array.array('Q', bytes(8 * entries))


def _offsets(first: int, count: int, flags: int = 0) -> array.array[int]:
    begin = first * CLUSTER_SIZE | flags
    return array.array(
        'Q', range(begin, begin + count * CLUSTER_SIZE, CLUSTER_SIZE))


def _table(entries: array.array[int]) -> Iterator[bytes]:
    for begin in range(0, len(entries), TABLE_ENTRIES):
        part = entries[begin:begin + TABLE_ENTRIES]
        if sys.byteorder == 'little':
            part.byteswap()
        yield _whole_clusters(part.tobytes())


def _whole_clusters(content: bytes) -> bytes:
    return content.ljust(CLUSTER_SIZE, b'\0')
