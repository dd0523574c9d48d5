# SPDX-License-Identifier: Apache-2.0
"""What the disks of the benchmark hold, always the same for the same size."""

import os
import pathlib
import random
import shutil

from devcloud import layout
from devcloud import shell

SEED = 2026

#: Bytes of one piece where data is scattered: a qcow2 cluster.
PIECE = 64 * 1024

#: Random bytes are made in stretches of so many.
STRETCH = 16 * layout.MIB

#: Trees of a machine that are much like a system disk's: programs, libraries,
#: text, the package manager's own; and which part of the room each may take.
TREES = {'/usr/bin': 0.25, '/usr/lib': 0.4, '/usr/share': 0.25,
         '/var/lib/dpkg': 0.1}


def noise(file: pathlib.Path, offset: int, size: int) -> None:
    """Write what no compression makes smaller.

    :param file: raw disk, which exists
    :param offset: where to begin, in bytes
    :param size: in bytes
    """
    chance = random.Random(SEED)
    with open(file, 'r+b') as disk:
        disk.seek(offset)
        while size > 0:
            disk.write(chance.randbytes(min(STRETCH, size)))
            size -= STRETCH


def scattered(file: pathlib.Path, offset: int, span: int, size: int,
              piece: int = PIECE) -> None:
    """Write noise in pieces, all over a part of a sparse disk.

    Every piece lies alone: between two of them there is a hole.

    :param span: bytes of the disk over which they lie
    :param size: bytes of all of them together
    :param piece: bytes of each
    """
    chance = random.Random(SEED)
    count = size // piece
    stride = span // count
    if stride < 2 * piece:
        raise ValueError(f'{count} pieces of {piece} bytes do not lie alone '
                         f'in {span} bytes')
    with open(file, 'r+b') as disk:
        for number in range(count):
            place = chance.randrange((stride - 2 * piece) // piece + 1)
            disk.seek(offset + number * stride + place * piece)
            disk.write(chance.randbytes(piece))


def sparse(file: pathlib.Path, size: int) -> None:
    """Make an empty raw disk.

    :param size: in bytes
    """
    with open(file, 'wb') as disk:
        disk.truncate(size)


def system(file: pathlib.Path, size: int, scratch: pathlib.Path) -> None:
    """Make an ext4 filesystem with what a system disk holds.

    Binaries, libraries, text and the package manager's files of this machine,
    in the order of their names, until they fill four fifths of it.

    :param file: raw disk to make
    :param size: of the filesystem, in bytes
    :param scratch: directory for what is made on the way
    """
    tree = scratch / 'tree'
    shutil.rmtree(tree, ignore_errors=True)
    _gather(tree, size * 4 // 5)
    file.unlink(missing_ok=True)
    # Identifiers and times would be others each time.
    shell.run(['mke2fs', '-q', '-t', 'ext4', '-d', tree, '-m', '0',
               '-U', '00000000-0000-0000-0000-000000002026', '-E',
               'lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0,'
               'hash_seed=00000000-0000-0000-0000-000000002026',
               file, f'{size // 1024}k'],
              env={'E2FSPROGS_FAKE_TIME': '1767225600'})
    shutil.rmtree(tree)


def _gather(tree: pathlib.Path, room: int) -> None:
    """Copy files into a tree until they are so many bytes."""
    left = 0
    for top, share in TREES.items():
        # What one does not need is for the next.
        left = _copy(pathlib.Path(top), tree, int(room * share) + left)


def _copy(top: pathlib.Path, tree: pathlib.Path, room: int) -> int:
    """Copy the files of a directory, in the order of their names.

    :param room: bytes that they may take
    :returns: bytes that they have left
    """
    for place, directories, files in os.walk(top):
        directories.sort()
        for name in sorted(files):
            source = pathlib.Path(place, name)
            if source.is_symlink() or not source.is_file():
                continue
            # As much as it takes on a filesystem.
            size = -(-source.stat().st_size // 4096) * 4096
            if size <= room:
                target = tree / source.relative_to('/')
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
                room -= size
            if room < layout.MIB:
                return room
    return room


def copy_sparse(source: pathlib.Path, disk: pathlib.Path, offset: int
                ) -> None:
    """Copy a file into a disk; its zeros stay holes there.

    :param offset: where it goes, in bytes
    """
    with open(source, 'rb') as file, open(disk, 'r+b') as target:
        while piece := file.read(layout.MIB):
            if piece.strip(b'\0'):
                target.seek(offset)
                target.write(piece)
            offset += len(piece)
