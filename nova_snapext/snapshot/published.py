# SPDX-License-Identifier: Apache-2.0
"""What a running snapshot tells other processes: ``nova-snapext status``.

Each snapshot has a small file in memory, memfd_create(2), that has no name in
any directory. Another process reads it through /proc/PID/fd. So

* it needs no space on a disk, and no directory that somebody has to prepare;
* it is gone when nova-compute is, however that ends, and a snapshot of a dead
  process can't be shown;
* only root and the user of the process can read it: the kernel asks for the
  rights to trace the process, see proc(5), /proc/PID/fd.

A write takes microseconds. It waits for nobody, takes no lock, and no error
of it reaches the snapshot, so that it can be done in any thread, native or
green.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import dataclasses
import enum
import json
import os
import pathlib
import struct
import time
import typing as ty
import zlib

from nova import objects
from oslo_log import log as logging
from oslo_utils import timeutils

from nova_snapext import conf

CONF = conf.CONF
LOG = logging.getLogger(__name__)

PROC = pathlib.Path('/proc')

#: Name of the file, which the kernel shows as the target of a link.
NAME = 'nova-snapext-snapshot'
LINK = f'/memfd:{NAME} (deleted)'

# Length and CRC-32 of the JSON that follows. A reader may see half of a write.
HEADER = struct.Struct('=II')
READ_ATTEMPTS = 10
# Seconds between two of them: a write takes far less.
READ_INTERVAL = 0.001

# Seconds between two writes of the progress. The upload reports each chunk.
INTERVAL = 0.5

# Seconds over which the rate is an average, so that it does not jump.
RATE_WINDOW = 10.0


class Phase(enum.StrEnum):
    """What a snapshot does."""

    PREPARING = 'preparing'     # checks, and waiting for other snapshots
    FREEZING = 'freezing'       # the filesystems, and then the disk
    UPLOADING = 'uploading'     # also: copied inside Ceph
    RELEASING = 'releasing'     # such as the merge of an overlay
    HASHING = 'hashing'         # Glance reads an image inside Ceph
    NATIVE = 'native'           # all of it is Nova's own


@dataclasses.dataclass
class Snapshot:
    """A running snapshot, as it is published.

    :ivar began_at: UTC, in ISO 8601
    :ivar journal_directory: tells apart nova-computes of one machine
    :ivar pid: of the process that takes it
    :ivar strategy: None if none is selected yet
    :ivar frozen_at: when the disk was frozen, UTC; None if it was not
    :ivar sent: bytes of the image that are uploaded; None if not known
    :ivar size: bytes of the whole image, an estimate; None if not known
    :ivar rate: bytes per second in the last seconds; None if not known
    """

    instance_uuid: str
    instance_name: str
    image_id: str
    began_at: str
    host: str
    journal_directory: str
    pid: int
    strategy: str | None = None
    phase: str = Phase.PREPARING.value
    frozen_at: str | None = None
    sent: int | None = None
    size: int | None = None
    rate: int | None = None

    @property
    def seconds_left(self) -> int | None:
        """The time that the rest of the upload takes at this rate."""
        if not self.rate or self.sent is None or self.size is None:
            return None
        return max(0, self.size - self.sent) // self.rate


class Publication(contextlib.AbstractContextManager['Publication']):
    """The file of one snapshot, for as long as the snapshot runs."""

    def __init__(self, instance: objects.Instance, image_id: str):
        self._descriptor: int | None = None
        self._snapshot = Snapshot(
            instance_uuid=instance.uuid, instance_name=instance.name,
            image_id=image_id, began_at=timeutils.utcnow().isoformat(),
            host=CONF.host, pid=os.getpid(),
            journal_directory=os.path.abspath(CONF.snapext.journal_directory))
        # Times and bytes of the last writes of the progress.
        self._sent: list[tuple[float, int]] = []
        self._written = 0.0

    def __enter__(self) -> Publication:
        try:
            self._descriptor = os.memfd_create(NAME, os.MFD_CLOEXEC)
        except OSError as error:
            LOG.debug('The snapshot can\'t tell its progress to '
                      '"nova-snapext status": %s', error)
        self._write()
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def set_phase(self, phase: Phase, strategy: str | None = None) -> None:
        """Tell what the snapshot does now.

        :param strategy: its strategy, if that is new
        """
        self._snapshot.phase = phase.value
        if strategy is not None:
            self._snapshot.strategy = strategy
            self._snapshot.frozen_at = None
            self._snapshot.sent = self._snapshot.size = None
            self._snapshot.rate = None
        self._write()

    def set_frozen(self, frozen_at: str) -> None:
        """Tell that the disk is frozen, and is uploaded now.

        :param frozen_at: UTC, in ISO 8601
        """
        self._snapshot.frozen_at = frozen_at
        self._sent = []
        self.set_phase(Phase.UPLOADING)

    def on_progress(self, sent: int, size: int) -> None:
        """Tell the progress of the upload. It may be called for each chunk.

        :param sent: bytes of the image sent so far
        :param size: bytes of the whole image, as an estimate
        """
        now = time.monotonic()
        if now - self._written < INTERVAL and sent != size:
            return
        self._written = now
        if self._sent and sent < self._sent[-1][1]:
            self._sent = []     # the upload begins again
        self._sent = [*(one for one in self._sent
                        if now - one[0] <= RATE_WINDOW), (now, sent)]
        first, began = self._sent[0][0], self._sent[0][1]
        if now > first:
            self._snapshot.rate = int((sent - began) / (now - first))
        self._snapshot.sent, self._snapshot.size = sent, size
        self._write()

    def _write(self) -> None:
        if self._descriptor is None:
            return
        try:
            content = json.dumps(vars(self._snapshot)).encode()
            os.pwrite(self._descriptor, HEADER.pack(
                len(content), zlib.crc32(content)) + content, 0)
        except Exception as error:
            # As when no memory is left. Nothing of this fails a snapshot.
            LOG.debug('The snapshot can\'t tell its progress: %s', error)


def running() -> list[Snapshot]:
    """Return the snapshots that run on this host, as far as this user sees.

    They are those of processes with the same journal, and none of a process
    that has ended.
    """
    journal = os.path.abspath(CONF.snapext.journal_directory)
    return sorted((snapshot for snapshot in _all()
                   if snapshot.journal_directory == journal and
                   snapshot.host == CONF.host),
                  key=lambda snapshot: snapshot.began_at)


def _all() -> Iterator[Snapshot]:
    for process in PROC.glob('[0-9]*'):
        try:
            for descriptor in os.scandir(process / 'fd'):
                with contextlib.suppress(OSError):
                    if os.readlink(descriptor.path) == LINK:
                        snapshot = _read(descriptor.path)
                        # A child that was forked has it too.
                        if snapshot is not None and (
                                snapshot.pid == int(process.name)):
                            yield snapshot
        except OSError:
            continue  # it has ended, or is another user's


def _read(path: str) -> Snapshot | None:
    """Return what a file says; None if it says nothing usable.

    :raises OSError: the process has ended, or the snapshot
    """
    for _attempt in range(READ_ATTEMPTS):
        content = pathlib.Path(path).read_bytes()
        if len(content) >= HEADER.size:
            length, checksum = HEADER.unpack_from(content)
            body = content[HEADER.size:HEADER.size + length]
            if zlib.crc32(body) == checksum:
                return _parse(body)
        time.sleep(READ_INTERVAL)
    return None


def _parse(body: bytes) -> Snapshot | None:
    try:
        found: dict[str, ty.Any] = json.loads(body)
        return Snapshot(**found)
    except (ValueError, TypeError):
        return None  # of another version
