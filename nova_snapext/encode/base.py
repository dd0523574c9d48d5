# SPDX-License-Identifier: Apache-2.0
"""The common part of all image formats."""

from __future__ import annotations

import abc
from collections.abc import Generator
from collections.abc import Iterator
import contextlib

from nova.i18n import _

from nova_snapext import exception
from nova_snapext import read

Chunk = bytes | memoryview

# One block of zeros, used wherever zeros are sent.
ZEROS = bytes(256 * 1024)


class EncodeError(exception.SnapextError):
    msg_fmt = _("Could not encode the %(image_format)s image: %(reason)s")


class Encoder(contextlib.AbstractContextManager['Encoder']):
    """An image of a frozen disk.

    The constructor does no I/O. Entering the encoder may read the disk, and
    prepares the image; the image is available until the encoder is left.

    :param disk: connected; its content must not change any more
    """

    #: Glance's disk_format of the image.
    image_format: str

    def __init__(self, disk: read.Disk) -> None:
        self.disk = disk

    def __exit__(self, *_exc: object) -> None:
        """Free the space that the image takes on the host, if any."""

    def abort(self) -> None:
        """Make all current and later waits of the encoder fail soon.

        May be called from any thread at any time, also before the encoder is
        entered and while it is being entered. It does not block.
        """
        self.disk.abort()

    @property
    def bytes_read(self) -> int:
        """Bytes of the disk read so far, by any process."""
        return self.disk.bytes_read

    @property
    @abc.abstractmethod
    def size(self) -> int | None:
        """Exact size of the image, in bytes; None while it is not known.

        It is known at the latest when a stream has been read to its end.
        """

    @property
    def expected_size(self) -> int:
        """Approximate size of the image, in bytes, until it is known."""
        return self.size or 0

    def stream(self) -> Generator[Chunk, None, None]:
        """Return the image from its first byte to its last, in chunks.

        May be called again, also if an earlier stream was not read to its
        end: each stream starts at the first byte of the image, and all are
        identical. Only one stream can be read at a time. A chunk has at most
        512 KiB and stays unchanged as long as anything refers to it.

        :raises DiskReadError: the disk can't be read
        :raises EncodeError: the chunks don't add up to the image's size
        """
        sent = 0
        for chunk in self.chunks():
            sent += len(chunk)
            if self.size is not None and sent > self.size:
                break
            yield chunk
        if sent != self.size:
            raise EncodeError(
                image_format=self.image_format,
                reason=f'its size is {self.size} bytes, but it has {sent}')
        # Before the end of the stream, without which no image is complete.
        self.disk.check_frozen()

    @abc.abstractmethod
    def chunks(self) -> Iterator[Chunk]:
        """Return the image's bytes, see :meth:`stream`, which checks them."""


def zeros(length: int) -> Iterator[Chunk]:
    """Return zeros, in chunks that share their memory.

    :param length: in bytes
    """
    whole, rest = divmod(length, len(ZEROS))
    for _chunk in range(whole):
        yield ZEROS
    if rest:
        yield memoryview(ZEROS)[:rest]


def ceil_div(amount: int, unit: int) -> int:
    """Return the number of units that an amount takes."""
    return -(-amount // unit)
