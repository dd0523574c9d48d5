# SPDX-License-Identifier: Apache-2.0
"""A raw image: the disk's bytes as they are."""

from __future__ import annotations

from collections.abc import Iterator

from nova_snapext.encode import base


class RawEncoder(base.Encoder):
    """The disk byte by byte; what reads as zeros is sent without reading."""

    image_format = 'raw'

    @property
    def size(self) -> int:
        return self.disk.size

    def _pieces(self) -> Iterator[base.Piece]:
        position = 0
        runs = ((extent.offset, extent.length)
                for extent in self.disk.extents() if extent.data)
        for offset, piece in self.disk.read(runs):
            yield from base.zeros(offset - position)
            yield piece
            position = offset + len(piece)
        yield from base.zeros(self.disk.size - position)
