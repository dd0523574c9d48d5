# SPDX-License-Identifier: Apache-2.0
"""The progress of an upload: in the log, and as the server's ``progress``."""

from __future__ import annotations

from nova import exception as nova_exception
from nova import objects
from oslo_log import log as logging
from oslo_utils import units

from nova_snapext import checks

LOG = logging.getLogger(__name__)

# Seconds between two updates: what users see moves as fast as they would ask
# for it, and nova-conductor gets at most one update of a snapshot in that
# time.
INTERVAL = 2

# Percent between two lines in the log.
LOG_STEP = 25


class UploadProgress(checks.Check):
    """Shows the progress of an upload each time the check runs.

    Each new percentage is one update of the instance in the database, as with
    a live migration. While no byte is sent, as while an image is staged or
    verified, nothing is written.
    """

    def __init__(self, instance: objects.Instance):
        # A copy of its own: a save that hangs may end while the snapshot
        # saves a task state.
        self._original = instance
        self._instance = instance.obj_clone()
        self._instance.obj_reset_changes(recursive=True)
        self._logged = 0
        self._sent = 0
        self._size = 1

    def on_progress(self, sent: int, size: int) -> None:
        """Save the progress for the next run.

        :param sent: bytes of the image sent so far
        :param size: bytes of the whole image, as an estimate
        """
        self._sent, self._size = sent, size

    def run(self) -> nova_exception.InstanceNotFound | None:
        percent = min(100, 100 * self._sent // self._size)
        if percent == self._instance.progress:
            return None
        try:
            self._save(percent)
        except nova_exception.InstanceNotFound:
            # Not the conductor's error, whose text contains a traceback.
            return nova_exception.InstanceNotFound(
                instance_id=self._instance.uuid)
        if percent >= self._logged + LOG_STEP:
            self._logged = percent
            LOG.info('Snapshot: %(percent)d %% of %(size)d MiB sent',
                     {'percent': percent, 'size': self._size // units.Mi},
                     instance=self._instance)
        return None

    def reset(self) -> None:
        """Reset the server's progress, for its next operation.

        Nova's manager saves it together with the next task state: users see
        both at once, and no update of its own delays the end of the snapshot.
        Call it when the check has ended.
        """
        if self._instance.progress:
            self._original.progress = 0

    def finish_late(self) -> None:
        # Its last run has overwritten what reset() has set.
        try:
            self._save(0)
        except nova_exception.InstanceNotFound:
            # It was deleted, and has no next operation.
            return
        except Exception as error:
            # Failing to show progress must not fail the snapshot.
            LOG.warning('Could not reset the progress of the server: %s',
                        error, instance=self._instance)

    def _save(self, percent: int) -> None:
        self._instance.progress = percent
        self._instance.save()
