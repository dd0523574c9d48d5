# SPDX-License-Identifier: Apache-2.0

import contextlib
from unittest import mock

from devcloud import wait
import libvirt
from oslo_config import fixture as config_fixture

from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.strategies import backup
from nova_snapext.strategies import cold
from nova_snapext.strategies import external
from nova_snapext.strategies import internal
from tests.pci import base


@contextlib.contextmanager
def first_attach_refused():
    """Make libvirt refuse the first device to attach."""
    attach = libvirt.virDomain.attachDeviceFlags
    refusals = [libvirt.libvirtError('the device is in use')]

    def attach_or_refuse(*args, **kwargs):
        if refusals:
            raise refusals.pop()
        return attach(*args, **kwargs)

    with mock.patch.object(libvirt.virDomain, 'attachDeviceFlags',
                           attach_or_refuse):
        yield refusals


class WillingGuestTest(base.PassthroughTestCase):
    """A guest that releases a device on request."""

    def assert_no_device_is_changed(self, strategy):
        before = self.domain.XMLDesc()
        with strategy.freeze(self.plan):
            self.assert_unchanged()
        self.assert_unchanged()
        self.assertEqual(before, self.domain.XMLDesc())
        self.assertEqual([], self.removed)

    def assert_all_devices_come_back(self, strategy):
        with strategy.freeze(self.plan):
            self.assertEqual(2, len(self.removed))
        self.assert_unchanged()
        self.assert_nothing_left(self.plan)

    def test_backup_changes_no_device(self):
        self.assert_no_device_is_changed(backup.BackupStrategy(self.driver))

    def test_external_snapshot_changes_no_device(self):
        self.assert_no_device_is_changed(
            external.ExternalStrategy(self.driver))

    def test_internal_snapshot_attaches_all_devices_again(self):
        self.assert_all_devices_come_back(
            internal.InternalStrategy(self.driver))

    def test_cold_snapshot_attaches_all_devices_again(self):
        self.assert_all_devices_come_back(cold.ColdStrategy(self.driver))

    def test_failed_attach_is_repeated(self):
        with first_attach_refused() as refusals:
            self.assert_all_devices_come_back(
                internal.InternalStrategy(self.driver))
        self.assertEqual([], refusals)

    def test_device_that_leaves_after_failed_snapshot_comes_back(self):
        self.useFixture(config_fixture.Config(conf.CONF)).config(
            device_detach_attempts=1, device_detach_timeout=2,
            group='libvirt')
        detach = self.driver._detach_from_live_with_retry

        def detach_while_it_stalls(*args):
            self.domain.suspend()
            detach(*args)

        with mock.patch.object(
                self.driver, '_detach_from_live_with_retry',
                detach_while_it_stalls), \
                self.assertRaisesRegex(
                    exception.FreezeFailed, 'still attached'), \
                internal.InternalStrategy(self.driver).freeze(self.plan):
            self.fail('the disk is frozen although a device stays')
        self.assertEqual([], self.removed)
        self.domain.resume()
        wait.until('the guest has released a device',
                   lambda: self.removed, base.ANSWER_TIMEOUT)
        wait.until('the guest has the device again', lambda:
                   self.before == self.devices(), base.ANSWER_TIMEOUT)
        self.assert_unchanged()


class UnwillingGuestTest(base.PassthroughTestCase):
    """A guest without a kernel, and so without a release of devices."""

    BOOT = ''

    def setUp(self):
        super().setUp()
        self.useFixture(config_fixture.Config(conf.CONF)).config(
            device_detach_attempts=2, device_detach_timeout=2,
            group='libvirt')

    def assert_refused(self, strategy):
        before = self.domain.XMLDesc()
        with self.assertRaisesRegex(
                exception.FreezeFailed,
                'PCI device 0000:01:10.[02].* still attached'), \
                strategy.freeze(self.plan):
            self.fail('the disk is frozen although a device stays')
        self.assertEqual(before, self.domain.XMLDesc())
        self.assertEqual([], self.removed)
        self.assertEqual([], self.domain.listAllSnapshots())
        self.assert_unchanged()
        self.assert_nothing_left(self.plan)

    def test_device_that_stays_prevents_internal_snapshot(self):
        self.assert_refused(internal.InternalStrategy(self.driver))

    def test_device_that_stays_prevents_cold_snapshot(self):
        self.assert_refused(cold.ColdStrategy(self.driver))
