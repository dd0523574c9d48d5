# SPDX-License-Identifier: Apache-2.0
"""Devices that leave a guest and come back, as libvirt and QEMU do it.

Without an IOMMU there are no host devices: two emulated ones stand in, which
for libvirt and QEMU leave a guest by the same way. The guest has no operating
system, so the one on PCI is kept, unless the machine is reset: then QEMU
takes it out. The one on USB leaves without anybody's consent. tests/pci has
real functions, and guests with a kernel.
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
from nova_snapext.freeze import backup
from nova_snapext.freeze import cold
from nova_snapext.freeze import external
from nova_snapext.freeze import passthrough
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
        self.patch(passthrough, 'PASSTHROUGH',
                   etree.XPath('./devices/interface'))
        self.patch(passthrough, '_name',
                   lambda device: device.find('mac').get('address'))
        with mock.patch.object(base, 'DOMAIN', DOMAIN):
            self.plan_of_guest = self.guest(self.qcow2())
        self.had = self.definitions()
        self.devices = passthrough.PassthroughDevices(
            self.driver, self.plan_of_guest)

    def patch(self, target, name, value):
        patch = mock.patch.object(target, name, value)
        self.addCleanup(patch.stop)
        patch.start()

    def let_go_when_asked(self):
        """Have the guest let go of devices, while they are waited for."""
        wait = nova_driver.AsyncDeviceEventsHandler.Waiter.wait

        def reset_and_wait(waiter, _timeout):
            if not waiter.threading_event.is_set():
                self.domain().reset()
            # Only the event ends it, and well before this.
            return wait(waiter, 60)

        self.patch(nova_driver.AsyncDeviceEventsHandler.Waiter, 'wait',
                   reset_and_wait)

    def domain(self):
        return self.host.get_guest(self.plan_of_guest.instance)._domain

    def live_macs(self):
        return [mac.get('address') for mac in etree.fromstring(
            self.domain().XMLDesc()).findall('./devices/interface/mac')]

    def definitions(self):
        """The devices, live and persistent."""
        return [self.devices_in(self.domain().XMLDesc(flags))
                for flags in (0, libvirt.VIR_DOMAIN_XML_INACTIVE)]

    def devices_in(self, definition):
        devices = etree.fromstring(definition).findall('./devices/interface')
        for device in devices:
            # A name of libvirt's own, and another one each time.
            for alias in device.findall('alias'):
                device.remove(alias)
        return sorted(etree.tostring(device, method='c14n2', strip_text=True)
                      for device in devices)

    def assert_has_what_it_had(self):
        self.assertEqual(self.had, self.definitions())

    def assert_persistent_ones_untouched(self):
        self.assertEqual(self.had[1], self.definitions()[1])

    def test_they_leave_on_libvirt_s_event_and_come_back_as_they_were(self):
        self.let_go_when_asked()
        with self.devices.detached():
            self.assertEqual([], self.live_macs())
            self.assert_persistent_ones_untouched()
        self.assert_has_what_it_had()

    def test_when_one_stays_the_one_before_it_comes_back(self):
        with contextlib.ExitStack() as stack:
            error = self.assertRaises(
                nova_exception.DeviceDetachFailed, stack.enter_context,
                self.devices.detached())
        self.assertIn(PCI_MAC, str(error))
        self.assert_has_what_it_had()

    def test_one_that_leaves_long_after_comes_back(self):
        with contextlib.ExitStack() as stack:
            self.assertRaises(
                nova_exception.DeviceDetachFailed, stack.enter_context,
                self.devices.detached())
        came = threading.Event()
        connection = self.host.get_connection()
        callback = connection.domainEventRegisterAny(
            self.domain(), libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED,
            lambda *_: came.set(), None)
        self.addCleanup(connection.domainEventDeregisterAny, callback)
        self.domain().reset()
        self.assertTrue(came.wait(60))
        self.assert_has_what_it_had()

    def test_they_come_back_to_a_guest_that_was_suspended_meanwhile(self):
        self.let_go_when_asked()
        with self.devices.detached():
            self.domain().managedSave()
            self.domain().create()
            self.assertEqual([], self.live_macs())
        self.assert_has_what_it_had()

    def test_they_come_back_when_libvirtd_was_restarted_meanwhile(self):
        self.let_go_when_asked()
        with self.devices.detached():
            self.libvirtd.kill()
            self.libvirtd.start()
        self.assert_has_what_it_had()

    def test_one_that_can_not_be_attached_at_first_is_attached_later(self):
        self.let_go_when_asked()
        # Somebody else has its place.
        other = ("<interface type='user'><mac address='52:54:00:00:00:03'/>"
                 "<model type='usb-net'/>"
                 "<address type='usb' bus='0' port='1'/></interface>")
        with mock.patch.object(tenacity.nap.time, 'sleep') as sleep, \
                self.devices.detached():
            self.domain().attachDevice(other)
            sleep.side_effect = (
                lambda _seconds: self.domain().detachDevice(other))
        sleep.assert_called_once()
        self.assert_has_what_it_had()

    def test_a_guest_that_was_shut_off_meanwhile_starts_with_them(self):
        self.let_go_when_asked()
        with self.devices.detached():
            self.domain().destroy()
        self.assert_persistent_ones_untouched()
        self.domain().create()
        self.assertEqual({USB_MAC, PCI_MAC}, set(self.live_macs()))

    def test_a_guest_that_vanished_meanwhile_is_no_error(self):
        self.let_go_when_asked()
        definition = self.domain().XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        with self.devices.detached():
            self.domain().destroy()
            self.domain().undefine()
        self.host.get_connection().defineXML(definition)  # for the clean-up

    def test_a_paused_guest_keeps_them_and_is_not_asked(self):
        self.domain().suspend()
        with contextlib.ExitStack() as stack:
            error = self.assertRaises(
                nova_exception.DeviceDetachFailed, stack.enter_context,
                self.devices.detached())
        self.assertIn('paused', str(error))
        self.domain().resume()
        self.domain().reset()  # it would let go now of what it was asked for
        self.assert_has_what_it_had()

    def freeze_by(self, strategy):
        with contextlib.ExitStack() as stack:
            calls = [stack.enter_context(mock.patch.object(
                libvirt.virDomain, name, autospec=True,
                side_effect=getattr(libvirt.virDomain, name)))
                for name in ('detachDeviceFlags', 'attachDeviceFlags')]
            with strategy(self.driver).freeze(self.plan_of_guest):
                self.assert_has_what_it_had()
            self.assert_has_what_it_had()
        return [call.call_count for call in calls]

    def test_a_backup_touches_none(self):
        self.assertEqual([0, 0], self.freeze_by(backup.BackupStrategy))

    def test_an_external_snapshot_touches_none(self):
        self.assertEqual([0, 0], self.freeze_by(external.ExternalStrategy))

    def test_a_cold_snapshot_takes_them_out_and_puts_them_back(self):
        self.let_go_when_asked()
        self.assertEqual([2, 2], self.freeze_by(cold.ColdStrategy))
