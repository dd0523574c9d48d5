# SPDX-License-Identifier: Apache-2.0
"""By what the clusters of a qcow2 image are compressed, if by anything."""

from __future__ import annotations

import abc
import threading
import zlib

import zstandard

# Of zlib; zstd has more, and negative ones.
ZLIB_MAX_LEVEL = 9

# What QEMU's block/qcow2-threads.c inflates with: no header, and a window of
# 4 KiB. Behind the sign, the window's bits.
ZLIB_WINDOW = -12
ZLIB_MAX_MEMORY = 9


class Codec(abc.ABC):
    """A compression that is deterministic, and is used by several threads.

    :param level: higher is smaller and slower
    :cvar compression_type: its number in the header of a qcow2 image
    """

    compression_type: int

    def __init__(self, level: int) -> None:
        self.level = level

    @abc.abstractmethod
    def compress(self, cluster: memoryview | bytes) -> memoryview | bytes:
        """Compress one cluster."""


class Plain(Codec):
    """None."""

    compression_type = 0

    def __init__(self) -> None:
        super().__init__(level=0)

    def compress(self, cluster: memoryview | bytes) -> memoryview | bytes:
        return cluster


class Zlib(Codec):
    """As all versions of QEMU read it."""

    compression_type = 0

    def compress(self, cluster: memoryview | bytes) -> bytes:
        compressor = zlib.compressobj(
            min(self.level, ZLIB_MAX_LEVEL), zlib.DEFLATED, ZLIB_WINDOW,
            ZLIB_MAX_MEMORY)
        return compressor.compress(cluster) + compressor.flush()


class Zstd(Codec):
    """As QEMU 5.1 and newer read it, where they are built with it."""

    compression_type = 1

    def __init__(self, level: int) -> None:
        super().__init__(level)
        # One compressor can't be used by two threads.
        self._of_thread = threading.local()

    def compress(self, cluster: memoryview | bytes) -> bytes:
        try:
            compressor = self._of_thread.compressor
        except AttributeError:
            compressor = zstandard.ZstdCompressor(level=self.level)
            self._of_thread.compressor = compressor
        packed: bytes = compressor.compress(cluster)
        return packed


#: By the name that qcow2 has for them.
CODECS: dict[str, type[Codec]] = {'zlib': Zlib, 'zstd': Zstd}
