# SPDX-License-Identifier: Apache-2.0
"""Where everything is in a qcow2 image that is written front to back.

The names are those of QEMU's docs/interop/qcow2.txt.
"""

from __future__ import annotations

import array
from collections.abc import Iterable
from collections.abc import Iterator
import dataclasses
import struct
import sys

CLUSTER_BITS = 16
CLUSTER_SIZE = 1 << CLUSTER_BITS

MAGIC = b'QFI\xfb'
VERSION = 3
# "Header": version 3 up to and including header_length, no extension; and
# what comes behind it where there is another compression type than zlib.
HEADER = struct.Struct('>4sIQIIQIIQQIIQQQQII')
HEADER_LENGTH = 104
COMPRESSION_TYPE = struct.Struct('>B7x')
# "Compression type bit" of the incompatible features.
INCOMPATIBLE_COMPRESSION_TYPE = 1 << 3
# Refcounts of 1 << 4 bits.
REFCOUNT_ORDER = 4

# Entries of the tables, and refcounts in a refcount block.
TABLE_ENTRIES = CLUSTER_SIZE // 8
BLOCK_REFCOUNTS = CLUSTER_SIZE // 2

# "Standard Cluster Descriptor", bit 63: the refcount is exactly one.
OFLAG_COPIED = 1 << 63

# The size is told in bytes, but QEMU leaves out what isn't a whole sector.
SECTOR_SIZE = 512


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where everything is in the image, in clusters of 64 KiB.

    Header, refcount table, L1 table, refcount blocks, L2 tables, data: each
    begins where the one before it ends. Only the refcount table may be
    further back, with data between the header and it.

    :ivar l1_size: entries of the L1 table
    :ivar data_clusters: behind the tables
    """

    l1_size: int
    l2_tables: int
    data_clusters: int
    refcount_blocks: int
    refcount_table_clusters: int
    refcount_table: int

    @property
    def l1_table(self) -> int:
        return self.refcount_table + self.refcount_table_clusters

    @property
    def first_refcount_block(self) -> int:
        return self.l1_table + ceil(self.l1_size, TABLE_ENTRIES)

    @property
    def first_l2_table(self) -> int:
        return self.first_refcount_block + self.refcount_blocks

    @property
    def first_data(self) -> int:
        return self.first_l2_table + self.l2_tables

    @property
    def end(self) -> int:
        return self.first_data + self.data_clusters


def lay_out(disk_size: int, l2_tables: int, data_clusters: int, *,
            refcount_table: int = 1,
            refcount_table_clusters: int = 0) -> Layout:
    """Find room for refcounts of all clusters, their own among them.

    :param disk_size: in bytes
    :param data_clusters: behind the tables
    :param refcount_table: place of the refcount table
    :param refcount_table_clusters: that it has at the least
    """
    l1_size = ceil(ceil(disk_size, CLUSTER_SIZE), TABLE_ENTRIES)
    blocks = 0
    while True:
        layout = Layout(
            l1_size, l2_tables, data_clusters, blocks,
            max(refcount_table_clusters, ceil(blocks, TABLE_ENTRIES)),
            refcount_table)
        needed = ceil(layout.end, BLOCK_REFCOUNTS)
        if needed == blocks:
            return layout
        blocks = needed


def header(layout: Layout, disk_size: int, compression_type: int = 0) -> bytes:
    """Give the header's cluster.

    It does not depend on how many refcount blocks, L2 tables and clusters of
    data there are.

    :param disk_size: in bytes
    :param compression_type: number of it; 0 is zlib's
    """
    features, length, more = 0, HEADER_LENGTH, b''
    if compression_type:
        features = INCOMPATIBLE_COMPRESSION_TYPE
        more = COMPRESSION_TYPE.pack(compression_type)
        length += len(more)
    return whole_clusters(HEADER.pack(
        MAGIC, VERSION,
        0, 0,                       # no backing file
        CLUSTER_BITS,
        ceil(disk_size, SECTOR_SIZE) * SECTOR_SIZE,
        0,                          # not encrypted
        layout.l1_size, layout.l1_table * CLUSTER_SIZE,
        layout.refcount_table * CLUSTER_SIZE,
        layout.refcount_table_clusters,
        0, 0,                       # no snapshots
        features, 0, 0,             # no compatible or autoclear features
        REFCOUNT_ORDER, length) + more)


def refcount_table(layout: Layout) -> Iterator[bytes]:
    """Give the clusters of the refcount table."""
    entries = unallocated(layout.refcount_table_clusters * TABLE_ENTRIES)
    entries[:layout.refcount_blocks] = offsets(
        layout.first_refcount_block, layout.refcount_blocks)
    return table(entries)


def l1_table(layout: Layout, tables: Iterable[int]) -> Iterator[bytes]:
    """Give the clusters of the L1 table.

    :param tables: numbers of the L2 tables that the image has, ascending
    """
    entries = unallocated(layout.l1_size)
    places = offsets(layout.first_l2_table, layout.l2_tables, OFLAG_COPIED)
    for number, offset in zip(tables, places, strict=True):
        entries[number] = offset
    return table(entries)


def table(entries: array.array[int]) -> Iterator[bytes]:
    """Give numbers of any size as whole clusters, big-endian as in qcow2."""
    step = CLUSTER_SIZE // entries.itemsize
    for begin in range(0, len(entries), step):
        part = entries[begin:begin + step]
        if sys.byteorder == 'little':
            part.byteswap()
        yield whole_clusters(part.tobytes())


def offsets(first: int, count: int, flags: int = 0) -> array.array[int]:
    """Give the offsets of consecutive clusters, in bytes.

    :param flags: that each of them has beside
    """
    begin = first * CLUSTER_SIZE | flags
    return array.array(
        'Q', range(begin, begin + count * CLUSTER_SIZE, CLUSTER_SIZE))


def unallocated(entries: int) -> array.array[int]:
    """Give a table that maps nothing."""
    return array.array('Q', bytes(8 * entries))


def whole_clusters(content: bytes) -> bytes:
    """Fill what isn't a whole cluster, or several, up with zeros."""
    return content.ljust(ceil(len(content), CLUSTER_SIZE) * CLUSTER_SIZE,
                         b'\0')


def ceil(amount: int, unit: int) -> int:
    """Tell how many units something takes."""
    return -(-amount // unit)
