# SPDX-License-Identifier: Apache-2.0
"""Free space on the host."""

from __future__ import annotations

import os

from oslo_utils import units

from nova_snapext import conf

CONF = conf.CONF


def free_bytes(path: str) -> int:
    """Return the free space of a file system, less Nova's reserve, in bytes.

    :param path: a file or directory in it; if it does not exist yet, its
        nearest parent that exists is used
    :raises OSError: the file system can't be queried
    """
    found = os.statvfs(_existing(path))
    reserve: int = CONF.reserved_host_disk_mb * units.Mi
    return found.f_bavail * found.f_frsize - reserve


def is_same_file_system(path: str, other: str) -> bool:
    """Return whether two files or directories are, or would be, in one.

    :raises OSError: a file system can't be queried
    """
    return os.stat(_existing(path)).st_dev == os.stat(_existing(other)).st_dev


def _existing(path: str) -> str:
    """Return a path, or its nearest parent that exists."""
    while not os.path.exists(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    return path
