# SPDX-License-Identifier: Apache-2.0
"""The host loses power while a guest uses an overlay."""

import http
import signal

from devcloud import compute
from devcloud import errors
from devcloud import servers
from devcloud import wait

from tests.faults import base
from tests.faults import points


class PowerLossTestCase(base.FaultTestCase):

    FAULT = 'The host loses power'

    @classmethod
    def points(cls):
        """Return the points with an overlay; of the upload, just one."""
        if cls.CASE is None:
            return ()
        since = cls.CASE.since("the overlay's file is created")
        omitted = {*points.SENT, points.SERVER_ENDED, *points.DONE}
        return [point for point in since
                if point is points.READ or point not in omitted]

    def fault_at(self, point):
        with self.recorded(point):
            before = self.server_state()
            image, _ = self.snapshot_until_killed(point)
            self.lose_power()
            acknowledged = self.last_record(self.server)
            self.host.start()
            compute.start(self.state)
            self.start_guest()
            self.assert_boots_with_all(acknowledged)
            self.assert_recovered(before, image, acknowledged)

    def lose_power(self):
        """Kill QEMU and libvirtd, as nova-compute was killed."""
        name = self.host.virsh('domname', self.server).strip()
        # None if the guest is suspended at this point.
        guest = self.host.guests().get(name)
        self.host.kill()
        if guest:
            guest.signal(signal.SIGKILL)
            wait.until('the end of QEMU', lambda: not guest.is_alive(),
                       base.SETTLE_TIMEOUT)
        self.expect_lost_line(self.server)

    def start_guest(self):
        """Start the guest as its user would. Nova may still show it active.

        In the first minute of nova-compute, after a random delay
        (periodic_fuzzy_delay), Nova finds out that the guest is off, and
        stops it by itself: ComputeManager._sync_power_states.
        """
        # The recovery may still be in progress.
        wait.until('the end of the task', lambda: self.task_state() is None,
                   base.SETTLE_TIMEOUT)
        if servers.show(self.client, self.server)['status'] == 'ACTIVE':
            try:
                servers.action(self.client, self.server, 'os-stop')
            except errors.ApiError as error:
                # Nova has just begun to stop it.
                if error.code != http.HTTPStatus.CONFLICT:
                    raise
            servers.await_status(self.client, self.server, 'SHUTOFF')
        self.action(self.server, 'os-start', 'ACTIVE')


class ExternalTest(PowerLossTestCase):

    CASE = points.EXTERNAL


class ColdTest(PowerLossTestCase):

    CASE = points.COLD
