# SPDX-License-Identifier: Apache-2.0
"""nova-compute is killed, gets an error or waits for Ceph, at each point.

The classes are made of the cases in tests/faults/points.py: a case whose name
has DIRECT is one of raw images, which are made inside Ceph. The images of the
others are streamed, as qcow2.
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
RECOVERY_TIMEOUT = 180


class CephFaults(base.CephTestCase):
    """What differs from the faults of guests whose disk is a file."""

    def assert_no_trace(self):
        wait.until(f"the end of {' and '.join(faults_base.DISK_PROGRAMS)}",
                   lambda: not self.disk_programs(),
                   faults_base.SETTLE_TIMEOUT)
        # An image is not deleted while Glance reads it for its digest.
        wait.until('the journal to be empty',
                   lambda: not self.journal_files(), RECOVERY_TIMEOUT)
        self.assert_nothing_left(self.server)

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


class Deletion:
    """The test after the faults of a whole case."""

    # By its name, it runs after all faults.
    def test_then_server_is_deleted_with_its_disk(self):
        server = self.server
        type(self).server = None
        self.assert_deleted(server)


class HangTestCase(CephFaults, faults_base.FaultTestCase):
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
    """Return the cases of the strategy ``rbd``, by name."""
    return {name: case for name, case in vars(points).items()
            if isinstance(case, points.Case) and case.strategy == 'rbd'}


def fault_test(name, case, kind, *parents, **attributes):
    """Return a class with a test of each point of a case.

    :param attributes: further attributes of the class
    """
    words = ''.join(word.capitalize() for word in name.split('_'))
    bases = parents if kind == 'Hang' else (CephFaults, *parents)
    return type(f'{words}{kind}Test', (Deletion, *bases), {
        '__module__': __name__, 'CASE': case,
        'MORE': base.RAW if 'DIRECT' in name else base.QCOW2, **attributes})


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
