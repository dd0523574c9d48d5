# SPDX-License-Identifier: Apache-2.0
"""A Glance that drops connections, or stores what was not sent."""

from devcloud import servers
from oslo_utils import units

from tests.e2e import base
from tests.e2e import proxy

RETRIES = 2


class GlanceFaultTest(base.CloudTestCase):

    @classmethod
    def setUpClass(cls):
        cls.proxy = cls.use_glance_proxy()
        cls.CONFIGURATION = (*cls.CONFIGURATION,
                             f'glance.num_retries={RETRIES}')
        super().setUpClass()
        cls.server = cls.boot()

    def snapshot_with(self, faults):
        self.proxy.faults = faults
        self.addCleanup(setattr, self.proxy, 'faults', proxy.Faults())
        return self.snapshot(self.server)

    def assert_failed(self, shot):
        self.assertIsNone(shot.strategy)
        self.assertFalse(self.image_exists(shot.image))
        self.assertEqual('ACTIVE', servers.show(
            self.client, self.server)['status'])
        self.assert_nothing_left(self.server)
        self.assert_writes_on(self.server)

    def test_an_upload_that_is_cut_off_begins_anew_and_ends_right(self):
        faults = proxy.Faults(cut_after=[8 * units.Mi, units.Mi])
        shot = self.snapshot_with(faults)
        self.assertEqual(3, len(faults.uploads))
        self.assertEqual(self.image(shot.image)['size'], faults.uploads[-1])
        self.assertIn('begins anew', shot.log)
        self.assert_snapshot_right(shot)
        self.assert_nothing_left(self.server)
        self.assert_writes_on(self.server)

    def test_uploads_that_are_all_cut_off_fail_the_snapshot(self):
        faults = proxy.Faults(cut_after=[units.Mi] * 10)
        shot = self.snapshot_with(faults)
        self.assertEqual(1 + RETRIES, len(faults.uploads))
        self.assertIn('GlanceConnectionFailed', shot.log)
        self.assert_failed(shot)

    def test_other_bytes_in_glance_fail_the_snapshot_and_go(self):
        shot = self.snapshot_with(proxy.Faults(corrupt_at=5 * units.Mi))
        self.assertIn('Glance stored something else', shot.log)
        self.assert_failed(shot)

    def test_past_the_fault_the_next_snapshot_is_right(self):
        self.snapshot_with(proxy.Faults(corrupt_at=5 * units.Mi))
        shot = self.snapshot_with(proxy.Faults())
        self.assert_snapshot_right(shot)
