# SPDX-License-Identifier: Apache-2.0
"""Under eventlet, Nova's other concurrency mode, in short."""

from tests.e2e import matrix


class EventletTest(matrix.MatrixTestCase):

    DISK = 'qcow2 on a backing file'
    MORE = ('DEFAULT.concurrency_backend=eventlet',)

    def test_every_strategy_streams_an_image_of_a_running_guest(self):
        self.row('running', 'compressed qcow2')
