# SPDX-License-Identifier: Apache-2.0
"""Write the contents of disks. The same size results in the same content."""

import os
import pathlib
import random
import shutil

from devcloud import layout
from devcloud import shell

SEED = 2026

#: Bytes of a chunk of scattered data: a qcow2 cluster.
CHUNK = 64 * 1024

#: Number of random bytes to make at once.
STRETCH = 16 * layout.MIB

#: Directories with files like those of a system disk: programs, libraries,
#: text, the package manager's files; and the share of the space for each.
TREES = {'/usr/bin': 0.25, '/usr/lib': 0.4, '/usr/share': 0.25,
         '/var/lib/dpkg': 0.1}


def noise(file: pathlib.Path, offset: int, size: int) -> None:
    """Write incompressible data.

    :param file: an existing raw disk
    :param offset: first byte to write
    :param size: in bytes
    """
    chance = random.Random(SEED)
    with open(file, 'r+b') as disk:
        disk.seek(offset)
        while size > 0:
            disk.write(chance.randbytes(min(STRETCH, size)))
            size -= STRETCH


def scattered(file: pathlib.Path, offset: int, span: int, size: int,
              chunk: int = CHUNK) -> None:
    """Write chunks of noise, scattered over a part of a sparse disk.

    There is a hole between any two chunks.

    :param span: bytes of this part
    :param size: bytes of all chunks together
    :param chunk: bytes of each chunk
    """
    chance = random.Random(SEED)
    count = size // chunk
    stride = span // count
    if stride < 2 * chunk:
        raise ValueError(f'{count} chunks of {chunk} bytes, with holes '
                         f'between them, do not fit into {span} bytes')
    with open(file, 'r+b') as disk:
        for number in range(count):
            index = chance.randrange((stride - 2 * chunk) // chunk + 1)
            disk.seek(offset + number * stride + index * chunk)
            disk.write(chance.randbytes(chunk))


def sparse(file: pathlib.Path, size: int) -> None:
    """Make an empty raw disk.

    :param size: in bytes
    """
    with open(file, 'wb') as disk:
        disk.truncate(size)


def zeros(file: pathlib.Path, size: int) -> None:
    """Make a raw disk of zeros, without a hole.

    :param size: in bytes
    """
    stretch = bytes(STRETCH)
    with open(file, 'wb') as disk:
        for begin in range(0, size, STRETCH):
            disk.write(stretch[:size - begin])


def system(file: pathlib.Path, size: int, scratch: pathlib.Path) -> None:
    """Make an ext4 file system with files of a system disk.

    It copies programs, libraries, text and the package manager's files of this
    machine, in the order of their names, until they fill four fifths of it.

    :param file: raw disk to make
    :param size: of the file system, in bytes
    :param scratch: directory for temporary files
    """
    tree = scratch / 'tree'
    shutil.rmtree(tree, ignore_errors=True)
    _gather(tree, size * 4 // 5)
    file.unlink(missing_ok=True)
    # Fixed identifiers and time: the result is always the same.
    shell.run(['mke2fs', '-q', '-t', 'ext4', '-d', tree, '-m', '0',
               '-U', '00000000-0000-0000-0000-000000002026', '-E',
               'lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0,'
               'hash_seed=00000000-0000-0000-0000-000000002026',
               file, f'{size // 1024}k'],
              env={'E2FSPROGS_FAKE_TIME': '1767225600'})
    shutil.rmtree(tree)


def _gather(tree: pathlib.Path, space: int) -> None:
    """Copy files to a tree until they fill the space, in bytes."""
    left = 0
    for top, share in TREES.items():
        # The next directory gets the unused space.
        left = _copy(pathlib.Path(top), tree, int(space * share) + left)


def _copy(top: pathlib.Path, tree: pathlib.Path, space: int) -> int:
    """Copy the files of a directory, in the order of their names.

    :param space: maximum bytes of all files
    :returns: bytes that are left of the space
    """
    for directory, subdirectories, files in os.walk(top):
        subdirectories.sort()
        for name in sorted(files):
            source = pathlib.Path(directory, name)
            if source.is_symlink() or not source.is_file():
                continue
            # The size in whole blocks of a file system.
            size = -(-source.stat().st_size // 4096) * 4096
            if size <= space:
                target = tree / source.relative_to('/')
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
                space -= size
            if space < layout.MIB:
                return space
    return space


def copy_sparse(source: pathlib.Path, disk: pathlib.Path, offset: int
                ) -> None:
    """Copy a file to a disk, without its zeros.

    :param offset: of the copy on the disk, in bytes
    """
    with open(source, 'rb') as file, open(disk, 'r+b') as target:
        while chunk := file.read(layout.MIB):
            if chunk.strip(b'\0'):
                target.seek(offset)
                target.write(chunk)
            offset += len(chunk)
