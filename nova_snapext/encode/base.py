# SPDX-License-Identifier: Apache-2.0
"""What every image format has in common."""

from __future__ import annotations

import abc
from collections.abc import Generator
from collections.abc import Iterator
import contextlib

from nova import exception
from nova.i18n import _

from nova_snapext import read

Piece = bytes | memoryview

# One block of zeros serves wherever they are sent.
ZEROS = bytes(256 * 1024)


class EncodeError(exception.NovaException):
    msg_fmt = _("Encoding a %(image_format)s image failed: %(reason)s")


class Encoder(contextlib.AbstractContextManager['Encoder']):
    """An image of a frozen disk.

    A context manager, within which it is read.

    :param disk: connected; its content must not change any more
    :raises DiskReadError: the disk can't be read
    """

    #: Glance's disk_format of the image.
    image_format: str

    def __init__(self, disk: read.Disk) -> None:
        self.disk = disk

    def __exit__(self, *_exc: object) -> None:
        """Let go of what the image takes on the host, which may be nothing."""

    def abort(self) -> None:
        """Make whatever it waits for, now or later, fail soon.

        From any thread; it waits for nothing.
        """
        self.disk.abort()

    @property
    def bytes_read(self) -> int:
        """How many bytes of the disk were read so far, by whomever."""
        return self.disk.bytes_read

    @property
    @abc.abstractmethod
    def size(self) -> int | None:
        """Exact size of the image, in bytes; None as long as it isn't known.

        Where it isn't before a stream is read, it is at the stream's end.
        """

    @property
    def expected_size(self) -> int:
        """About the size of the image, in bytes, where it isn't known yet."""
        return self.size or 0

    def stream(self) -> Generator[Piece, None, None]:
        """Give the image from its first byte to its last, piece by piece.

        May be called again, also after an earlier stream was given up: each
        begins at the image's first byte, and all are the same. No two can be
        read in turns. A piece has at most 512 KiB and stays as it is for as
        long as anybody holds it.

        :raises DiskReadError: the disk can't be read
        :raises EncodeError: the pieces don't add up to the image's size
        """
        sent = 0
        for piece in self._pieces():
            sent += len(piece)
            if self.size is not None and sent > self.size:
                break
            yield piece
        if sent != self.size:
            raise EncodeError(
                image_format=self.image_format,
                reason=f'{self.size} bytes were announced, and {sent} came')

    @abc.abstractmethod
    def _pieces(self) -> Iterator[Piece]:
        """Give the image's bytes, see :meth:`stream`."""


def zeros(length: int) -> Iterator[Piece]:
    """Give as many bytes of zeros, in pieces that share their memory.

    :param length: in bytes
    """
    whole, rest = divmod(length, len(ZEROS))
    for _piece in range(whole):
        yield ZEROS
    if rest:
        yield memoryview(ZEROS)[:rest]
