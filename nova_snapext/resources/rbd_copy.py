# SPDX-License-Identifier: Apache-2.0
"""A copy of a frozen disk, in Ceph, that becomes an image in Glance."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
import hashlib

from oslo_log import log as logging

from nova_snapext import cancel
from nova_snapext.encode import base as encode_base
from nova_snapext.encode import clusters
from nova_snapext.encode import layout
from nova_snapext import exception
from nova_snapext.hypervisor import ceph
from nova_snapext.hypervisor import rbd_io
from nova_snapext import plan as planning
from nova_snapext import read
from nova_snapext.resources import rbd_image

LOG = logging.getLogger(__name__)


class Content:
    """All clusters that are not zero, each with its place on the disk.

    :ivar size: of these clusters, in bytes
    """

    def __init__(self) -> None:
        self.size = 0
        self._digest = hashlib.sha256()

    def add(self, offset: int,
            chunk: memoryview) -> Iterator[tuple[int, memoryview]]:
        """Add the clusters of a chunk, in ascending order.

        :param offset: of the chunk, at a cluster boundary
        :yields: offset and content of each part that is not zero
        """
        begin = end = 0
        for start in range(0, len(chunk), layout.CLUSTER_SIZE):
            cluster = chunk[start:start + layout.CLUSTER_SIZE]
            if read.is_zero(cluster):
                if begin < end:
                    yield offset + begin, chunk[begin:end]
                begin = end = start + len(cluster)
                continue
            end = start + len(cluster)
            self.size += len(cluster)
            self._digest.update((offset + start).to_bytes(8, 'big'))
            self._digest.update(cluster)
        if begin < end:
            yield offset + begin, chunk[begin:end]

    def digest(self) -> bytes:
        """Return the digest of all that was added."""
        return self._digest.digest()


class RbdCopy(rbd_image.RbdImage):
    """A copy of a frozen disk that becomes an image in Glance.

    It has no more data than the disk: zeros are not written. What was written
    is read back and compared before Glance gets it.

    :ivar bytes_written: of the disk's data, in bytes
    """

    kind = 'RBD copy'

    def __init__(self, target: planning.Target, spec: ceph.ImageSpec,
                 seen_by_nova: bool):
        super().__init__(target, spec, seen_by_nova)
        self.bytes_written = 0

    def fill(self, disk: read.Disk, token: cancel.CancelToken,
             on_progress: Callable[[int, int], None],
             ) -> ceph.SnapSpec:
        """Create the copy, with the snapshot that Glance expects.

        :param token: its cancellation ends it, with the cause
        :param on_progress: called with the number of bytes of the disk that
            are done, and with its size; half of them are done when all is
            written, and the others when it is read back
        :returns: that snapshot
        :raises CephError: it can't be written, or what is read back differs
        :raises DiskReadError: the disk can't be read
        """
        try:
            ceph.create_image(self.spec, disk.size)
        except exception.CephError as error:
            self.not_created(error)
            raise
        content = self._write(disk, token, on_progress)
        disk.check_frozen()
        snapshot = ceph.finish_image(self.spec)
        if self._read_back(snapshot, token, on_progress) != (
                disk.size, content.digest()):
            raise exception.CephError(
                action=f'verify {self.spec}',
                reason='what was read back differs from what was written')
        self.bytes_written = content.size
        LOG.debug('%s is written and verified', self.spec,
                  instance=self._target.instance)
        return snapshot

    def _write(self, disk: read.Disk, token: cancel.CancelToken,
               on_progress: Callable[[int, int], None]) -> Content:
        content = Content()
        data = clusters.ClusterMap.of_disk(disk)
        with rbd_io.OpenImage(self.spec, token) as image:
            for offset, chunk in disk.read(clusters.byte_ranges(
                    data.disk_runs(), disk.size)):
                for begin, part in content.add(offset, chunk):
                    image.write(part, begin)
                on_progress((offset + len(chunk)) // 2, disk.size)
            image.flush()
        return content

    def _read_back(self, snapshot: ceph.SnapSpec, token: cancel.CancelToken,
                   on_progress: Callable[[int, int], None],
                   ) -> tuple[int, bytes]:
        """Return size and digest of what Ceph has."""
        content = Content()
        data = clusters.ClusterMap()
        size, parts = ceph.allocated(snapshot, token)
        for offset, length in parts:
            data.add(offset // layout.CLUSTER_SIZE, encode_base.ceil_div(
                offset + length, layout.CLUSTER_SIZE))
        with rbd_io.OpenImage(self.spec, token, snapshot.name) as image:
            for offset, chunk in image.read(clusters.byte_ranges(
                    data.disk_runs(), size)):
                for _part in content.add(offset, chunk):
                    pass
                on_progress((size + offset + len(chunk)) // 2, size)
        return size, content.digest()
