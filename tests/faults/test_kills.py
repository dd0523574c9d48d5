# SPDX-License-Identifier: Apache-2.0
"""nova-compute killed at every point of a snapshot, and started again."""

from devcloud import compute

from tests.faults import base
from tests.faults import points


class KillTestCase(base.FaultTestCase):

    FAULT = 'nova-compute is killed'

    def fault_at(self, point):
        with self.recorded(point):
            before = self.standing()
            image, killed = self.ask_and_await_death(point)
            acknowledged = self.await_writes(point)
            compute.start(self.state)
            self.assert_session_ended(killed)
            self.assert_healed(before, image, acknowledged)


class AllPoints:
    """What is proved beside the single points."""

    @classmethod
    def points(cls):
        return cls.CASE.points

    def test_all_points_are_reached_by_a_snapshot(self):
        with self.faults.traced() as reached:
            self.snapshot(self.server, strategy=self.CASE.strategy)
        self.assertEqual(
            [], [point.name for point in self.CASE.points
                 if (point.function, point.moment) not in reached])

    # The last one, by its name.
    def test_then_it_is_stopped_started_and_rebooted_and_has_lost_nothing(
            self):
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
