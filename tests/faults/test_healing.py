# SPDX-License-Identifier: Apache-2.0
"""nova-compute killed once more, while it heals what the first kill left."""

from devcloud import compute
from devcloud import errors

from tests.faults import base
from tests.faults import points


class SecondKillTestCase(base.FaultTestCase):
    """Kills that come after a first one.

    :cvar FIRST: the point of the first kill
    """

    FAULT = 'nova-compute is killed, and again while it heals'
    FIRST = points.READ

    @classmethod
    def points(cls):
        return points.HEALING.get((cls.CASE, cls.FIRST), ())

    def fault_at(self, point):
        with self.recorded(point):
            before = self.standing()
            image, _ = self.ask_and_await_death(self.FIRST)
            acknowledged = self.await_writes(self.FIRST)
            self.start_until_killed(point)
            acknowledged = max(acknowledged, self.await_writes(point))
            compute.start(self.state)
            self.assert_healed(before, image, acknowledged)

    def start_until_killed(self, point):
        self.faults.arm(point)
        try:
            compute.start(self.state)
        except errors.CloudError:
            if not self.faults.has_acted():
                raise
        else:
            self.fail('The healing is over, and has not come to the point')


class BackupTest(SecondKillTestCase):
    CASE = points.BACKUP


class ExternalTest(SecondKillTestCase):
    CASE = points.EXTERNAL


class InternalTest(SecondKillTestCase):
    CASE = points.INTERNAL


class ColdTest(SecondKillTestCase):
    """With a guest that is suspended."""

    CASE = points.COLD
    FIRST = points.COLD.point('the saved memory is on the overlay')
