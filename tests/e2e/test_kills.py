# SPDX-License-Identifier: Apache-2.0
"""A nova-compute that is killed in the middle of snapshots.

tests/faults has many more points.
"""

from tests.faults import points
from tests.faults import test_kills


class KillTest(test_kills.KillTestCase):
    """One guest for all strategies."""

    CASE = points.BACKUP

    def kill_at(self, case, point):
        """Check the recovery from a kill at a point of a snapshot.

        :param case: one of points.CASES
        :param point: name of the point
        """
        self.CASE = case
        self.fault_at(case.point(point))

    def test_backup_is_recovered_after_kill_during_upload(self):
        self.kill_at(points.BACKUP, 'the 50th chunk is read')

    def test_external_is_recovered_after_kill_during_commit(self):
        self.kill_at(points.EXTERNAL, 'the commit has started')

    def test_cold_is_recovered_after_kill_while_guest_is_suspended(self):
        self.kill_at(points.COLD, 'the saved memory uses the overlay')
