# SPDX-License-Identifier: Apache-2.0
"""Errors at points where nobody expects one."""

from devcloud import wait

from tests.e2e import base as e2e
from tests.faults import base
from tests.faults import points


class _ErrorTestCase(base.FaultTestCase):

    def snapshot_with_error(self, point):
        """Request a snapshot with an error at a point, and wait for its end.

        :returns: id of the snapshot's image
        """
        self.faults.arm(point, 'raise')
        image = self.request_snapshot()
        wait.until('the end of the snapshot',
                   lambda: self.task_state() is None, e2e.SNAPSHOT_TIMEOUT)
        self.assertTrue(self.faults.has_occurred(),
                        'The snapshot has ended without reaching the point')
        return image


class ErrorTestCase(_ErrorTestCase):

    FAULT = 'An error is raised'

    @classmethod
    def points(cls):
        return points.ERRORS.get(cls.CASE, ())

    def fault_at(self, point):
        with self.recorded(point):
            before = self.server_state()
            image = self.snapshot_with_error(point)
            self.assert_recovered(before, image, before.acknowledged)


class ReleaseErrorTestCase(_ErrorTestCase):
    """Errors during the release. The next snapshot recovers from them."""

    FAULT = 'An error is raised during the release'

    @classmethod
    def points(cls):
        return points.RELEASE_ERRORS.get(cls.CASE, ())

    def fault_at(self, point):
        with self.recorded(point):
            before = self.server_state()
            image = self.snapshot_with_error(point)
            self.assert_alive()
            self.assert_image_complete_or_deleted(image, before.acknowledged)
            self.assert_snapshot_works(before.acknowledged)
            self.assert_recovered(before, image, before.acknowledged)


class BackupTest(ErrorTestCase):
    CASE = points.BACKUP


class BackupReleaseTest(ReleaseErrorTestCase):
    CASE = points.BACKUP


class ExternalTest(ErrorTestCase):
    CASE = points.EXTERNAL


class ExternalReleaseTest(ReleaseErrorTestCase):
    CASE = points.EXTERNAL


class InternalTest(ErrorTestCase):
    CASE = points.INTERNAL


class InternalReleaseTest(ReleaseErrorTestCase):
    CASE = points.INTERNAL


class ColdTest(ErrorTestCase):
    CASE = points.COLD


class ColdReleaseTest(ReleaseErrorTestCase):
    CASE = points.COLD
