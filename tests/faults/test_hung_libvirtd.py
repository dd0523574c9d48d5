# SPDX-License-Identifier: Apache-2.0
"""A libvirtd that does not respond for longer than nova-compute waits."""

import signal

from devcloud import servers
from devcloud import wait

from tests.e2e import held

# Seconds until Nova reconnects to libvirtd, at the latest when it updates its
# resources.
RECONNECT_TIMEOUT = 180


class HungLibvirtdTest(held.HeldUploadTestCase):

    CONFIGURATION = ('snapext.libvirtd_hang_timeout=6',
                     'snapext.operation_timeout=5')

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        if cls.state.nova_release is not None:
            raise cls.skipException(
                'Nova 31 to 33 run under eventlet, where nothing watches '
                'libvirtd')

    def test_hung_libvirtd_ends_snapshot_and_cleanup_follows_later(self):
        self.server = self.boot()
        for strategy in ('backup', 'external'):
            self.assert_cleaned_up_after_hang(strategy)

    def assert_cleaned_up_after_hang(self, strategy):
        running = self.begin(self.server, strategy)
        libvirtd = self.hang_libvirtd()
        running.faults.release.set()
        self.await_end(running)
        self.assertIn('libvirtd hangs', running.log)
        self.assertIn(f'The snapshot of instance {self.server} could not be '
                      f'cleaned up', running.log)
        [entry] = self.journal_files()
        self.assertEqual(self.server, entry.stem)
        libvirtd.identity().signal(signal.SIGCONT)
        wait.until('the journal to be empty', lambda: not self.journal_files(),
                   RECONNECT_TIMEOUT)
        self.assertEqual('ACTIVE', servers.show(
            self.client, self.server)['status'])
        self.assert_nothing_left(self.server)
        self.assert_keeps_writing(self.server)
        # The next snapshot works as usual.
        self.assert_snapshot_complete(self.snapshot(
            self.server, add_cleanup=self.addCleanup))

    def journal_files(self):
        return list((self.state.nova / 'snapext').glob('*.json'))
