# SPDX-License-Identifier: Apache-2.0
"""The sizes of a disk's clusters in an image, in little memory."""

from __future__ import annotations

import array
from collections.abc import Iterable
from collections.abc import Iterator
import zlib

# Sizes that are packed together: 16 KiB, half of zlib's window.
BLOCK = 8192

# What the size of a cluster takes at most, but for zlib's own few bytes.
BYTES_PER_SIZE = 2

# zlib's fastest level. It is enough for runs of equal sizes.
LEVEL = 1


class ClusterSizes:
    """A sequence of 16-bit numbers, to be read from the start only.

    Clusters that have sizes of their own take 2 bytes each: 32 MiB for 1 TiB
    of data. Runs of equal sizes, as of uncompressed clusters and of zeros,
    take next to nothing, and a random mix of both half a byte each.
    """

    def __init__(self) -> None:
        self._packed: list[bytes] = []
        self._packed_sizes = 0
        self._last = array.array('H')

    def __len__(self) -> int:
        return self._packed_sizes + len(self._last)

    def __iter__(self) -> Iterator[int]:
        for block in self._packed:
            yield from array.array('H', zlib.decompress(block))
        yield from self._last

    def extend(self, sizes: Iterable[int]) -> None:
        self._last.extend(sizes)
        if len(self._last) >= BLOCK:
            self._packed.append(zlib.compress(self._last, LEVEL))
            self._packed_sizes += len(self._last)
            self._last = array.array('H')
