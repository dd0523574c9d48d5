# SPDX-License-Identifier: Apache-2.0
"""nova-compute is killed again, while it recovers from a first kill."""

from devcloud import compute
from devcloud import errors
from devcloud import wait

from tests.faults import base
from tests.faults import points

#: Seconds in which a recovery reaches each point.
RECOVERY_TIMEOUT = 90


class SecondKillTestCase(base.FaultTestCase):
    """Kills during the recovery from a first kill.

    :cvar FIRST: the point of the first kill
    """

    FAULT = 'nova-compute is killed again during recovery'
    FIRST = points.READ

    @classmethod
    def points(cls):
        return points.RECOVERY.get((cls.CASE, cls.FIRST), ())

    def fault_at(self, point):
        with self.recorded(point):
            before = self.server_state()
            image, _ = self.snapshot_until_killed(self.FIRST)
            acknowledged = self.await_writes(self.FIRST)
            self.start_until_killed(point)
            acknowledged = max(acknowledged, self.await_writes(point))
            compute.start(self.state)
            self.assert_recovered(before, image, acknowledged)

    def start_until_killed(self, point):
        self.faults.arm(point)
        try:
            compute.start(self.state)
        except errors.CloudError:
            if not self.faults.has_occurred():
                raise
        else:
            # The recovery goes on in the background: Ceph needs 30 seconds to
            # forget the client that was killed.
            wait.until('the fault', self.faults.has_occurred,
                       RECOVERY_TIMEOUT)


class BackupTest(SecondKillTestCase):
    CASE = points.BACKUP


class ExternalTest(SecondKillTestCase):
    CASE = points.EXTERNAL


class InternalTest(SecondKillTestCase):
    CASE = points.INTERNAL


class ColdTest(SecondKillTestCase):
    """The recovery of a guest that is still suspended."""

    CASE = points.COLD
    FIRST = points.COLD.point('the saved memory uses the overlay')
