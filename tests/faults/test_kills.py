# SPDX-License-Identifier: Apache-2.0
"""nova-compute killed at every point of a snapshot, and started again."""

from devcloud import compute

from tests.faults import base
from tests.faults import points

FAULT = 'nova-compute is killed'


class KillTestCase(base.FaultTestCase):

    def kill_at(self, point):
        with self.recorded(FAULT, point):
            before = self.standing()
            image, killed = self.ask_and_await_death(point)
            if self.CASE.running and point.guest == points.WRITES:
                self.await_records(self.server, 3)
            acknowledged = self.last_record(self.server)
            compute.start(self.state)
            self.assert_session_ended(killed)
            self.assert_healed(before, image, acknowledged)

    def test_all_points_are_reached_by_a_snapshot(self):
        with self.faults.traced() as reached:
            self.snapshot(self.server, strategy=self.CASE.strategy)
        self.assertEqual(
            [], [point.name for point in self.CASE.points
                 if (point.function, point.moment) not in reached])

    def test_then_it_is_stopped_started_and_rebooted_and_has_lost_nothing(
            self):
        self.assert_usable()


def kill_test(point):
    def test(self):
        self.kill_at(point)
    return test


def all_kills(case):
    """Make the tests of all points of a case, in order."""
    tests = {f'test_killed_{number:02}_when_{point.identifier}':
             kill_test(point)
             for number, point in enumerate(case.points, start=1)}
    name = f'{case.strategy} {"" if case.running else "off"} test'.title()
    return type(name.replace(' ', ''), (KillTestCase,),
                {'__module__': __name__, 'CASE': case, **tests})


for _case in points.CASES:
    _tests = all_kills(_case)
    globals()[_tests.__name__] = _tests
