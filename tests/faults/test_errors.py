# SPDX-License-Identifier: Apache-2.0
"""Errors where none was foreseen in particular."""

from devcloud import wait

from tests.e2e import base as e2e
from tests.faults import base
from tests.faults import points


class _Case(base.FaultTestCase):

    def ask_and_await_error(self, point):
        """Have an error raised at a point of a snapshot, and await its end.

        :returns: the snapshot's image
        """
        self.faults.arm(point, 'raise')
        image = self.ask()
        wait.until('the end of the snapshot',
                   lambda: self.task_state() is None, e2e.SNAPSHOT_TIMEOUT)
        self.assertTrue(self.faults.has_acted(), 'It did not come so far')
        return image


class ErrorTestCase(_Case):

    FAULT = 'An error is raised'

    @classmethod
    def points(cls):
        return points.ERRORS.get(cls.CASE, ())

    def fault_at(self, point):
        with self.recorded(point):
            before = self.standing()
            image = self.ask_and_await_error(point)
            self.assert_healed(before, image, before.acknowledged)


class ReleaseErrorTestCase(_Case):
    """What an error in the release leaves, the next snapshot heals."""

    FAULT = 'An error is raised in the release'

    @classmethod
    def points(cls):
        return points.RELEASE_ERRORS.get(cls.CASE, ())

    def fault_at(self, point):
        with self.recorded(point):
            before = self.standing()
            image = self.ask_and_await_error(point)
            self.assert_alive()
            self.assert_image_settled(image, before.acknowledged)
            self.assert_snapshot_works(before.acknowledged)
            self.assert_healed(before, image, before.acknowledged)


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
