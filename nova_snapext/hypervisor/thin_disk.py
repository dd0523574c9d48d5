# SPDX-License-Identifier: Apache-2.0
"""Whether the storage of a disk takes back what its guest discards.

A guest discards what it no longer needs (TRIM, UNMAP). It is for nothing if
QEMU does not pass that on, or if the storage keeps the space.
"""

from __future__ import annotations

import ctypes
import errno
import os
import pathlib
import tempfile
import typing as ty

from lxml import etree
from oslo_utils import strutils

from nova_snapext import compat
from nova_snapext import conf
from nova_snapext.hypervisor import block_device
from nova_snapext.hypervisor import ceph
from nova_snapext.hypervisor import domain
from nova_snapext import plan as planning

CONF = conf.CONF

# st_blocks of stat(2)
BLOCK_SIZE = 512

# What counts as much of a disk: one in so many bytes. The gaps between the
# tables of a qcow2 are far less.
UNWRITTEN_SHARE = 16

# FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, linux/falloc.h
PUNCH_HOLE = 0x01 | 0x02
# Bytes of a hole. File systems with larger blocks accept it, too.
HOLE_SIZE = 4096


def kept_reason(disk: planning.RootDisk, guest: domain.Domain) -> str | None:
    """Return why discards of a running guest free nothing; None if they do.

    :raises OSError: the disk can't be read
    :raises libvirtError: libvirt refuses to describe it
    """
    if not passes_discards(disk, guest):
        return (f'its root disk {disk.target} does not pass discards on '
                f'([libvirt]hw_disk_discard = unmap, and a hard reboot of the '
                f'guest)')
    # In a native thread under eventlet: network storage may hang.
    if disk.storage == 'file':
        return ty.cast(str | None, compat.tpool_wrap(_file_reason)(
            disk, guest.disk_size(disk.target)))
    if disk.storage == 'block':
        return ty.cast(str | None,
                       compat.tpool_wrap(_block_reason)(disk.path))
    if ceph.image_of(disk) is None:
        return f'it is unknown whether {disk.path} takes back what is freed'
    return None


def passes_discards(disk: planning.RootDisk, guest: domain.Domain) -> bool:
    """Return whether a running guest's QEMU passes discards on.

    Nova writes [libvirt]hw_disk_discard into the definition, where the guest
    gets it from at its next start.
    """
    return 'unmap' in etree.fromstring(guest.get_xml_desc()).xpath(
        './devices/disk[target/@dev=$target]/driver/@discard',
        target=disk.target)


def allocated(disk: planning.RootDisk) -> int | None:
    """Return the space that the active image of a disk takes on the host.

    :returns: bytes; None if the storage does not tell
    :raises OSError: the disk can't be found
    """
    if disk.storage != 'file':
        return None
    found = compat.tpool_wrap(os.stat)(disk.path)
    return int(found.st_blocks * BLOCK_SIZE)


def _file_reason(disk: planning.RootDisk, size: int) -> str | None:
    if (strutils.to_slug(CONF.preallocate_images) == 'space' or
            _is_preallocated(disk.path, size)):
        return (f'the space of {disk.path} is preallocated, and would be '
                f'given back')
    # A qcow2 has free clusters of its own.
    if disk.format == 'raw' and not _can_punch_holes(
            os.path.dirname(disk.path)):
        return f'the file system of {disk.path} can\'t make holes in a file'
    return None


def _is_preallocated(path: str, size: int) -> bool:
    """Return whether a file has much space that was never written.

    Nova runs "fallocate -n -l SIZE": that space is in the file, or behind its
    end if it is a qcow2. A thin disk that its guest has filled has none.

    :param size: of the disk, in bytes
    """
    space = os.stat(path).st_blocks * BLOCK_SIZE
    return space >= size and space - _written(path) > size // UNWRITTEN_SHARE


def _written(path: str) -> int:
    """Return how many bytes of a file were written.

    Space that is allocated and not written counts as a hole: lseek(2).
    """
    written = offset = 0
    with open(path, 'rb', buffering=0) as file:
        try:
            while True:
                begin = os.lseek(file.fileno(), offset, os.SEEK_DATA)
                offset = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
                written += offset - begin
        except OSError as error:
            if error.errno != errno.ENXIO:  # no data follows
                raise
    return written


def _can_punch_holes(directory: str) -> bool:
    """Return whether a file system makes holes in files: fallocate(2).

    Old NFS does not, for example. No other way to find out is reliable.

    :param directory: of the disk, where Nova may create a file
    """
    fallocate = ctypes.CDLL(None).fallocate
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int,
                          ctypes.c_long, ctypes.c_long]
    # It has no name, or loses it at once.
    with tempfile.TemporaryFile(dir=directory) as file:
        file.truncate(HOLE_SIZE)
        return bool(
            fallocate(file.fileno(), PUNCH_HOLE, 0, HOLE_SIZE) == 0)


def _block_reason(path: str) -> str | None:
    device = block_device.directory(path)
    # A partition has the queue of its disk.
    disk = device.parent if (device / 'partition').exists() else device
    if int((disk / 'queue/discard_max_bytes').read_text()) == 0:
        return f'the device {path} supports no discards'
    # A thin volume is on its pool, any other one on physical volumes.
    if _dm_uuid(device).startswith('LVM-') and not any(
            _dm_uuid(below).endswith('-tpool')
            for below in (device / 'slaves').iterdir()):
        return f'{path} is a thick LVM volume, whose space stays its own'
    return None


def _dm_uuid(device: pathlib.Path) -> str:
    """Return device-mapper's uuid of a device; empty if it is no such one."""
    try:
        return (device / 'dm/uuid').read_text().strip()
    except FileNotFoundError:
        return ''
