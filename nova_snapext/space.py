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
    while not os.path.exists(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    found = os.statvfs(path)
    reserve: int = CONF.reserved_host_disk_mb * units.Mi
    return found.f_bavail * found.f_frsize - reserve
