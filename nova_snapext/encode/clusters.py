# SPDX-License-Identifier: Apache-2.0
"""The set of a disk's clusters that hold data, in little memory."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator

from nova_snapext import read

# Clusters that one L2 table of 64 KiB maps.
TABLE_CLUSTERS = 8192


class ClusterMap:
    """A bit for every cluster, in one integer per L2 table.

    A table without data takes no memory. With clusters of 64 KiB, 1 TiB takes
    2 MiB at the most, however its data is scattered.

    :param clusters: of the disk
    """

    def __init__(self, clusters: int) -> None:
        self._tables = [0] * -(-clusters // TABLE_CLUSTERS)

    @classmethod
    def of(cls, disk_size: int, extents: Iterable[read.Extent],
           cluster_size: int) -> ClusterMap:
        """Note the clusters that extents of data touch.

        :param disk_size: in bytes
        :param cluster_size: in bytes
        """
        found = cls(-(-disk_size // cluster_size))
        for extent in extents:
            found.add(extent.offset // cluster_size,
                      -(-extent.end // cluster_size))
        return found

    def __len__(self) -> int:
        """Give the number of clusters that hold data."""
        return sum(bits.bit_count() for bits in self._tables)

    def add(self, first: int, end: int) -> None:
        """Note that clusters hold data.

        :param first: number of the first of them
        :param end: number of the first one behind them
        """
        while first < end:
            table, begin = divmod(first, TABLE_CLUSTERS)
            stop = min(TABLE_CLUSTERS, begin + end - first)
            self._tables[table] |= (1 << stop) - (1 << begin)
            first += stop - begin

    def tables(self) -> Iterator[int | None]:
        """Give for each table its number, or None where it has no data."""
        return (number if bits else None
                for number, bits in enumerate(self._tables))

    def runs(self, table: int) -> Iterator[tuple[int, int]]:
        """Give the runs of clusters that hold data, in ascending order.

        :param table: number of the table
        :returns: for each run, its first cluster and the first behind it,
            counted within the table
        """
        # As text the bits can be searched at the speed of C.
        flags = f'{self._tables[table]:b}'[::-1]
        begin = flags.find('1')
        while begin >= 0:
            end = flags.find('0', begin)
            if end < 0:
                end = len(flags)
            yield begin, end
            begin = flags.find('1', end)
