# SPDX-License-Identifier: Apache-2.0
"""nova-compute is killed, gets an error or waits for Ceph, at each point.

The classes are made of the cases in tests/faults/points.py.
"""

from devcloud import errors
from devcloud import wait

from tests.ceph import base
from tests.e2e import base as e2e
from tests.faults import base as faults_base
from tests.faults import points
from tests.faults import test_errors
from tests.faults import test_kills
from tests.faults import test_recovery


# Seconds that the guest's agent may take, in tests with a Ceph that hangs.
AGENT_TIMEOUT = 5

# Seconds until what a call to Ceph has left is cleaned up, after Ceph is back.
# A removal waits up to 30 seconds for Ceph to forget one killed client, and
# fails if there is another one. A recovery pauses for ten times as long as it
# took, and until the next look.
RECOVERY_TIMEOUT = 420


class CephFaults(base.CephTestCase):
    """What differs from the faults on a host without Ceph."""

    def assert_no_trace(self):
        # An image is not deleted while Glance reads it for its digest.
        wait.until('the journal to be empty',
                   lambda: not self.journal_files(), RECOVERY_TIMEOUT)
        super().assert_no_trace()

    def assert_image_complete(self, image, image_format=None,
                              acknowledged=0):
        # Glance computes the digest of an image that was made inside Ceph
        # when it is active.
        wait.until('the digest of the image',
                   lambda: self.image(image)['os_hash_value'],
                   RECOVERY_TIMEOUT)
        return super().assert_image_complete(
            image, image_format or self.image(image)['disk_format'],
            acknowledged)

    @classmethod
    def end_case(cls):
        server = cls.server
        super().end_case()
        if server is not None:
            cls.remove_by_force(server)


class RbdFaults(CephFaults):
    """Faults of guests whose disk is in Ceph."""

    def assert_no_snapshot_in_disk(self):
        self.assertEqual([], self.disk_snapshots(self.server))


class CopyFaults(CephFaults, base.CopyTestCase):
    """Faults of guests whose disk is a file, and is copied into Ceph."""


#: The parents of the classes of each case, and further settings.
CASES = {
    # Made inside Ceph.
    points.RBD_DIRECT: (RbdFaults, base.RAW),
    points.RBD_STREAMED: (RbdFaults, base.QCOW2),
    points.RBD_OFF: (RbdFaults, base.QCOW2),
    points.RBD_COPIED: (CopyFaults, ()),
}


class Deletion:
    """The test after the faults of a whole case."""

    # By its name, it runs after all faults.
    def test_then_server_is_deleted_with_its_disk(self):
        server = self.server
        type(self).server = None
        self.assert_deleted(server)


class HangTestCase(RbdFaults, faults_base.FaultTestCase):
    """Ceph hangs from a point on, until the guest is told to thaw.

    Then it goes on, also with the calls that it had already received. A guest
    that writes as it thaws may have to wait for that.
    """

    FAULT = 'Ceph hangs'
    CONFIGURATION = (*base.RBD, f'snapext.agent_timeout={AGENT_TIMEOUT}',
                     'snapext.operation_timeout=20')

    @classmethod
    def points(cls):
        return points.CEPH_HANGS.get(cls.CASE, ())

    def fault_at(self, point):
        with self.recorded(point):
            before = self.server_state()
            self.faults.arm(point, 'wait')
            image, log = self.request(
                self.server, snapext_strategy=self.CASE.strategy)
            self.faults.await_fault(point, e2e.SNAPSHOT_TIMEOUT)
            self.ceph.suspend_osd()
            try:
                self.faults.disarm()
                wait.until('a thaw', lambda: (
                    self.is_thawed() or 'could not be thawed' in log()),
                    2 * AGENT_TIMEOUT + base.SETTLE_TIMEOUT)
            finally:
                self.ceph.resume_osd()
            wait.until('the thaw', self.is_thawed, base.SETTLE_TIMEOUT)
            wait.until('the end of the snapshot',
                       lambda: self.task_state() is None,
                       e2e.SNAPSHOT_TIMEOUT)
            wait.until('the journal to be empty',
                       lambda: not self.journal_files(), RECOVERY_TIMEOUT)
            self.assert_recovered(
                before, image, self.last_record(self.server))

    def is_thawed(self):
        try:
            return self.agent_command(
                self.server, 'guest-fsfreeze-status') == 'thawed'
        except errors.CommandFailed:
            return False  # the agent still waits for Ceph


def cases():
    """Return the cases of a host with Ceph, by name."""
    return {name: case for name, case in vars(points).items()
            if case in points.CEPH_CASES}


def fault_test(name, case, kind, *parents, **attributes):
    """Return a class with a test of each point of a case.

    :param attributes: further attributes of the class
    """
    words = ''.join(word.capitalize() for word in name.split('_'))
    host, settings = CASES[case]
    bases = parents if kind == 'Hang' else (host, *parents)
    return type(f'{words}{kind}Test', (Deletion, *bases), {
        '__module__': __name__, 'CASE': case, 'MORE': settings, **attributes})


for _name, _case in cases().items():
    _made = [fault_test(_name, _case, 'Kill', test_kills.AllPoints,
                        test_kills.KillTestCase)]
    if _case in points.ERRORS:
        _made.append(fault_test(_name, _case, 'Error',
                                test_errors.ErrorTestCase))
    if _case in points.RELEASE_ERRORS:
        _made.append(fault_test(_name, _case, 'ReleaseError',
                                test_errors.ReleaseErrorTestCase))
    if _case in points.CEPH_HANGS:
        _made.append(fault_test(_name, _case, 'Hang', HangTestCase))
    _made += [
        fault_test(_name, _case, f'SecondKill{_number}',
                   test_recovery.SecondKillTestCase, FIRST=_first)
        for _number, (_of, _first) in enumerate(points.RECOVERY)
        if _of == _case]
    globals().update((_class.__name__, _class) for _class in _made)
