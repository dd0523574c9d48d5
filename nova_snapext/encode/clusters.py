# SPDX-License-Identifier: Apache-2.0
"""The set of a disk's clusters that contain data, in little memory."""

from __future__ import annotations

import collections
from collections.abc import Iterable
from collections.abc import Iterator

from nova_snapext.encode import base
from nova_snapext.encode import layout
from nova_snapext import read

# Clusters that one L2 table maps.
TABLE_CLUSTERS = layout.TABLE_ENTRIES


class ClusterMap:
    """A bit for each cluster, in one integer per L2 table.

    A table without data takes no memory, however large the disk says it is.
    With clusters of 64 KiB, 1 TiB takes at most 2 MiB, no matter how its data
    is scattered.
    """

    def __init__(self) -> None:
        self._tables: dict[int, int] = collections.defaultdict(int)

    @classmethod
    def of_disk(cls, disk: read.Disk,
                cluster_size: int = layout.CLUSTER_SIZE) -> ClusterMap:
        """Return the map of a disk, without reading its data.

        To the NBD server, zeros that a guest wrote are data, and so are all
        zeros of a block device.

        :param cluster_size: in bytes
        :raises DiskReadError: the server fails
        """
        found = cls()
        for extent in disk.extents():
            if extent.data:
                found.add(extent.offset // cluster_size,
                          base.ceil_div(extent.end, cluster_size))
        return found

    def __len__(self) -> int:
        """Return the number of clusters that contain data."""
        return sum(bits.bit_count() for bits in self._tables.values())

    def add(self, first: int, end: int) -> None:
        """Add clusters that contain data.

        :param first: number of the first cluster
        :param end: number of the last cluster plus one
        """
        while first < end:
            table, begin = divmod(first, TABLE_CLUSTERS)
            stop = min(TABLE_CLUSTERS, begin + end - first)
            self._tables[table] |= (1 << stop) - (1 << begin)
            first += stop - begin

    def tables(self) -> list[int]:
        """Return the numbers of the L2 tables with data, ascending."""
        return sorted(self._tables)

    def count(self, table: int) -> int:
        """Return the number of clusters with data in a table."""
        return self._tables[table].bit_count()

    def runs(self, table: int) -> Iterator[tuple[int, int]]:
        """Return the runs of clusters with data in a table, ascending.

        :param table: number of the table
        :returns: for each run the number of its first cluster, and that of
            its last cluster plus one, counted within the table
        """
        # A string of bits can be searched at the speed of C.
        flags = f'{self._tables[table]:b}'[::-1]
        begin = flags.find('1')
        while begin >= 0:
            end = flags.find('0', begin)
            if end < 0:
                end = len(flags)
            yield begin, end
            begin = flags.find('1', end)

    def disk_runs(self, skip: int = 0) -> Iterator[tuple[int, int]]:
        """Return the runs of all tables, counted from the disk's start.

        :param skip: number of clusters with data to leave out at the start
        """
        for table in self.tables():
            first = table * TABLE_CLUSTERS
            for begin, end in self.runs(table):
                skipped = min(skip, end - begin)
                skip -= skipped
                if begin + skipped < end:
                    yield first + begin + skipped, first + end

    def every(self, step: int) -> Iterator[tuple[int, int]]:
        """Return every n-th cluster with data, as runs of one cluster.

        :param step: n, at least 1
        """
        passed = 0
        for begin, end in self.disk_runs():
            for cluster in range(begin + -passed % step, end, step):
                yield cluster, cluster + 1
            passed += end - begin


def byte_ranges(runs: Iterable[tuple[int, int]],
                disk_size: int) -> Iterator[tuple[int, int]]:
    """Return runs of clusters as ranges of the disk.

    :param disk_size: in bytes; the last cluster may exceed it
    :returns: offset and length of each range, in bytes
    """
    for first, end in runs:
        offset = first * layout.CLUSTER_SIZE
        yield offset, min(end * layout.CLUSTER_SIZE, disk_size) - offset
