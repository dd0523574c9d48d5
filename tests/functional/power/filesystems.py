# SPDX-License-Identifier: Apache-2.0
"""File systems of their own, which can lose power."""

import contextlib
import fcntl
import os
import struct
import subprocess

# include/uapi/linux/fs.h and fs/xfs/libxfs/xfs_fs.h: _IOR('X', 125, __u32).
# ext4 and XFS have the same number, and the same flags.
SHUTDOWN = 2 << 30 | struct.calcsize('I') << 16 | ord('X') << 8 | 125
# Whatever is not in the file system's log on disk is lost.
WITHOUT_LOG_FLUSH = struct.pack('I', 2)

# Bytes. mkfs.xfs(8) makes none that is smaller. The image is sparse.
SIZE = 300 << 20

MAKE = {
    'ext4': ('mkfs.ext4', '-q', '-E', 'lazy_itable_init=1'),
    'xfs': ('mkfs.xfs', '-q'),
}

# ext4 writes its log every five seconds by itself, XFS every 30: the test is
# to decide when it is written. A copy of an XFS has the same UUID.
OPTIONS = {'ext4': 'loop,commit=600', 'xfs': 'loop,nouuid'}


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True)


class Filesystem:
    """A file system in an image file, which stands for the disk.

    :ivar name: names it in tests
    :ivar directory: path of the directory where it is mounted
    """

    def __init__(self, kind, parent, name):
        """Describe a file system; it does not exist yet.

        :param kind: ext4 or xfs
        :param parent: directory for all its files
        """
        self.name = name
        self.directory = parent / name
        self._kind = kind
        self._parent = parent
        self._boots = 0

    @property
    def _image(self):
        return self._parent / f'{self.name}.{self._boots}'

    def create(self):
        """Create it, and mount it."""
        with open(self._image, 'xb') as image:
            image.truncate(SIZE)
        run(*MAKE[self._kind], str(self._image))
        self.directory.mkdir()
        self._mount()

    def sync(self):
        """Make all that was written to it durable."""
        run('sync', '--file-system', str(self.directory))

    def lose_power(self):
        """Lose all that is not durable."""
        directory = os.open(self.directory, os.O_RDONLY)
        try:
            fcntl.ioctl(directory, SHUTDOWN, WITHOUT_LOG_FLUSH)
        finally:
            os.close(directory)

    def restore_power(self):
        """Mount what its disk has; its log is replayed.

        The disk is copied: the kernel keeps the old file system, and what it
        has of it in memory, as long as any mount namespace has it.
        """
        old = self._image
        self._boots += 1
        run('cp', '--sparse=always', str(old), str(self._image))
        self.unmount()
        old.unlink()
        self._mount()

    def unmount(self):
        """Unmount it, from all processes that may still use it."""
        with contextlib.suppress(subprocess.CalledProcessError):
            run('umount', '--lazy', str(self.directory))

    def _mount(self):
        run('mount', '-t', self._kind, '-o', OPTIONS[self._kind],
            str(self._image), str(self.directory))
