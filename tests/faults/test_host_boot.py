# SPDX-License-Identifier: Apache-2.0
"""A host that boots while an overlay is outstanding."""

from devcloud import compute
from devcloud import servers
from devcloud import wait

from tests.e2e import base
from tests.e2e import killed


class HostBootTest(killed.KilledTestCase):
    """Nova starts the guests of a host that was rebooted."""

    CONFIGURATION = ('DEFAULT.resume_guests_state_on_host_boot=true',)

    def test_guest_on_a_forgotten_overlay_starts_with_all_its_data(self):
        self.kill_during_snapshot()
        self.forget_journal()
        acknowledged = self.last_record(self.server)
        self.host.virsh('destroy', self.server)
        log = self.state.log('nova-compute')
        offset = log.stat().st_size
        compute.start(self.state)
        found = wait.until(
            'the guest to verify its records',
            lambda: self.console(self.server).find(
                r'^FOUND (\d+) LAST (\d+) GAPS (\d+) BAD (\d+)'),
            base.BOOT_TIMEOUT)
        count, last, gaps, bad = (int(word) for word in found.groups())
        self.assertEqual([count, 0, 0], [last, gaps, bad])
        self.assertGreaterEqual(last, acknowledged)
        self.assertNotIn('disk.snapext',
                         self.host.virsh('dumpxml', self.server))
        with open(log, errors='replace') as lines:
            lines.seek(offset)
            self.assertIn('Nova initializes the instance now', lines.read())
        wait.until('the end of the task', lambda: servers.show(
            self.client, self.server)['OS-EXT-STS:task_state'] is None, 60)
        self.assertEqual('ACTIVE', servers.show(
            self.client, self.server)['status'])


class EventletHostBootTest(HostBootTest):
    """The same under eventlet, Nova's other concurrency mode."""

    CONFIGURATION = (*HostBootTest.CONFIGURATION,
                     'DEFAULT.concurrency_backend=eventlet')
