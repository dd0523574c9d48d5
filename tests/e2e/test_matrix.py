# SPDX-License-Identifier: Apache-2.0
"""A part of the matrix, in which each of its values comes at least once.

`tools/test matrix` runs all of it.
"""

from tests.e2e import matrix


class BackingFileTest(matrix.MatrixTestCase):

    DISK = 'qcow2 on a backing file'

    def test_running(self):
        self.row('running', 'qcow2')

    def test_paused(self):
        self.row('paused', 'qcow2')


class FlatQcow2Test(matrix.MatrixTestCase):

    DISK = 'flat qcow2'

    def test_suspended(self):
        self.row('suspended', 'vdi')


class RawFileTest(matrix.MatrixTestCase):

    DISK = 'raw file'

    def test_running(self):
        self.row('running', 'compressed qcow2')


class BlockDeviceTest(matrix.MatrixTestCase):

    DISK = 'block device'

    def test_running(self):
        self.row('running', 'qcow2')

    def test_stopped(self):
        self.row('stopped', 'raw')
