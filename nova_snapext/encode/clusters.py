# SPDX-License-Identifier: Apache-2.0
"""The set of a disk's clusters that hold data, in little memory."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator

from nova_snapext.encode import layout
from nova_snapext import read

# Clusters that one L2 table maps.
TABLE_CLUSTERS = layout.TABLE_ENTRIES


class ClusterMap:
    """A bit for every cluster, in one integer per L2 table.

    A table without data takes no memory. With clusters of 64 KiB, 1 TiB takes
    2 MiB at the most, however its data is scattered.

    :param clusters: of the disk
    """

    def __init__(self, clusters: int) -> None:
        self._tables = [0] * -(-clusters // TABLE_CLUSTERS)

    @classmethod
    def of(cls, disk: read.Disk,
           cluster_size: int = layout.CLUSTER_SIZE) -> ClusterMap:
        """Note the clusters that a disk has data in, reading none of it.

        The zeros that a guest wrote, and those of a block device, are data
        for the server.

        :param cluster_size: in bytes
        :raises DiskReadError: the server fails
        """
        found = cls(layout.ceil(disk.size, cluster_size))
        for extent in disk.extents():
            if extent.data:
                found.add(extent.offset // cluster_size,
                          layout.ceil(extent.end, cluster_size))
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

    def tables(self) -> list[int]:
        """Give the numbers of the tables that have data, ascending."""
        return [number for number, bits in enumerate(self._tables) if bits]

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

    def spans(self, skipped: int = 0) -> Iterator[tuple[int, int]]:
        """Give the runs of all tables, counted from the disk's beginning.

        :param skipped: as many clusters with data are passed over
        """
        for table in self.tables():
            first = table * TABLE_CLUSTERS
            for begin, end in self.runs(table):
                passed = min(skipped, end - begin)
                skipped -= passed
                if begin + passed < end:
                    yield first + begin + passed, first + end

    def every(self, step: int) -> Iterator[tuple[int, int]]:
        """Give clusters with data, one in so many, as spans of one each.

        :param step: at least 1
        """
        passed = 0
        for begin, end in self.spans():
            for cluster in range(begin + -passed % step, end, step):
                yield cluster, cluster + 1
            passed += end - begin


def parts(spans: Iterable[tuple[int, int]],
          disk_size: int) -> Iterator[tuple[int, int]]:
    """Give spans of clusters as parts of the disk.

    :param disk_size: in bytes; the last cluster may go beyond
    :returns: offset and length of each, in bytes
    """
    for first, end in spans:
        offset = first * layout.CLUSTER_SIZE
        yield offset, min(end * layout.CLUSTER_SIZE, disk_size) - offset
