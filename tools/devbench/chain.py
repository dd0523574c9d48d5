# SPDX-License-Identifier: Apache-2.0
"""Make the backing chain of a shut-off guest's disk deeper."""

import pathlib
import shutil

from devcloud import shell


def deepen(disk: pathlib.Path, overlays: int, data: int) -> None:
    """Add overlays on top of a disk, each with its own data.

    The data of the guest does not change: each overlay rewrites a part of the
    disk's second half, which has only data of the benchmark.

    :param disk: qcow2 file; afterwards the topmost overlay
    :param overlays: number of overlays
    :param data: bytes of data of all overlays together
    """
    size = data // overlays // 65536 * 65536
    for number in range(overlays):
        backing = disk.with_name(f'{disk.name}.backing{number}')
        disk.rename(backing)
        shell.run(['qemu-img', 'create', '-q', '-f', 'qcow2', '-F', 'qcow2',
                   '-b', backing, disk])
        # Noise would be better, but a pattern is enough: it is not zeros, and
        # without compression the content makes no difference.
        offset = (2 << 30) + number * size
        shell.run(['qemu-io', '-f', 'qcow2', '-c',
                   f'write -q -P {number + 1} {offset} {size}', disk])
        owner = backing.stat()
        shutil.chown(disk, owner.st_uid, owner.st_gid)
        disk.chmod(owner.st_mode & 0o777)
