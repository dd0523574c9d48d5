# SPDX-License-Identifier: Apache-2.0
"""Extents of a disk: where it has data, and where it reads as zeros."""

from __future__ import annotations

import array
from collections.abc import Iterable
from collections.abc import Iterator
import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Extent:
    """A contiguous part of a disk, either data or zeros.

    :ivar offset: its start on the disk, in bytes
    :ivar length: in bytes
    :ivar data: True if it has to be read, False if it reads as zeros
    """

    offset: int
    length: int
    data: bool

    @property
    def end(self) -> int:
        return self.offset + self.length


def coalesced(extents: Iterable[Extent]) -> Iterator[Extent]:
    """Join adjacent extents of the same kind.

    :param extents: in ascending order, without overlap
    """
    joined: Extent | None = None
    for extent in extents:
        if joined is None:
            joined = extent
        elif joined.end == extent.offset and joined.data == extent.data:
            joined = Extent(joined.offset, joined.length + extent.length,
                            joined.data)
        else:
            yield joined
            joined = extent
    if joined is not None:
        yield joined


class ExtentMap:
    """The extents of a whole disk: data and zeros, one after the other.

    It takes 8 bytes for each, where a list takes some hundred.

    :param extents: in ascending order
    :raises ValueError: they overlap, or have a gap
    :ivar end: the end of the last one, in bytes
    """

    def __init__(self, extents: Iterable[Extent]) -> None:
        self._ends = array.array('Q')
        self._begins_with_data = False
        self.end = 0
        for extent in coalesced(extents):
            if extent.offset != self.end:
                raise ValueError(f'an extent ends at byte {self.end}, and the '
                                 f'next one begins at byte {extent.offset}')
            if not self._ends:
                self._begins_with_data = extent.data
            self._ends.append(extent.end)
            self.end = extent.end

    def __iter__(self) -> Iterator[Extent]:
        offset, data = 0, self._begins_with_data
        for end in self._ends:
            yield Extent(offset, end - offset, data)
            offset, data = end, not data
