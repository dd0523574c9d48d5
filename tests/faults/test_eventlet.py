# SPDX-License-Identifier: Apache-2.0
"""Giving up under eventlet, Nova's other concurrency mode."""

import subprocess

from devcloud import wait

from tests.e2e import held


class EventletTest(held.BootingGuestTestCase):

    CONFIGURATION = ('DEFAULT.concurrency_backend=eventlet',
                     'snapext.upload_stall_timeout=10')

    def test_an_image_that_is_deleted_ends_it_under_eventlet_too(self):
        running = self.begin(self.make())
        self.client.delete('glance', f'/images/{running.image}')
        self.assert_given_up(
            running, f'Image {running.image} could not be found')
        self.await_end(running)
        self.assert_nothing_left(running.server)

    def test_a_stalled_upload_is_tried_again_and_right(self):
        running = self.begin(self.make())
        wait.until('a second attempt',
                   lambda: 'begins anew' in running.log, held.SOON)
        # For the proxy to see that the first one has ended, as Glance must.
        running.faults.release.set()
        self.await_end(running)
        self.assertIn('finished: strategy=', running.log)
        self.assertEqual(2, len(running.faults.uploads))
        self.assertEqual('active', self.image(running.image)['status'])
        with self.downloaded(running.image) as file:
            subprocess.run(['qemu-img', 'check', '-q', file], check=True)
        self.assert_nothing_left(running.server)
