# SPDX-License-Identifier: Apache-2.0
"""nova-compute is killed at every point of a snapshot, and started again."""

from devcloud import compute

from tests.faults import base
from tests.faults import points


class KillTestCase(base.FaultTestCase):

    FAULT = 'nova-compute is killed'

    def fault_at(self, point):
        with self.recorded(point):
            before = self.server_state()
            image, killed = self.snapshot_until_killed(point)
            acknowledged = self.await_writes(point)
            compute.start(self.state)
            self.assert_session_ended(killed)
            self.assert_recovered(before, image, acknowledged)


class AllPoints:
    """The tests of a whole case, beside those of its points."""

    @classmethod
    def points(cls):
        return cls.CASE.points

    def test_all_points_are_reached_by_one_snapshot(self):
        with self.faults.traced() as reached:
            self.snapshot(self.server, strategy=self.CASE.strategy)
        self.assertEqual(
            [], [point.name for point in self.CASE.points
                 if (point.function, point.moment) not in reached])

    # By its name, it runs after all faults.
    def test_then_guest_stops_starts_and_reboots_without_loss(self):
        self.assert_usable()


class BackupTest(AllPoints, KillTestCase):
    CASE = points.BACKUP


class ExternalTest(AllPoints, KillTestCase):
    CASE = points.EXTERNAL


class InternalTest(AllPoints, KillTestCase):
    CASE = points.INTERNAL


class InternalOfShutOffTest(AllPoints, KillTestCase):
    CASE = points.INTERNAL_OFF


class ColdTest(AllPoints, KillTestCase):
    CASE = points.COLD


class ColdOfShutOffTest(AllPoints, KillTestCase):
    CASE = points.COLD_OFF


class NativeTest(AllPoints, KillTestCase):
    CASE = points.NATIVE
