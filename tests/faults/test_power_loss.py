# SPDX-License-Identifier: Apache-2.0
"""The host's power lost while a guest is on an overlay."""

import signal

from devcloud import compute
from devcloud import servers
from devcloud import wait

from tests.faults import base
from tests.faults import points


class PowerLossTestCase(base.FaultTestCase):

    FAULT = 'The host loses power'

    @classmethod
    def points(cls):
        """Those at which the overlay may be there, one of the upload's."""
        if cls.CASE is None:
            return ()
        since = cls.CASE.since('the overlay\'s file is made')
        passed_over = {*points.SENT, points.SERVER_ENDED, *points.DONE}
        return [point for point in since
                if point is points.READ or point not in passed_over]

    def fault_at(self, point):
        with self.recorded(point):
            before = self.standing()
            image, _ = self.ask_and_await_death(point)
            self.lose_power()
            acknowledged = self.last_record(self.server)
            self.host.start()
            compute.start(self.state)
            self.start_guest()
            self.assert_boots_with_all(acknowledged)
            self.assert_healed(before, image, acknowledged)

    def lose_power(self):
        """End QEMU and libvirtd as nova-compute has ended: at once."""
        name = self.host.virsh('domname', self.server).strip()
        # None where the guest is suspended right now.
        guest = self.host.guests().get(name)
        self.host.kill()
        if guest:
            guest.signal(signal.SIGKILL)
            wait.until('the end of QEMU', lambda: not guest.is_alive(),
                       base.SETTLE_TIMEOUT)
        # A guest writes a record to its partition first, where it finds it
        # when it boots, and then its line to a file, which it may not come to.
        type(self).lost_lines |= {self.last_record(self.server) + 1}

    def start_guest(self):
        """Start it as its user would, to whom it may look active."""
        if servers.show(self.client, self.server)['status'] == 'ACTIVE':
            self.action(self.server, 'os-stop', 'SHUTOFF')
        self.action(self.server, 'os-start', 'ACTIVE')


class ExternalTest(PowerLossTestCase):

    CASE = points.EXTERNAL


class ColdTest(PowerLossTestCase):

    CASE = points.COLD
