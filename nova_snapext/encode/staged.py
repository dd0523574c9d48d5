# SPDX-License-Identifier: Apache-2.0
"""Images that can't be streamed as they are made.

Their tables are written when the data is, before or between it, so that
qemu-img makes the whole image in a file first.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
import contextlib
import os
import selectors
import subprocess
import tempfile
import typing as ty

from oslo_log import log as logging
from oslo_utils import fileutils
from oslo_utils import timeutils
from oslo_utils import units
import psutil

from nova_snapext import conf
from nova_snapext.encode import base
from nova_snapext.encode import clusters
from nova_snapext.encode import room
from nova_snapext import read

CONF = conf.CONF
LOG = logging.getLogger(__name__)

PIECE_SIZE = len(base.ZEROS)
SECTOR_SIZE = 512


class StagedEncoder(base.Encoder):
    """An image that qemu-img makes, on entering, from the same frozen disk.

    The file has no name: when this process ends, however it does, the kernel
    gives its space back, and there is nothing to clean up after a crash.

    :cvar GRAIN: bytes that the format allocates at once, where there is data
    """

    GRAIN: int

    _process: subprocess.Popen[bytes] | None = None
    _aborted = False

    def abort(self) -> None:
        super().abort()
        self._aborted = True
        if self._process is not None:
            self._process.kill()

    @property
    def size(self) -> int:
        return self._size

    @property
    def bytes_read(self) -> int:
        return super().bytes_read + self._read_by_qemu_img

    def __enter__(self) -> ty.Self:
        """Stage the image.

        :raises NoRoom: it may not fit; nothing has been written
        :raises EncodeError: qemu-img can't make it
        :raises DiskReadError: the disk can't be read
        """
        directory = CONF.libvirt.snapshots_directory
        with contextlib.ExitStack() as stack:
            try:
                fileutils.ensure_tree(directory)
                file = stack.enter_context(
                    tempfile.TemporaryFile(buffering=0, dir=directory))
                self._file = file.fileno()
                self._stage(directory)
                self._size = os.fstat(self._file).st_size
            except OSError as error:
                # Which Nova would take for a Glance to try again.
                raise self._error(str(error)) from error
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    def _stage(self, directory: str) -> None:
        block = os.fstatvfs(self._file).f_frsize
        most = _ceil(self.largest_size(), block) * block
        with room.claimed(self._file, most, directory, self.image_format), \
                timeutils.StopWatch() as watch:
            try:
                self._convert()
            except base.EncodeError:
                # That the disk can't be read any more is the better reason.
                self.disk.probe()
                raise
        self._read_by_qemu_img = sum(
            extent.length for extent in self.disk.extents() if extent.data)
        LOG.info('Staged the %(format)s image of %(disk)s in %(seconds).1f '
                 's: %(written)d bytes on the host, of %(most)d at the most',
                 {'format': self.image_format, 'disk': self.disk.uri,
                  'seconds': watch.elapsed(), 'most': most,
                  'written': os.fstat(self._file).st_blocks * 512})

    def largest_size(self) -> int:
        """Give the bytes that the image has at the most.

        As if nothing that is allocated were zeros, or could be compressed.
        Reads nothing of the disk.
        """
        grains = clusters.ClusterMap.of(self.disk, self.GRAIN)
        return self._tables_size(grains) + len(grains) * self.GRAIN

    @abc.abstractmethod
    def _tables_size(self, grains: clusters.ClusterMap) -> int:
        """Give the size of all that isn't data, in bytes, at the most.

        :param grains: that the image has
        """

    def _convert(self) -> None:
        # Without -t none, as Nova has it: the file is read next and then
        # gone, so it may stay in the page cache and is not worth an fsync.
        limit = CONF.snapext.read_rate_limit
        pace = ('-r', str(limit)) if limit else ()
        command = ('setpriv', '--pdeathsig', 'KILL',
                   'qemu-img', 'convert', *pace, '-f', 'raw',
                   '-O', self.image_format, self.disk.uri,
                   f'/proc/self/fd/{self._file}')
        with contextlib.ExitStack() as stack:
            words = stack.enter_context(tempfile.TemporaryFile())
            process = stack.enter_context(subprocess.Popen(
                command, pass_fds=(self._file,), stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=words))
            # Does nothing to one that has ended.
            stack.callback(process.kill)
            # In this order: whichever of the two threads comes first, one of
            # them sees what the other did.
            self._process = process
            if self._aborted:
                process.kill()
            self._await(process)
            words.seek(0)
            said = words.read().decode(errors='replace').strip()
        if process.returncode:
            raise self._error(
                said or f'qemu-img ended with {process.returncode}')

    def _await(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for qemu-img, for as long as it does anything."""
        # Popen's own timeout can't be caught under eventlet, which has two
        # classes of the name TimeoutExpired.
        with contextlib.ExitStack() as stack:
            pidfd = os.pidfd_open(process.pid)
            stack.callback(os.close, pidfd)
            selector = stack.enter_context(selectors.DefaultSelector())
            selector.register(pidfd, selectors.EVENT_READ)
            worked = None
            while not selector.select(CONF.snapext.read_timeout):
                # For a silent server it would wait for ever, as it would for
                # one that has no place for a second client.
                before, worked = worked, psutil.Process(
                    process.pid).cpu_times()
                if worked == before:
                    raise self._error(
                        f'qemu-img has done nothing for '
                        f'{CONF.snapext.read_timeout} seconds')
        process.wait()

    def _pieces(self) -> Iterator[base.Piece]:
        buffers = read.BufferPool(PIECE_SIZE)
        position = 0
        while True:
            piece = buffers.take(PIECE_SIZE)
            try:
                length = os.preadv(self._file, [piece], position)
            except OSError as error:
                raise self._error(str(error)) from error
            if not length:
                return
            yield piece[:length]
            position += length

    def _error(self, reason: str) -> base.EncodeError:
        return base.EncodeError(image_format=self.image_format, reason=reason)


class VdiEncoder(StagedEncoder):
    """VirtualBox's format, dynamic: QEMU's block/vdi.c."""

    image_format = 'vdi'
    GRAIN = units.Mi

    def _tables_size(self, grains: clusters.ClusterMap) -> int:
        # A header of one sector, and a number for each block of the disk.
        blocks = _ceil(self.disk.size, self.GRAIN)
        return (1 + _ceil(4 * blocks, SECTOR_SIZE)) * SECTOR_SIZE


class VmdkEncoder(StagedEncoder):
    """VMware's format, monolithicSparse: QEMU's block/vmdk.c."""

    image_format = 'vmdk'
    GRAIN = 64 * units.Ki

    def _tables_size(self, grains: clusters.ClusterMap) -> int:
        # In sectors: header and descriptor, and twice the directory of
        # tables, with tables of 512 grains each for all of the disk.
        tables = _ceil(_ceil(self.disk.size, self.GRAIN), 512)
        directory = _ceil(4 * tables, SECTOR_SIZE)
        sectors = 1 + 20 + 2 * (directory + 4 * tables)
        return _ceil(sectors * SECTOR_SIZE, self.GRAIN) * self.GRAIN


def _ceil(amount: int, unit: int) -> int:
    return -(-amount // unit)
