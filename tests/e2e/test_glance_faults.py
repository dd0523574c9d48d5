# SPDX-License-Identifier: Apache-2.0
"""A Glance that drops connections, or stores other data than was sent."""

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
        cls.server = cls.shared_guest()

    def snapshot_with(self, faults):
        self.proxy.faults = faults
        self.addCleanup(setattr, self.proxy, 'faults', proxy.Faults())
        return self.snapshot(self.server)

    def assert_failed(self, snapshot):
        self.assertIsNone(snapshot.strategy)
        self.assertFalse(self.image_exists(snapshot.image))
        self.assertEqual('ACTIVE', servers.show(
            self.client, self.server)['status'])
        self.assert_nothing_left(self.server)
        self.assert_keeps_writing(self.server)

    def test_interrupted_upload_is_retried_from_first_byte(self):
        faults = proxy.Faults(cut_after=[8 * units.Mi, units.Mi])
        snapshot = self.snapshot_with(faults)
        self.assertEqual(3, len(faults.uploads))
        self.assertEqual(self.image(snapshot.image)['size'],
                         faults.uploads[-1])
        self.assertIn('is retried from its first byte', snapshot.log)
        self.assert_snapshot_complete(snapshot)
        self.assert_nothing_left(self.server)
        self.assert_keeps_writing(self.server)

    def test_interruption_of_all_attempts_fails_snapshot(self):
        faults = proxy.Faults(cut_after=[units.Mi] * 10)
        snapshot = self.snapshot_with(faults)
        self.assertEqual(1 + RETRIES, len(faults.uploads))
        self.assertIn('GlanceConnectionFailed', snapshot.log)
        self.assert_failed(snapshot)

    def test_other_data_in_glance_fails_snapshot_and_image_is_deleted(self):
        snapshot = self.snapshot_with(proxy.Faults(corrupt_at=5 * units.Mi))
        self.assertIn(f'Image {snapshot.image} in Glance is not what was sent',
                      snapshot.log)
        self.assert_failed(snapshot)

    def test_snapshot_after_failed_snapshot_is_complete(self):
        self.snapshot_with(proxy.Faults(corrupt_at=5 * units.Mi))
        snapshot = self.snapshot_with(proxy.Faults())
        self.assert_snapshot_complete(snapshot)
