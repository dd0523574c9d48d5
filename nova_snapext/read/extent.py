# SPDX-License-Identifier: Apache-2.0
"""Extents of a disk: where it has data, and where it reads as zeros."""

from __future__ import annotations

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
