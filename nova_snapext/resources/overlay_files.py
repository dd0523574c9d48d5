# SPDX-License-Identifier: Apache-2.0
"""The files of an overlay, and what they say about its data.

The files say it, and not the journal: they move with the disk to other hosts,
are there if the journal is lost, and change without needing any space.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import dataclasses
import enum
import json
import os
import pathlib

from oslo_log import log as logging

from nova_snapext import durable
from nova_snapext import exception
from nova_snapext.hypervisor import qemu_img
from nova_snapext import plan as planning
from nova_snapext.resources import fence

LOG = logging.getLogger(__name__)

#: Appended to the name of the overlay.
MARKER = '.unmerged'
BASE = '.base'


class MergeState(enum.Enum):
    """What is known of an overlay."""

    #: It may contain data that the disk does not.
    OUTSTANDING = enum.auto()
    #: QEMU may have been told to leave it. It is unknown whether the overlay
    #: or the disk has the newer data.
    PIVOTING = enum.auto()
    #: The disk has all data.
    MERGED = enum.auto()
    #: It had data that the disk lacks, and was removed by somebody else.
    LOST = enum.auto()


class OverlayFiles:
    """An overlay, its marker, its description, and the fence around them.

    The marker is an empty file that says that the disk was not written to
    since the overlay exists. It is created after the overlay, and removed
    before QEMU may leave the overlay, and before the overlay is removed.

    ============================ =========== ==============
    overlay                      with marker without marker
    ============================ =========== ==============
    has data                     OUTSTANDING PIVOTING
    missing or without any byte  LOST        MERGED
    ============================ =========== ==============

    The description says what disk is below the overlay. QEMU can write the
    header of the overlay, but no file in this directory.

    Every change is durable when its method returns, so that no loss of power
    can make a merged overlay look unmerged, or lost.

    :ivar path: path of the overlay
    :ivar marker: path of the marker
    """

    def __init__(self, path: str):
        self.path = path
        self._new = f'{path}{durable.NEW}'
        self.marker = f'{path}{MARKER}'
        self._base = f'{path}{BASE}'
        self._fence = fence.Fence(path)

    def exist(self) -> bool:
        """Return whether the overlay or any companion of it exists."""
        return self._fence.exists() or any(map(os.path.lexists, (
            self.path, self.marker, self._base, self._new)))

    def base(self) -> planning.RootDisk | None:
        """Return the disk below the overlay; None if there is no description.

        :raises UnexpectedState: the description can't be read
        """
        try:
            return planning.RootDisk(**json.loads(
                pathlib.Path(self._base).read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise exception.UnexpectedState(
                reason=f'{self._base} can\'t be read: {error}') from error

    @property
    def state(self) -> MergeState:
        """Return what is known of the overlay.

        :raises UnexpectedState: its directory is out of reach
        """
        try:
            size = os.stat(self.path).st_size
        except FileNotFoundError:
            if not os.path.isdir(os.path.dirname(self.path)):
                raise exception.UnexpectedState(
                    reason=f'the directory of {self.path} does not exist. If '
                           f'it is on shared storage, mount it') from None
            size = 0
        if os.path.exists(self.marker):
            return MergeState.OUTSTANDING if size else MergeState.LOST
        return MergeState.PIVOTING if size else MergeState.MERGED

    def lost(self) -> exception.UnexpectedState:
        """Return the error of an overlay that is LOST."""
        what = 'is empty' if os.path.lexists(self.path) else 'is missing'
        return exception.UnexpectedState(
            reason=f'the overlay {self.path} {what}, although {self.marker} '
                   f'says that it has data that the disk lacks. nova-snapext '
                   f'has not removed it')

    def create(self, disk: planning.RootDisk, size: int) -> None:
        """Create an overlay over a disk.

        :param size: virtual size of both, in bytes
        :raises FileExistsError: the overlay exists; nothing was changed
        :raises ProcessExecutionError: it can't be created
        :raises OSError: it can't be created
        """
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._new)
        qemu_img.create_overlay(self._new, disk, size)
        try:
            # A loss of power must not leave half an overlay.
            durable.sync(self._new)
            os.link(self._new, self.path)
            durable.write(self._base, json.dumps(dataclasses.asdict(disk)))
        finally:
            os.unlink(self._new)
        self.mark_unmerged()
        self._fence.create()

    def mark_unmerged(self) -> None:
        """Create the marker.

        Call it only while no guest can write to the disk.

        :raises OSError: it can't be created
        """
        if not os.path.exists(self.marker):
            os.close(os.open(self.marker, os.O_CREAT | os.O_WRONLY, 0o644))
        durable.sync_parent(self.marker)
        LOG.debug('Marked the overlay %s as newer than its disk', self.path)

    def unmark(self) -> None:
        """Remove the marker.

        :raises OSError: it can't be removed, or a loss of power can undo it
        """
        durable.unlink(self.marker)
        LOG.debug('The overlay %s is no longer marked as newer than its disk',
                  self.path)

    def remove_overlay(self) -> None:
        """Remove the marker and the overlay; the fence stays.

        Nova may have removed them, together with the instance.

        :raises OSError: they can't be removed, or a loss of power can undo it
        """
        if not os.path.isdir(os.path.dirname(self.path)):
            return
        # A marker alone says that the overlay is lost. An overlay alone is
        # compared with the disk, which has the same data.
        self.unmark()
        for path in (self.path, self._new):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        durable.sync_parent(self.path)
        LOG.debug('The overlay %s is removed', self.path)

    @contextlib.contextmanager
    def space_kept(self) -> Iterator[None]:
        """Have remove_overlay() return before the file's space is freed.

        That takes most of a second for each GiB (seen with ext4), and is done
        when the context is left.
        """
        with contextlib.ExitStack() as stack:
            # Without it, only the guest is paused for longer.
            with contextlib.suppress(OSError):
                descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, descriptor)
            yield

    def remove_fence(self) -> None:
        """Remove fence and description: the guest's definitions use the disk.

        :raises OSError: they can't be removed
        """
        self._fence.remove()
        if os.path.isdir(os.path.dirname(self.path)):
            durable.unlink(self._base)
