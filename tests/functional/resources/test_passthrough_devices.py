# SPDX-License-Identifier: Apache-2.0
"""Devices that are detached and attached by a real libvirt and QEMU.

Without an IOMMU there are no host devices. Two emulated devices are used
instead; libvirt and QEMU detach them in the same way. The guest has no
operating system, so it releases the PCI device only if the machine is reset.
The USB device leaves without the guest's consent. tests/pci has real
functions, and guests with a kernel.
"""

import contextlib
import threading
from unittest import mock

import libvirt
from lxml import etree
from nova import exception as nova_exception
from nova.virt.libvirt import driver as nova_driver
from oslo_config import fixture as config_fixture
import tenacity

from nova_snapext import conf
from nova_snapext.hypervisor import domain
from nova_snapext.resources import passthrough_devices
from nova_snapext.strategies import backup
from nova_snapext.strategies import cold
from nova_snapext.strategies import external
from tests.functional import base

USB_MAC, PCI_MAC = '52:54:00:00:00:01', '52:54:00:00:00:02'
DOMAIN = base.DOMAIN.replace('<devices>', f"""
  <features><acpi/></features>
  <devices>
    <interface type='user'>
      <mac address='{USB_MAC}'/>
      <model type='usb-net'/>
      <address type='usb' bus='0' port='1'/>
    </interface>
    <interface type='user'>
      <mac address='{PCI_MAC}'/>
      <model type='virtio'/>
      <address type='pci' bus='0' slot='0x1d'/>
    </interface>
""")


