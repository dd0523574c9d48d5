# SPDX-License-Identifier: Apache-2.0
"""Images that can't be streamed while they are made.

The tables of these formats are written when the data is, before it or in
between, so qemu-img first writes the whole image to a file.
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
from nova_snapext.encode import reservation
from nova_snapext.hypervisor import image_opts
from nova_snapext import read

CONF = conf.CONF
LOG = logging.getLogger(__name__)

CHUNK_SIZE = len(base.ZEROS)
SECTOR_SIZE = 512


class StagedEncoder(base.Encoder):
    """An image that qemu-img makes of the frozen disk, on entering.

    The file has no name: when this process ends for any reason, the kernel
    frees its space, and a crash leaves nothing to clean up.

    :cvar GRAIN: the unit in which the format allocates space, in bytes
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

        :raises InsufficientStagingSpace: it may not fit; nothing was written
        :raises EncodeError: qemu-img failed
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
                # Nova takes an OSError for a Glance server to try again.
                raise self._error(str(error)) from error
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    def _stage(self, directory: str) -> None:
        block = os.fstatvfs(self._file).f_frsize
        max_size = base.ceil_div(self.max_size(), block) * block
        with reservation.reserve_space(self._file, max_size, directory,
                                       self.image_format), \
                timeutils.StopWatch() as watch:
            try:
                self._convert()
            except base.EncodeError:
                # If the disk can't be read any more, that is the better
                # reason.
                self.disk.probe()
                raise
        self._read_by_qemu_img = sum(
            extent.length for extent in self.disk.extents() if extent.data)
        LOG.info('Staged the %(format)s image of %(disk)s in %(seconds).1f '
                 's: %(written)d bytes on the host, of at most %(max)d',
                 {'format': self.image_format, 'disk': self.disk.uri,
                  'seconds': watch.elapsed(), 'max': max_size,
                  'written': os.fstat(self._file).st_blocks * 512})

    def max_size(self) -> int:
        """Return the maximum size of the image, in bytes.

        That is its size if no allocated cluster is zeros or can be
        compressed. Reads no data of the disk.
        """
        grains = clusters.ClusterMap.of_disk(self.disk, self.GRAIN)
        return self._tables_size(grains) + len(grains) * self.GRAIN

    @abc.abstractmethod
    def _tables_size(self, grains: clusters.ClusterMap) -> int:
        """Return the maximum size of all that isn't data, in bytes.

        :param grains: allocated in the image
        """

    def _convert(self) -> None:
        # Without Nova's -t none: the file is read next and then deleted, so
        # it may stay in the page cache and needs no fsync.
        limit = CONF.snapext.read_rate_limit_mbps * units.Mi
        # qemu-img takes bytes per second.
        rate_limit = ('-r', str(limit)) if limit else ()
        command = ('setpriv', '--pdeathsig', 'KILL',
                   'qemu-img', 'convert', *rate_limit,
                   '-O', self.image_format, *self._source(),
                   f'/proc/self/fd/{self._file}')
        with contextlib.ExitStack() as stack:
            stderr = stack.enter_context(tempfile.TemporaryFile())
            process = stack.enter_context(subprocess.Popen(
                command, pass_fds=(self._file,), stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=stderr))
            LOG.debug('Staging the %(format)s image of %(disk)s in '
                      '%(directory)s with qemu-img, pid %(pid)d',
                      {'format': self.image_format, 'disk': self.disk.uri,
                       'directory': CONF.libvirt.snapshots_directory,
                       'pid': process.pid})
            # Does nothing if the process has ended.
            stack.callback(process.kill)
            # In this order: in any interleaving with abort(), one of the two
            # threads sees what the other one has set.
            self._process = process
            if self._aborted:
                process.kill()
            self._wait(process)
            stderr.seek(0)
            message = stderr.read().decode(errors='replace').strip()
        if process.returncode:
            raise self._error(
                message or
                f'qemu-img failed with exit code {process.returncode}')

    def _source(self) -> tuple[str, ...]:
        """Return the frozen disk as arguments of qemu-img."""
        export = read.unix_export(self.disk.uri)
        if export is None:
            return '-f', 'raw', self.disk.uri
        # NOTE: not as a URI: since QEMU 9.1, nbd_parse_uri() of block/nbd.c
        # decodes the query before it splits it, so no escape protects a "&"
        # or "%" in the path of the socket.
        socket, name = export
        return '--image-opts', image_opts.join({
            'driver': 'raw', 'file': {
                'driver': 'nbd', 'export': name,
                'server': {'type': 'unix', 'path': socket}}})

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for qemu-img as long as it makes progress."""
        # Popen's own timeout can't be caught under eventlet, which has two
        # classes with the name TimeoutExpired.
        with contextlib.ExitStack() as stack:
            pidfd = os.pidfd_open(process.pid)
            stack.callback(os.close, pidfd)
            selector = stack.enter_context(selectors.DefaultSelector())
            selector.register(pidfd, selectors.EVENT_READ)
            cpu_times = None
            while not selector.select(CONF.snapext.read_timeout):
                # qemu-img waits indefinitely for a server that does not
                # respond, and for one that accepts no second client.
                before, cpu_times = cpu_times, psutil.Process(
                    process.pid).cpu_times()
                if cpu_times == before:
                    raise self._error(
                        f'qemu-img has made no progress for '
                        f'{CONF.snapext.read_timeout} seconds '
                        f'([snapext]read_timeout)')
        process.wait()

    def chunks(self) -> Iterator[base.Chunk]:
        buffers = read.BufferPool(CHUNK_SIZE)
        position = 0
        while True:
            chunk = buffers.take(CHUNK_SIZE)
            try:
                length = os.preadv(self._file, [chunk], position)
            except OSError as error:
                raise self._error(str(error)) from error
            if not length:
                return
            yield chunk[:length]
            position += length

    def _error(self, reason: str) -> base.EncodeError:
        return base.EncodeError(image_format=self.image_format, reason=reason)


class VdiEncoder(StagedEncoder):
    """VirtualBox's format, dynamic: QEMU's block/vdi.c."""

    image_format = 'vdi'
    GRAIN = units.Mi

    def _tables_size(self, grains: clusters.ClusterMap) -> int:
        # A header of one sector, and a number for each block of the disk.
        blocks = base.ceil_div(self.disk.size, self.GRAIN)
        return (1 + base.ceil_div(4 * blocks, SECTOR_SIZE)) * SECTOR_SIZE


class VmdkEncoder(StagedEncoder):
    """VMware's format, monolithicSparse: QEMU's block/vmdk.c."""

    image_format = 'vmdk'
    GRAIN = 64 * units.Ki

    def _tables_size(self, grains: clusters.ClusterMap) -> int:
        # In sectors: header and descriptor, and two copies of the directory
        # of tables and of the tables, which have 512 grains each and cover
        # the whole disk.
        tables = base.ceil_div(base.ceil_div(self.disk.size, self.GRAIN), 512)
        directory = base.ceil_div(4 * tables, SECTOR_SIZE)
        sectors = 1 + 20 + 2 * (directory + 4 * tables)
        return base.ceil_div(sectors * SECTOR_SIZE, self.GRAIN) * self.GRAIN
