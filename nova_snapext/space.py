# SPDX-License-Identifier: Apache-2.0
"""Space on the host."""

from __future__ import annotations

import os

from oslo_utils import units

from nova_snapext import conf

CONF = conf.CONF


def free(path: str) -> int:
    """Give the bytes free in a file system, the reserve of Nova's taken off.

    :param path: in it; what does not exist yet is looked for further up
    :raises OSError: it can't be looked at
    """
    while not os.path.exists(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    found = os.statvfs(path)
    return (found.f_bavail * found.f_frsize -
            CONF.reserved_host_disk_mb * units.Mi)
