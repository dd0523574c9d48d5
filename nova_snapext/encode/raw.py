# SPDX-License-Identifier: Apache-2.0
"""A raw image: the bytes of the disk."""

from __future__ import annotations

from collections.abc import Iterator

from nova_snapext.encode import base


class RawEncoder(base.Encoder):
    """All bytes of the disk; extents of zeros are sent without reading."""

    image_format = 'raw'

    def __enter__(self) -> RawEncoder:
        # A proxy may end an upload that waits for its first byte.
        self.disk.ask_storage()
        return self

    @property
    def size(self) -> int:
        return self.disk.size

    def chunks(self) -> Iterator[base.Chunk]:
        position = 0
        ranges = ((extent.offset, extent.length)
                  for extent in self.disk.extents() if extent.data)
        for offset, chunk in self.disk.read(ranges):
            yield from base.zeros(offset - position)
            yield chunk
            position = offset + len(chunk)
        yield from base.zeros(self.disk.size - position)
