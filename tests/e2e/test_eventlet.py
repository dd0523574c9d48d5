# SPDX-License-Identifier: Apache-2.0
"""A short test under eventlet, Nova's other concurrency mode."""

from tests.e2e import matrix


class EventletTest(matrix.MatrixTestCase):

    DISK = 'qcow2 on a backing file'
    MORE = ('DEFAULT.concurrency_backend=eventlet',)

    def test_running_guest_is_snapshotted_by_every_strategy(self):
        self.row('running', 'compressed qcow2')
