# SPDX-License-Identifier: Apache-2.0
"""The layout of a qcow2 image that is written from front to back.

The names are those of QEMU's docs/interop/qcow2.txt.
"""

from __future__ import annotations

import array
from collections.abc import Iterable
from collections.abc import Iterator
import dataclasses
import struct
import sys

from nova_snapext.encode import base

CLUSTER_BITS = 16
CLUSTER_SIZE = 1 << CLUSTER_BITS

MAGIC = b'QFI\xfb'
VERSION = 3
# "Header": version 3 up to and including header_length, without extensions;
# and the additional field for another compression type than zlib.
HEADER = struct.Struct('>4sIQIIQIIQQIIQQQQII')
HEADER_LENGTH = 104
COMPRESSION_TYPE = struct.Struct('>B7x')
# "Compression type bit" of the incompatible features.
INCOMPATIBLE_COMPRESSION_TYPE = 1 << 3
# Refcounts of 1 << 4 bits.
REFCOUNT_ORDER = 4

# Entries of an L1 or L2 table, and refcounts in a refcount block.
TABLE_ENTRIES = CLUSTER_SIZE // 8
BLOCK_REFCOUNTS = CLUSTER_SIZE // 2

# "Standard Cluster Descriptor", bit 63: the refcount is exactly one.
OFLAG_COPIED = 1 << 63

# The size in the header is in bytes, but QEMU ignores a partial sector.
SECTOR_SIZE = 512


@dataclasses.dataclass(frozen=True)
class Layout:
    """The parts of an image, in clusters of 64 KiB.

    Header, refcount table, L1 table, refcount blocks, L2 tables, data: each
    begins at the end of the previous one. Only the refcount table may be
    further back, with data between the header and it.

    :ivar l1_size: entries of the L1 table
    :ivar data_clusters: after the tables
    :ivar refcount_table: number of its first cluster
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
        return self.l1_table + base.ceil_div(self.l1_size, TABLE_ENTRIES)

    @property
    def first_l2_table(self) -> int:
        return self.first_refcount_block + self.refcount_blocks

    @property
    def first_data(self) -> int:
        return self.first_l2_table + self.l2_tables

    @property
    def end(self) -> int:
        return self.first_data + self.data_clusters


def make_layout(disk_size: int, l2_tables: int, data_clusters: int, *,
                refcount_table: int = 1,
                refcount_table_clusters: int = 0) -> Layout:
    """Return a layout with refcounts for all clusters, theirs included.

    :param disk_size: in bytes
    :param data_clusters: after the tables
    :param refcount_table: number of the refcount table's first cluster
    :param refcount_table_clusters: minimum size of the refcount table
    """
    l1_size = base.ceil_div(base.ceil_div(disk_size, CLUSTER_SIZE),
                            TABLE_ENTRIES)
    blocks = 0
    while True:
        layout = Layout(
            l1_size, l2_tables, data_clusters, blocks,
            max(refcount_table_clusters,
                base.ceil_div(blocks, TABLE_ENTRIES)),
            refcount_table)
        needed = base.ceil_div(layout.end, BLOCK_REFCOUNTS)
        if needed == blocks:
            return layout
        blocks = needed


def header(layout: Layout, disk_size: int, compression_type: int = 0) -> bytes:
    """Return the cluster of the header.

    It does not depend on the number of refcount blocks, L2 tables and data
    clusters.

    :param disk_size: in bytes
    :param compression_type: its number in the header; 0 is zlib
    """
    features, length, more = 0, HEADER_LENGTH, b''
    if compression_type:
        features = INCOMPATIBLE_COMPRESSION_TYPE
        more = COMPRESSION_TYPE.pack(compression_type)
        length += len(more)
    return pad_to_cluster(HEADER.pack(
        MAGIC, VERSION,
        0, 0,                       # no backing file
        CLUSTER_BITS,
        base.ceil_div(disk_size, SECTOR_SIZE) * SECTOR_SIZE,
        0,                          # not encrypted
        layout.l1_size, layout.l1_table * CLUSTER_SIZE,
        layout.refcount_table * CLUSTER_SIZE,
        layout.refcount_table_clusters,
        0, 0,                       # no snapshots
        features, 0, 0,             # no compatible or autoclear features
        REFCOUNT_ORDER, length) + more)


def refcount_table(layout: Layout) -> Iterator[bytes]:
    """Return the clusters of the refcount table."""
    entries = empty_table(layout.refcount_table_clusters * TABLE_ENTRIES)
    entries[:layout.refcount_blocks] = offsets(
        layout.first_refcount_block, layout.refcount_blocks)
    return table(entries)


def l1_table(layout: Layout, tables: Iterable[int]) -> Iterator[bytes]:
    """Return the clusters of the L1 table.

    :param tables: numbers of the L2 tables in the image, ascending
    """
    entries = empty_table(layout.l1_size)
    table_offsets = offsets(layout.first_l2_table, layout.l2_tables,
                            OFLAG_COPIED)
    for number, offset in zip(tables, table_offsets, strict=True):
        entries[number] = offset
    return table(entries)


def table(entries: array.array[int]) -> Iterator[bytes]:
    """Return entries of any size as clusters, big-endian as in qcow2."""
    step = CLUSTER_SIZE // entries.itemsize
    for begin in range(0, len(entries), step):
        part = entries[begin:begin + step]
        if sys.byteorder == 'little':
            part.byteswap()
        yield pad_to_cluster(part.tobytes())


def offsets(first: int, count: int, flags: int = 0) -> array.array[int]:
    """Return the offsets of consecutive clusters, in bytes.

    :param flags: bits to set in each entry
    """
    begin = first * CLUSTER_SIZE | flags
    return array.array(
        'Q', range(begin, begin + count * CLUSTER_SIZE, CLUSTER_SIZE))


def empty_table(entries: int) -> array.array[int]:
    """Return a table whose entries are all unallocated."""
    return array.array('Q', bytes(8 * entries))


def pad_to_cluster(content: bytes) -> bytes:
    """Pad content with zeros to a multiple of the cluster size."""
    return content.ljust(
        base.ceil_div(len(content), CLUSTER_SIZE) * CLUSTER_SIZE, b'\0')
