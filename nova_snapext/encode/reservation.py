# SPDX-License-Identifier: Apache-2.0
"""Space on the host, reserved before an image is staged."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import os

from nova.i18n import _

from nova_snapext.encode import base
from nova_snapext import space

# Size that each file being written may grow to, in bytes, by its descriptor.
_reservations: dict[int, int] = {}


class InsufficientStagingSpace(base.EncodeError):
    msg_fmt = _("A %(image_format)s image is staged on the host and may take "
                "%(needed)d bytes, but only %(free)d bytes are free for it in "
                "%(directory)s ([DEFAULT]reserved_host_disk_mb and other "
                "images that are being staged are subtracted). Free some "
                "space there, or set [libvirt]snapshot_image_format to qcow2 "
                "or raw, which are not staged.")


@contextlib.contextmanager
def reserve_space(file: int, size: int, directory: str,
                  image_format: str) -> Iterator[None]:
    """Reserve space for a file while it is written.

    :param file: its descriptor
    :param size: that it may grow to, in bytes
    :raises InsufficientStagingSpace: the free space, less that reserved for
        other files, is not enough
    """
    # Reserved before the check: of two threads, one sees the other's file.
    _reservations[file] = size
    try:
        free = space.free_bytes(directory) - sum(
            _outstanding(other, other_size)
            for other, other_size in list(_reservations.items())
            if other != file)
        if size > free:
            raise InsufficientStagingSpace(
                image_format=image_format, needed=size, directory=directory,
                free=max(free, 0))
        yield
    finally:
        del _reservations[file]


def _outstanding(file: int, size: int) -> int:
    """Return how many bytes a file may still grow."""
    try:
        return max(0, size - os.fstat(file).st_blocks * 512)
    except OSError:
        # It has just been closed.
        return 0
