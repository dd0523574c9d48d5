# SPDX-License-Identifier: Apache-2.0
"""A return to Nova's own driver while an overlay is outstanding."""

from devcloud import servers
from devcloud import wait

from tests.e2e import base
from tests.e2e import killed

NOVAS_DRIVER = 'DEFAULT.compute_driver=libvirt.LibvirtDriver'


class RollbackTest(killed.KilledTestCase):

    def test_novas_own_driver_does_not_boot_the_disk_without_its_overlay(self):
        self.kill_during_snapshot()
        acknowledged = self.last_record(self.server)

        self.configure(NOVAS_DRIVER)
        servers.action(self.client, self.server, 'reboot', {'type': 'HARD'})
        servers.await_status(self.client, self.server, 'ERROR')
        self.expect_lost_line(self.server)
        log = self.state.log('nova-compute').read_text(errors='replace')
        self.assertRegex(log, r'InvalidDiskInfo.*nova-snapext: the overlay')

        self.configure()
        self.run_action(self.server, 'reboot', {'type': 'HARD'})
        servers.await_status(self.client, self.server, 'ACTIVE')
        found = wait.until(
            'the guest to verify its records',
            lambda: self.console(self.server).find(
                r'^FOUND (\d+) LAST (\d+) GAPS (\d+) BAD (\d+)'),
            base.BOOT_TIMEOUT)
        records, last, gaps, bad = map(int, found.groups())
        self.assertGreaterEqual(last, acknowledged)
        self.assertEqual([last, 0, 0], [records, gaps, bad])
        self.assert_keeps_writing(self.server)
        self.assert_nothing_left(self.server)
        self.assertEqual([], [
            path.name for path in (self.state.instances / self.server)
            .glob('*snapext*')])
        self.assert_snapshot_complete(self.snapshot(self.server))
