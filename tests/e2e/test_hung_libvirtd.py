# SPDX-License-Identifier: Apache-2.0
"""A libvirtd that answers nothing, for longer than it is waited for."""

import signal

from devcloud import servers
from devcloud import wait

from tests.e2e import held

# Nova connects anew at the latest when it looks at its resources.
RECONNECTED = 180


class HungLibvirtdTest(held.HeldUploadTestCase):

    CONFIGURATION = ('snapext.libvirtd_timeout=6', 'snapext.job_timeout=5')

    def test_a_snapshot_ends_in_time_and_is_cleaned_up_when_it_is_back(self):
        self.server = self.boot()
        for strategy in ('backup', 'external'):
            self.assert_given_up_and_cleaned_up(strategy)

    def assert_given_up_and_cleaned_up(self, strategy):
        running = self.begin(self.server, strategy)
        libvirtd = self.hang_libvirtd()
        running.faults.release.set()
        self.await_end(running)
        self.assertIn('libvirtd hangs', running.log)
        self.assertIn(f'The snapshot of instance {self.server} could not be '
                      f'cleaned up', running.log)
        [entry] = self.journaled()
        self.assertEqual(self.server, entry.stem)
        libvirtd.identity().signal(signal.SIGCONT)
        wait.until('the journal to be empty', lambda: not self.journaled(),
                   RECONNECTED)
        self.assertEqual('ACTIVE', servers.show(
            self.client, self.server)['status'])
        self.assert_nothing_left(self.server)
        self.assert_writes_on(self.server)
        # And another is taken as if nothing had been.
        self.assert_snapshot_right(self.snapshot(
            self.server, add_cleanup=self.addCleanup))

    def journaled(self):
        return list((self.state.nova / 'snapext').glob('*.json'))
