# SPDX-License-Identifier: Apache-2.0
"""A part of the matrix. `tools/test matrix` runs all of it."""

from tests.e2e import matrix


class FlatQcow2Test(matrix.MatrixTestCase):

    DISK = 'flat qcow2'

    def test_suspended_guest_is_snapshotted_or_refused(self):
        self.row('suspended', 'vdi')


class BlockDeviceTest(matrix.MatrixTestCase):

    DISK = 'block device'

    def test_running_guest_is_snapshotted_or_refused(self):
        self.row('running', 'qcow2')
