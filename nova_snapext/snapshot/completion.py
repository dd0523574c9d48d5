# SPDX-License-Identifier: Apache-2.0
"""A snapshot whose image is complete, whatever comes afterwards."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib

from nova.compute import task_states
from nova import objects
from oslo_log import log as logging

from nova_snapext import journal

LOG = logging.getLogger(__name__)

# Nova destroys the guest's disk, or leaves it behind, as soon as these
# snapshots are taken: shelve, and a resize to another cell. What the guest
# has written since the freeze may be in the overlay alone.
DISK_GOES = (task_states.SHELVING,
             task_states.SHELVING_IMAGE_PENDING_UPLOAD,
             task_states.SHELVING_IMAGE_UPLOADING,
             task_states.RESIZE_MIGRATING)


class Completion:
    """Whether the image is complete, and what is left of its snapshot."""

    def __init__(self) -> None:
        self._entry: journal.JournalEntry | None = None

    def reached(self, entry: journal.JournalEntry) -> None:
        """Note that the image is complete.

        :param entry: the snapshot's entry, which keeps what is left
        """
        self._entry = entry

    @property
    def is_reached(self) -> bool:
        return self._entry is not None

    @property
    def left(self) -> str:
        """The kinds of the resources that are left; empty if none is."""
        return ', '.join(record.kind for record in self._records)

    @property
    def blocks_start(self) -> bool:
        """Whether what is left contains data of the guest."""
        return any(record.blocks_start for record in self._records)

    def save_problem(self, problem: str) -> None:
        """Write down why something is left."""
        if self._entry is not None and self._entry.records:
            self._entry.save_problem(problem)

    @property
    def _records(self) -> list[journal.JournalRecord]:
        return self._entry.records if self._entry is not None else []


@contextlib.contextmanager
def keep_complete_image(
    instance: objects.Instance, image_id: str,
) -> Iterator[Completion]:
    """Report errors after the image is complete, instead of raising them.

    Nova's manager would delete the image. What is left is in the journal, and
    the gate tries again to release it.

    :yields: the function that completes the image calls its reached()
    :raises Exception: the error itself, if the image is not complete, or if
        data of the guest would be lost with its disk
    """
    completion = Completion()
    try:
        yield completion
    except Exception as error:
        if not completion.is_reached or (
                completion.blocks_start and instance.task_state in DISK_GOES):
            raise
        completion.save_problem(str(error))
        LOG.exception('Image %(image)s is complete and stays, but its '
                      'snapshot could not be cleaned up (%(left)s): '
                      '%(error)s. nova-compute tries again by itself, see '
                      '[snapext]recovery_interval',
                      {'image': image_id, 'error': error,
                       'left': completion.left or 'nothing is left'},
                      instance=instance)
