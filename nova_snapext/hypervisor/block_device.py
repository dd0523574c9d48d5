# SPDX-License-Identifier: Apache-2.0
"""What the kernel tells of a block device, whatever node of it is used."""

from __future__ import annotations

import os
import pathlib

# Linux: Documentation/ABI/stable/sysfs-block
DEVICES = pathlib.Path('/sys/dev/block')

# Fields of a device's "stat": sectors written, sectors discarded. Linux:
# Documentation/block/stat.rst
WRITTEN, DISCARDED = 6, 13


def directory(path: str) -> pathlib.Path:
    """Return the directory of a block device in sysfs.

    :param path: of any node of the device, or a link to one
    :raises OSError: there is no such device
    """
    number = os.stat(path).st_rdev
    return (DEVICES / f'{os.major(number)}:{os.minor(number)}').resolve()


def changed_sectors(path: str) -> int:
    """Return how many sectors were written or discarded so far.

    Data that is still in the page cache does not count, nor does anything if
    somebody has switched off queue/iostats of the device.

    :raises OSError: there is no such device
    """
    fields = (directory(path) / 'stat').read_text().split()
    return int(fields[WRITTEN]) + int(fields[DISCARDED])
