# SPDX-License-Identifier: Apache-2.0
"""A deep backing chain, made of the disk of a guest that is shut off."""

import pathlib
import shutil

from devcloud import shell


def deepen(disk: pathlib.Path, overlays: int, data: int) -> None:
    """Put overlays onto a disk, each with some data of its own.

    What the guest has keeps its place: each overlay rewrites a part of the
    disk's second half, which is data of the benchmark's.

    :param disk: qcow2 file; afterwards the topmost overlay
    :param overlays: how many
    :param data: bytes that all of them hold together
    """
    size = data // overlays // 65536 * 65536
    for number in range(overlays):
        below = disk.with_name(f'{disk.name}.below{number}')
        disk.rename(below)
        shell.run(['qemu-img', 'create', '-q', '-f', 'qcow2', '-F', 'qcow2',
                   '-b', below, disk])
        # Noise would be better; but a pattern per cluster is not zeros, and
        # what is not compressed does not care.
        offset = (2 << 30) + number * size
        shell.run(['qemu-io', '-f', 'qcow2', '-c',
                   f'write -q -P {number + 1} {offset} {size}', disk])
        owner = below.stat()
        shutil.chown(disk, owner.st_uid, owner.st_gid)
        disk.chmod(owner.st_mode & 0o777)
