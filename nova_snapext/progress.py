# SPDX-License-Identifier: Apache-2.0
"""How far a snapshot is: in the log, and as the server's ``progress``."""

from __future__ import annotations

from nova import exception as nova_exception
from nova import objects
from oslo_log import log as logging
from oslo_service import loopingcall
from oslo_utils import units

LOG = logging.getLogger(__name__)

# Seconds between two looks. Each that finds a new percentage is one update of
# the instance in the database, as with a live migration.
INTERVAL = 2

# The log has a line for every so many percent.
LOG_STEP = 25


class Progress:
    """Tells of an upload while it runs; a context manager.

    Told in a thread of its own, as the one that uploads may be a native
    thread under eventlet, where Nova's database can't be reached from.

    """

    def __init__(self, instance: objects.Instance):
        self._instance = instance
        self._logged = 0
        self._sent = 0
        self._size = 1
        self._deleted: nova_exception.InstanceNotFound | None = None
        self._timer = loopingcall.FixedIntervalLoopingCall(self._tell)

    def on_sent(self, sent: int, size: int) -> None:
        """Take note of the bytes sent so far, and those in all.

        :raises InstanceNotFound: the instance has been deleted: give up
        """
        self._sent, self._size = sent, size
        if self._deleted:
            raise self._deleted

    def __enter__(self) -> Progress:
        self._timer.start(interval=INTERVAL)
        return self

    def __exit__(self, *_args: object) -> None:
        self._timer.stop()
        self._timer.wait()
        # What the server shows for its next operation begins at zero.
        self._save(0)

    def _tell(self) -> None:
        percent = 100 * self._sent // self._size
        if percent == self._instance.progress:
            return
        self._save(percent)
        if percent >= self._logged + LOG_STEP:
            self._logged = percent
            LOG.info('Snapshot: %(percent)d %% of %(size)d MiB sent',
                     {'percent': percent, 'size': self._size // units.Mi},
                     instance=self._instance)

    def _save(self, percent: int) -> None:
        self._instance.progress = percent
        try:
            self._instance.save()
        except nova_exception.InstanceNotFound as error:
            self._deleted = error
        except Exception as error:
            # What only tells of a snapshot must not end it.
            LOG.warning('Could not tell how far the snapshot is: %s', error,
                        instance=self._instance)
