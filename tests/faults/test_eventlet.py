# SPDX-License-Identifier: Apache-2.0
"""Cancelled and stalled uploads under eventlet, Nova's other kind of threads.
"""

import subprocess

from devcloud import wait

from tests.e2e import held


class EventletTest(held.BootingGuestTestCase):

    CONFIGURATION = ('DEFAULT.concurrency_backend=eventlet',
                     'snapext.upload_stall_timeout=10')

    def test_deleted_image_cancels_snapshot(self):
        running = self.begin(self.create_server())
        self.client.delete('glance', f'/images/{running.image}')
        self.assert_cancelled(
            running, f'Image {running.image} could not be found')
        self.await_end(running)
        self.assert_nothing_left(running.server)

    def test_stalled_upload_is_retried_and_completes(self):
        running = self.begin(self.create_server())
        wait.until('a second attempt', lambda: (
            'is retried from its first byte' in running.log), held.SOON)
        # The proxy, and Glance behind it, see the end of the first attempt
        # only now.
        running.faults.release.set()
        self.await_end(running)
        self.assertIn('finished: strategy=', running.log)
        self.assertEqual(2, len(running.faults.uploads))
        self.assertEqual('active', self.image(running.image)['status'])
        with self.downloaded(running.image) as file:
            subprocess.run(['qemu-img', 'check', '-q', file], check=True)
        self.assert_nothing_left(running.server)
