# SPDX-License-Identifier: Apache-2.0
"""Compression of the clusters of a qcow2 image."""

from __future__ import annotations

import abc
import threading
import typing as ty
import zlib

from oslo_log import log as logging

from nova_snapext import conf
from nova_snapext import exception

zstandard: ty.Any
try:
    # The extra "zstd": no release of OpenStack has it among its packages.
    import zstandard
except ImportError:
    zstandard = None

CONF = conf.CONF
LOG = logging.getLogger(__name__)

# zlib's highest level; zstd has higher ones, and negative ones.
ZLIB_MAX_LEVEL = 9

# The parameters with which QEMU's block/qcow2-threads.c inflates: no header
# (the minus sign), and a window of 1 << 12 bytes.
ZLIB_WINDOW = -12
ZLIB_MAX_MEMORY = 9


class Codec(abc.ABC):
    """A deterministic compression, which several threads can use.

    :param level: higher is smaller and slower
    :cvar compression_type: its number in the header of a qcow2 image
    """

    compression_type: int

    def __init__(self, level: int) -> None:
        self.level = level

    @abc.abstractmethod
    def compress(self, cluster: memoryview | bytes) -> memoryview | bytes:
        """Compress one cluster."""


class NoCompression(Codec):
    """Leaves clusters as they are."""

    compression_type = 0

    def __init__(self) -> None:
        super().__init__(level=0)

    def compress(self, cluster: memoryview | bytes) -> memoryview | bytes:
        return cluster


class Zlib(Codec):
    """zlib, which all versions of QEMU can read."""

    compression_type = 0

    def compress(self, cluster: memoryview | bytes) -> bytes:
        compressor = zlib.compressobj(
            min(self.level, ZLIB_MAX_LEVEL), zlib.DEFLATED, ZLIB_WINDOW,
            ZLIB_MAX_MEMORY)
        return compressor.compress(cluster) + compressor.flush()


class Zstd(Codec):
    """zstd, which QEMU 5.1 and newer can read if they are built with it."""

    compression_type = 1

    def __init__(self, level: int) -> None:
        super().__init__(level)
        # Two threads can't use the same compressor.
        self._thread_local = threading.local()

    def compress(self, cluster: memoryview | bytes) -> bytes:
        try:
            compressor = self._thread_local.compressor
        except AttributeError:
            compressor = zstandard.ZstdCompressor(level=self.level)
            self._thread_local.compressor = compressor
        compressed: bytes = compressor.compress(cluster)
        return compressed


#: By their names in qcow2.
CODECS: dict[str, type[Codec]] = {'zlib': Zlib, 'zstd': Zstd}


def type_in_use() -> str:
    """Return the name of the compression that the options ask for."""
    chosen: str | None = CONF.snapext.compression_type
    return chosen or ('zlib' if zstandard is None else 'zstd')


def check_options() -> None:
    """Check that images can be compressed as the options ask for.

    Logs if they are compressed with zlib for want of zstd.

    :raises CompressionUnavailable: they can't be
    """
    if zstandard is not None or not CONF.libvirt.snapshot_compression:
        return
    if CONF.snapext.compression_type == 'zstd':
        raise exception.CompressionUnavailable()
    if not CONF.snapext.compression_type:
        LOG.warning('Images are compressed with zlib, which takes several '
                    'times as long as zstd: the Python package zstandard is '
                    'not installed (python3-zstandard in Debian, or "pip '
                    'install zstandard"). [snapext]compression_type = zlib '
                    'silences this warning')
