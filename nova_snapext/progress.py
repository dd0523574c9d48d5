# SPDX-License-Identifier: Apache-2.0
"""How far a snapshot is: in the log, and as the server's ``progress``."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib

from nova import exception as nova_exception
from nova import objects
from oslo_log import log as logging
from oslo_utils import units

from nova_snapext import monitor

LOG = logging.getLogger(__name__)

# The log has a line for every so many percent.
LOG_STEP = 25


class Progress(monitor.Look):
    """Tells of an upload, whenever it is looked at.

    Not while a task state is set: it is the same instance that is saved.
    Each look that finds a new percentage is one update of the instance in the
    database, as with a live migration.
    """

    def __init__(self, instance: objects.Instance):
        self._instance = instance
        self._logged = 0
        self._sent = 0
        self._size = 1

    def on_sent(self, sent: int, size: int) -> None:
        """Take note of the bytes sent so far, and about those in all."""
        self._sent, self._size = sent, size

    def __call__(self) -> nova_exception.InstanceNotFound | None:
        percent = min(100, 100 * self._sent // self._size)
        if percent == self._instance.progress:
            return None
        try:
            self._save(percent)
        except nova_exception.InstanceNotFound:
            # Not the conductor's, whose text has its traceback.
            return nova_exception.InstanceNotFound(
                instance_id=self._instance.uuid)
        if percent >= self._logged + LOG_STEP:
            self._logged = percent
            LOG.info('Snapshot: %(percent)d %% of %(size)d MiB sent',
                     {'percent': percent, 'size': self._size // units.Mi},
                     instance=self._instance)
        return None

    @contextlib.contextmanager
    def cleared(self) -> Iterator[None]:
        """Have what the server shows for its next operation begin at zero."""
        try:
            yield
        finally:
            self._clear()

    def _clear(self) -> None:
        try:
            self._save(0)
        except nova_exception.InstanceNotFound:
            # It has been deleted, and has no next operation.
            return
        except Exception as error:
            # What only tells of a snapshot must not end it.
            LOG.warning('Could not tell that the snapshot is over: %s', error,
                        instance=self._instance)

    def _save(self, percent: int) -> None:
        self._instance.progress = percent
        self._instance.save()
