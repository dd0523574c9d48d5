# SPDX-License-Identifier: Apache-2.0
"""An overlay that can't be merged because of somebody's block job."""

import os

from devcloud import servers
from devcloud import wait

from tests.e2e import held


class ForeignJobTest(held.HeldUploadTestCase):

    CONFIGURATION = ('snapext.strategy=external',)

    def setUp(self):
        super().setUp()
        self.server = self.boot(add_cleanup=self.addCleanup)
        self.copy = f'/var/tmp/snapext-e2e-{self.server}'
        self.addCleanup(lambda: os.path.exists(self.copy) and
                        os.unlink(self.copy))

    def snapshot_with_a_job(self):
        """Take a snapshot; start a job that never ends during its upload."""
        running = self.begin(self.server)
        self.host.virsh('blockcopy', self.server, 'vda', '--dest', self.copy,
                        '--format', 'qcow2', '--transient-job')
        running.faults.release.set()
        self.await_end(running)
        return running

    def is_on_overlay(self):
        return 'disk.snapext' in self.host.virsh('dumpxml', self.server)

    def await_refused(self, action):
        """Request an action, and wait until the server is as it was."""
        servers.action(self.client, self.server, action)
        wait.until(f'the end of {action}', lambda: (
            (shown := servers.show(self.client, self.server))['status'],
            shown['OS-EXT-STS:task_state']) == ('ACTIVE', None), held.SOON)

    def test_image_stays_and_overlay_is_merged_when_the_job_ends(self):
        running = self.snapshot_with_a_job()
        self.assertIn('left=overlay', running.log)
        self.assert_image_complete(running.image,
                                   acknowledged=running.acknowledged)
        self.assertTrue(self.is_on_overlay())
        for action in ('rescue', 'shelve'):
            self.await_refused(action)
            self.assertTrue(self.is_on_overlay())
            self.assertIn('running', self.host.virsh('domstate', self.server))
        self.assertIn('is refused, and nothing was changed', running.log)
        self.host.virsh('blockjob', self.server, 'vda', '--abort')
        wait.until('the merge of the overlay',
                   lambda: not self.is_on_overlay(), held.SOON)
        self.assert_nothing_left(self.server)
        self.assert_keeps_writing(self.server)
