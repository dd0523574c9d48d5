# SPDX-License-Identifier: Apache-2.0
"""Room on the host, looked for before an image is staged."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import os

from nova.i18n import _

from nova_snapext.encode import base
from nova_snapext import space

# Files that are being written, each by its descriptor, with the size that it
# may grow to, in bytes.
_claims: dict[int, int] = {}


class NoRoom(base.EncodeError):
    msg_fmt = _("A %(image_format)s image is staged on the host and may take "
                "%(needed)d bytes, but in %(directory)s there are %(free)d "
                "bytes free for it ([DEFAULT]reserved_host_disk_mb and other "
                "images that are being staged taken off). Make room there, "
                "or set [libvirt]snapshot_image_format to qcow2 or raw, which "
                "are not staged.")


@contextlib.contextmanager
def claimed(file: int, size: int, directory: str,
            image_format: str) -> Iterator[None]:
    """Hold room for a file while it is written.

    :param file: its descriptor
    :param size: that it may grow to, in bytes
    :raises NoRoom: others that are staged now may need what is free
    """
    # Claimed before the look: of two that come at once, one sees the other.
    _claims[file] = size
    try:
        free = space.free(directory) - sum(
            _outstanding(other, its_size)
            for other, its_size in list(_claims.items()) if other != file)
        if size > free:
            raise NoRoom(image_format=image_format, needed=size,
                         directory=directory, free=max(free, 0))
        yield
    finally:
        del _claims[file]


def _outstanding(file: int, size: int) -> int:
    """Give the bytes that a file may still take."""
    try:
        return max(0, size - os.fstat(file).st_blocks * 512)
    except OSError:
        # Closed just now.
        return 0