class PassthroughTest(base.GuestTestCase):

    def setUp(self):
        super().setUp()
        config = self.useFixture(config_fixture.Config(conf.CONF))
        config.config(device_detach_attempts=2, device_detach_timeout=1,
                      group='libvirt')
        self.patch(passthrough_devices, 'PASSTHROUGH',
                   etree.XPath('./devices/interface'))
        self.patch(passthrough_devices, '_name',
                   lambda device: device.find('mac').get('address'))
        with mock.patch.object(base, 'DOMAIN', DOMAIN):
            self.plan_of_guest = self.guest(self.qcow2())
        self.before = self.definitions()
        self.devices = passthrough_devices.PassthroughDevices(
            self.driver, self.plan_of_guest)

    def detached(self):
        guest = self.plan_of_guest.guest
        self.devices.capture_state(guest)
        return self.devices.detached(guest)

    def patch(self, target, name, value):
        patch = mock.patch.object(target, name, value)
        self.addCleanup(patch.stop)
        patch.start()

    def release_on_request(self):
        """Make the guest release devices while Nova waits for them."""
        wait = nova_driver.AsyncDeviceEventsHandler.Waiter.wait

        def reset_and_wait(waiter, _timeout):
            if not waiter.threading_event.is_set():
                self.domain().reset()
            # Only the event ends the wait, long before this timeout.
            return wait(waiter, 60)

        self.patch(nova_driver.AsyncDeviceEventsHandler.Waiter, 'wait',
                   reset_and_wait)

    def domain(self):
        return domain.get(self.host, self.plan_of_guest.instance)._domain

    def live_macs(self):
        return [mac.get('address') for mac in etree.fromstring(
            self.domain().XMLDesc()).findall('./devices/interface/mac')]

    def definitions(self):
        """Return the devices of the live and the persistent definition."""
        return [self.devices_in(self.domain().XMLDesc(flags))
                for flags in (0, libvirt.VIR_DOMAIN_XML_INACTIVE)]

    def devices_in(self, definition):
        devices = etree.fromstring(definition).findall('./devices/interface')
        for device in devices:
            # libvirt assigns another name each time.
            for alias in device.findall('alias'):
                device.remove(alias)
        return sorted(etree.tostring(device, method='c14n2', strip_text=True)
                      for device in devices)

    def assert_has_all_devices(self):
        self.assertEqual(self.before, self.definitions())

    def assert_persistent_devices_unchanged(self):
        self.assertEqual(self.before[1], self.definitions()[1])

    def test_devices_are_detached_on_event_and_attached_unchanged(self):
        self.release_on_request()
        with self.detached():
            self.assertEqual([], self.live_macs())
            self.assert_persistent_devices_unchanged()
        self.assert_has_all_devices()

    def test_device_that_stays_brings_earlier_device_back(self):
        with contextlib.ExitStack() as stack:
            error = self.assertRaises(
                nova_exception.DeviceDetachFailed, stack.enter_context,
                self.detached())
        self.assertIn(PCI_MAC, str(error))
        self.assert_has_all_devices()

    def test_device_that_leaves_long_after_failure_comes_back(self):
        with contextlib.ExitStack() as stack:
            self.assertRaises(
                nova_exception.DeviceDetachFailed, stack.enter_context,
                self.detached())
        came = threading.Event()
        connection = self.host.get_connection()
        callback = connection.domainEventRegisterAny(
            self.domain(), libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED,
            lambda *_: came.set(), None)
        self.addCleanup(connection.domainEventDeregisterAny, callback)
        self.domain().reset()
        self.assertTrue(came.wait(60))
        self.assert_has_all_devices()

    def test_guest_suspended_and_resumed_gets_devices_back(self):
        self.release_on_request()
        with self.detached():
            self.domain().managedSave()
            self.domain().create()
            self.assertEqual([], self.live_macs())
        self.assert_has_all_devices()

    def test_devices_come_back_after_restart_of_libvirtd(self):
        self.release_on_request()
        with self.detached():
            self.libvirtd.kill()
            self.libvirtd.start()
        self.assert_has_all_devices()

    def test_failed_attach_is_repeated(self):
        self.release_on_request()
        # Another device has its address.
        other = ("<interface type='user'><mac address='52:54:00:00:00:03'/>"
                 "<model type='usb-net'/>"
                 "<address type='usb' bus='0' port='1'/></interface>")
        with mock.patch.object(tenacity.nap.time, 'sleep') as sleep, \
                self.detached():
            self.domain().attachDevice(other)
            sleep.side_effect = (
                lambda _seconds: self.domain().detachDevice(other))
        sleep.assert_called_once()
        self.assert_has_all_devices()

    def test_guest_that_was_shut_off_starts_with_its_devices(self):
        self.release_on_request()
        with self.detached():
            self.domain().destroy()
        self.assert_persistent_devices_unchanged()
        self.domain().create()
        self.assertEqual({USB_MAC, PCI_MAC}, set(self.live_macs()))

    def test_guest_that_is_gone_afterwards_is_no_error(self):
        self.release_on_request()
        definition = self.domain().XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        with self.detached():
            self.domain().destroy()
            self.domain().undefine()
        self.host.get_connection().defineXML(definition)  # for the clean-up

    def test_paused_guest_keeps_its_devices_and_gets_no_request(self):
        self.domain().suspend()
        with contextlib.ExitStack() as stack:
            error = self.assertRaises(
                nova_exception.DeviceDetachFailed, stack.enter_context,
                self.detached())
        self.assertIn('paused', str(error))
        self.domain().resume()
        self.domain().reset()  # a requested device would be released now
        self.assert_has_all_devices()

    def freeze_by(self, strategy):
        with contextlib.ExitStack() as stack:
            calls = [stack.enter_context(mock.patch.object(
                libvirt.virDomain, name, autospec=True,
                side_effect=getattr(libvirt.virDomain, name)))
                for name in ('detachDeviceFlags', 'attachDeviceFlags')]
            with strategy(self.driver).freeze(self.plan_of_guest):
                self.assert_has_all_devices()
            self.assert_has_all_devices()
        return [call.call_count for call in calls]

    def test_backup_changes_no_devices(self):
        self.assertEqual([0, 0], self.freeze_by(backup.BackupStrategy))

    def test_external_snapshot_changes_no_devices(self):
        self.assertEqual([0, 0], self.freeze_by(external.ExternalStrategy))

    def test_cold_snapshot_detaches_and_attaches_devices(self):
        self.release_on_request()
        self.assertEqual([2, 2], self.freeze_by(cold.ColdStrategy))
