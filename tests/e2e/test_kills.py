# SPDX-License-Identifier: Apache-2.0
"""nova-compute killed in the middle of snapshots: see tests/faults."""

from tests.faults import points
from tests.faults import test_kills


class KillTest(test_kills.KillTestCase):
    """One guest for all strategies."""

    CASE = points.BACKUP

    def killed(self, case, point):
        self.CASE = case
        self.fault_at(case.point(point))

    def test_backup_heals_after_a_kill_in_the_middle_of_the_upload(self):
        self.killed(points.BACKUP, 'the 50th piece is read')

    def test_external_heals_after_a_kill_in_the_middle_of_the_commit(self):
        self.killed(points.EXTERNAL, 'the commit has begun')

    def test_cold_heals_after_a_kill_while_the_guest_is_suspended(self):
        self.killed(points.COLD, 'the saved memory is on the overlay')
