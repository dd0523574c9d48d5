# SPDX-License-Identifier: Apache-2.0
"""libvirtd hangs during a call of a snapshot, until the snapshot is aborted.

Then it continues, also with the calls that it had already received.
"""

import signal

from devcloud import wait

from tests.e2e import base as e2e
from tests.faults import base
from tests.faults import points

# Seconds until nova-compute has connected again, and has cleaned up.
RECOVERY_TIMEOUT = 180


class HangTestCase(base.FaultTestCase):

    FAULT = 'libvirtd hangs'
    CONFIGURATION = (*base.FaultTestCase.CONFIGURATION,
                     'snapext.libvirtd_hang_timeout=6',
                     'snapext.operation_timeout=5')

    @classmethod
    def points(cls):
        return points.HANGS.get(cls.CASE, ())

    def fault_at(self, point):
        with self.recorded(point):
            before = self.server_state()
            self.faults.arm(point, 'wait')
            image = self.request_snapshot()
            self.faults.await_fault(point, e2e.SNAPSHOT_TIMEOUT)
            libvirtd = self.hang_libvirtd()
            self.faults.disarm()
            wait.until('the snapshot to be aborted',
                       lambda: self.task_state() is None,
                       e2e.SNAPSHOT_TIMEOUT)
            libvirtd.identity().signal(signal.SIGCONT)
            wait.until('the journal to be empty',
                       lambda: not self.journaled(), RECOVERY_TIMEOUT)
            self.assert_recovered(
                before, image, self.last_record(self.server))


class BackupTest(HangTestCase):
    CASE = points.BACKUP


class ExternalTest(HangTestCase):
    CASE = points.EXTERNAL


class InternalTest(HangTestCase):
    CASE = points.INTERNAL


class ColdTest(HangTestCase):
    CASE = points.COLD
