# SPDX-License-Identifier: Apache-2.0
"""libvirtd hangs in the middle of what a snapshot asks of it.

Until the snapshot has been given up. Then it goes on, with what it was told
before, too.
"""

import signal

from devcloud import wait

from tests.e2e import base as e2e
from tests.faults import base
from tests.faults import points

# Seconds until nova-compute has connected anew, and cleaned up.
HEALED = 180


class HangTestCase(base.FaultTestCase):

    FAULT = 'libvirtd hangs'
    CONFIGURATION = (*base.FaultTestCase.CONFIGURATION,
                     'snapext.libvirtd_timeout=6', 'snapext.job_timeout=5')

    @classmethod
    def points(cls):
        return points.HANGS.get(cls.CASE, ())

    def fault_at(self, point):
        with self.recorded(point):
            before = self.standing()
            self.faults.arm(point, 'wait')
            image = self.ask()
            self.faults.await_act(point, e2e.SNAPSHOT_TIMEOUT)
            libvirtd = self.hang_libvirtd()
            self.faults.disarm()
            wait.until('the snapshot to be given up',
                       lambda: self.task_state() is None,
                       e2e.SNAPSHOT_TIMEOUT)
            libvirtd.identity().signal(signal.SIGCONT)
            wait.until('nothing to be in the journal',
                       lambda: not self.journaled(), HEALED)
            self.assert_healed(before, image, self.last_record(self.server))


class BackupTest(HangTestCase):
    CASE = points.BACKUP


class ExternalTest(HangTestCase):
    CASE = points.EXTERNAL


class InternalTest(HangTestCase):
    CASE = points.INTERNAL


class ColdTest(HangTestCase):
    CASE = points.COLD
