# SPDX-License-Identifier: Apache-2.0

import contextlib
import dataclasses
import os
from unittest import mock

import fixtures
from lxml import etree
from nova import exception as nova_exception
from nova.tests import fixtures as nova_fixtures
from nova.tests.fixtures import libvirt as fakelibvirt
from nova.virt import event
from nova.virt import fake
from nova.virt.libvirt import driver as nova_driver
from nova.virt.libvirt import guest as libvirt_guest
import tenacity

from nova_snapext import driver
from nova_snapext import exception
from nova_snapext.freeze import backup
from nova_snapext.freeze import cold
from nova_snapext.freeze import internal
from nova_snapext.freeze import passthrough
from nova_snapext import journal
from tests.unit import base
from tests.unit.freeze import fake_guest

GPU = """<hostdev mode="subsystem" type="pci" managed="yes">
  <driver name="vfio"/>
  <source>
    <address domain="0x0000" bus="0x3b" slot="0x00" function="0x0"/>
  </source>
  <alias name="hostdev0"/>
  <rom bar="off"/>
  <address type="pci" domain="0x0" bus="0x00" slot="0x05" function="0x0"/>
</hostdev>"""
PORT = """<interface type="hostdev" managed="yes">
  <mac address="fa:16:3e:00:00:01"/>
  <source>
    <address type="pci" domain="0x0" bus="0x81" slot="0x10" function="0x2"/>
  </source>
  <vlan><tag id="100"/></vlan>
  <alias name="hostdev1"/>
  <address type="pci" domain="0x0" bus="0x00" slot="0x06" function="0x0"/>
</interface>"""
VDPA = """<interface type="vdpa">
  <mac address="fa:16:3e:00:00:02"/>
  <source dev="/dev/vhost-vdpa-0"/>
  <model type="virtio"/>
  <alias name="net0"/>
  <address type="pci" domain="0x0" bus="0x00" slot="0x07" function="0x0"/>
</interface>"""
MDEV = """<hostdev mode="subsystem" type="mdev" model="vfio-pci">
  <source><address uuid="4b20d080-1b54-4048-85b3-a6a62d165c01"/></source>
  <alias name="ua-vgpu"/>
  <address type="pci" domain="0x0" bus="0x00" slot="0x08" function="0x0"/>
</hostdev>"""
NAMES = ['PCI device 0000:3b:00.0',
         'PCI device 0000:81:10.2 (port fa:16:3e:00:00:01)',
         'vDPA device /dev/vhost-vdpa-0 (port fa:16:3e:00:00:02)',
         'mediated device 4b20d080-1b54-4048-85b3-a6a62d165c01']
ALL = [GPU, PORT, VDPA, MDEV]
# QEMU's own: a macvtap port of a virtual function, a bridge's, a USB stick.
STAYS = ["""<interface type="direct"><source dev="ens1f0" mode="passthrough"/>
  <alias name="net1"/></interface>""",
         """<interface type="bridge"><source bridge="br-int"/>
  <alias name="net2"/></interface>""",
         """<hostdev mode="subsystem" type="usb"><source><vendor id="0x1"/>
  </source><alias name="hostdev9"/></hostdev>"""]
LIVE = fakelibvirt.VIR_DOMAIN_AFFECT_LIVE


class DetachedTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.useFixture(fakelibvirt.LibvirtFixture())
        self.useFixture(nova_fixtures.SpawnIsSynchronousFixture())
        self.patch(passthrough, 'libvirt', fakelibvirt)
        self.flags(virt_type='kvm', device_detach_attempts=3,
                   group='libvirt')
        self.driver = driver.SnapextDriver(fake.FakeVirtAPI())
        self.connection = self.driver._host.get_connection()
        self.pauses = self.patch(tenacity.nap.time, 'sleep')
        # The guest answers when somebody waits for it to, and never before.
        self.patch(nova_driver.AsyncDeviceEventsHandler.Waiter, 'wait',
                   lambda _waiter, _timeout: self.domain.answer())

    def patch(self, target, name, *value):
        patch = mock.patch.object(target, name, *value)
        self.addCleanup(patch.stop)
        return patch.start()

    def guest(self, *devices):
        plan = self.plan()
        self.domain = fake_guest.Domain(
            self.connection, plan.instance, devices)
        self.had = self.definitions()
        self.domain_plan = dataclasses.replace(
            plan, guest=libvirt_guest.Guest(self.domain))
        return passthrough.PassthroughDevices(self.driver, self.domain_plan)

    def definitions(self):
        return [sorted(etree.tostring(device) for device in devices)
                for devices in (self.domain.live, self.domain.persistent)]

    def calls(self, verb):
        return [xml for called, xml, _flags in self.domain.calls
                if called == verb]

    def detached(self, devices):
        """Enter and leave.

        :returns: what the guest had left inside
        """
        with devices.detached():
            return [etree.tostring(device, encoding='unicode')
                    for device in self.domain.live]

    def assert_has_what_it_had(self):
        self.assertEqual(self.had, self.definitions())

    def test_each_kind_leaves_and_comes_back_by_its_own_element(self):
        for xml in ALL:
            devices = self.guest(xml)
            self.assertEqual([], self.detached(devices))
            self.assertEqual([('detach', xml, LIVE), ('attach', xml, LIVE)],
                             self.domain.calls)
            self.assert_has_what_it_had()

    def test_all_are_out_at_once_and_come_back_in_their_order(self):
        devices = self.guest(*ALL)
        self.assertEqual([], self.detached(devices))
        self.assertEqual(ALL, self.calls('attach'))
        self.assert_has_what_it_had()

    def test_what_is_qemu_s_own_stays(self):
        devices = self.guest(GPU, *STAYS)
        self.assertEqual(len(STAYS), len(self.detached(devices)))
        self.assertEqual([GPU], self.calls('detach'))

    def test_a_guest_that_is_shut_off_has_none(self):
        devices = self.guest(GPU)
        self.domain.destroy()
        self.detached(devices)
        self.assertEqual([], self.domain.calls)

    def test_a_guest_without_any_is_only_looked_at(self):
        devices = self.guest(*STAYS)
        with mock.patch.object(self.domain, 'XMLDesc',
                               wraps=self.domain.XMLDesc) as look:
            self.detached(devices)
        look.assert_called_once_with(flags=0)
        self.assertEqual([], self.domain.calls)

    def test_a_device_is_waited_for_and_not_looked_for_at_once(self):
        devices = self.guest(GPU)
        with mock.patch.object(passthrough, '_find') as find:
            find.side_effect = lambda *_: self.domain.calls.append('look')
            self.assertEqual([], self.detached(devices))
        # Had it looked before the guest's answer, it would have tried again.
        self.assertEqual('look', self.domain.calls[1])
        self.assertEqual([GPU], [
            call[1] for call in self.domain.calls if call[0] == 'detach'])

    def test_a_guest_that_does_not_answer_is_asked_again(self):
        devices = self.guest(GPU)
        self.domain.answers['hostdev0'] = None
        answer, asked = self.domain.answer, []

        def answer_the_second_time():
            asked.append(None)
            if len(asked) == 2:
                self.domain.answers.clear()
            answer()

        self.domain.answer = answer_the_second_time
        self.assertEqual([], self.detached(devices))
        self.assertEqual([GPU, GPU], self.calls('detach'))
        self.assert_has_what_it_had()

    def assert_fails_to_detach(self, devices, name):
        error = self.assertRaises(nova_exception.DeviceDetachFailed,
                                  self.detached, devices)
        self.assertIn(name, str(error))
        return str(error)

    def test_when_one_refuses_those_before_it_come_back(self):
        devices = self.guest(*ALL)
        self.domain.answers['net0'] = False
        self.assert_fails_to_detach(devices, NAMES[2])
        self.assertEqual([GPU, PORT, VDPA], self.calls('detach'))
        self.assertEqual([GPU, PORT], self.calls('attach'))
        self.assert_has_what_it_had()

    def test_each_that_stays_is_told_by_its_name(self):
        for xml, name in zip(ALL, NAMES, strict=True):
            devices = self.guest(xml)
            alias = etree.fromstring(xml).find('alias').get('name')
            for answer in (False, None):
                self.domain.answers[alias] = answer
                self.assert_fails_to_detach(devices, name)
            self.assert_has_what_it_had()

    def test_what_libvirt_says_against_it_is_told(self):
        devices = self.guest(GPU, MDEV)
        self.domain.answers['ua-vgpu'] = None
        detach = self.domain.detachDeviceFlags

        def refuse(xml, flags):
            if xml == MDEV:
                raise fake_guest.libvirt_error(
                    fakelibvirt.VIR_ERR_CONFIG_UNSUPPORTED, 'no such thing')
            detach(xml, flags)

        self.domain.detachDeviceFlags = refuse
        self.assertIn('no such thing',
                      self.assert_fails_to_detach(devices, NAMES[3]))
        self.assert_has_what_it_had()
        # As after a first request that was not answered in time.
        self.domain.end(self.domain.find(etree.fromstring(MDEV)), taken=True)
        self.assert_has_what_it_had()

    def test_one_that_leaves_unnoticed_while_others_come_back_does_too(self):
        devices = self.guest(GPU, PORT)
        self.domain.answers['hostdev1'] = None
        attach = self.domain.attachDeviceFlags

        def leave_meanwhile(xml, flags):
            if xml == GPU:
                self.domain.live.clear()
            attach(xml, flags)

        self.domain.attachDeviceFlags = leave_meanwhile
        self.assert_fails_to_detach(devices, NAMES[1])
        self.assertEqual([GPU, PORT], self.calls('attach'))
        self.assert_has_what_it_had()

    def refused(self):
        """A guest that did not answer, and both its devices after that."""
        devices = self.guest(GPU, PORT)
        self.domain.answers['hostdev1'] = None
        self.assert_fails_to_detach(devices, NAMES[1])
        self.domain.calls.clear()
        return devices, next(device for device in self.domain.live
                             if device.tag == 'interface')

    def test_one_that_leaves_long_after_comes_back(self):
        _devices, port = self.refused()
        self.domain.end(port, taken=True)
        self.assertEqual([('attach', PORT, LIVE)], self.domain.calls)
        self.assert_has_what_it_had()

    def test_one_that_nova_takes_for_good_after_that_does_not(self):
        _devices, port = self.refused()
        del self.domain.persistent[1]
        self.domain.end(port, taken=True)
        self.assertEqual([], self.domain.calls)

    def test_one_that_the_next_snapshot_takes_stays_out_for_it(self):
        devices, _port = self.refused()
        self.domain.answers.clear()
        self.assertEqual([], self.detached(devices))
        self.assertCountEqual([GPU, PORT], self.calls('detach'))
        self.assertCountEqual([GPU, PORT], self.calls('attach'))
        self.assert_has_what_it_had()

    def test_a_guest_that_stopped_is_expected_nothing_of(self):
        _devices, port = self.refused()
        self.driver.emit_event(event.LifecycleEvent(
            self.domain.UUIDString(), event.EVENT_LIFECYCLE_STOPPED))
        self.domain.end(port, taken=True)
        self.assertEqual([], self.domain.calls)

    def test_one_that_left_by_itself_before_is_no_error(self):
        devices = self.guest(GPU)
        self.domain.answers['hostdev0'] = None
        detach = self.domain.detachDeviceFlags

        def leave_before_the_second(xml, flags):
            if self.calls('detach'):
                self.domain.live.clear()
            detach(xml, flags)

        self.domain.detachDeviceFlags = leave_before_the_second
        self.assertEqual([], self.detached(devices))
        self.assert_has_what_it_had()

    def test_a_paused_guest_is_not_asked(self):
        devices = self.guest(GPU, PORT)
        self.domain.suspend()
        for name in NAMES[:2]:
            self.assertIn('paused',
                          self.assert_fails_to_detach(devices, name))
            self.assertIn(name, devices.reason_to_stay())
        self.assertEqual([], self.domain.calls)

    def test_strategies_that_save_memory_refuse_a_paused_guest_before(self):
        self.guest(GPU)
        self.domain.suspend()
        self.patch(internal, '_reason_against_memory', lambda _plan: None)
        for strategy in (internal.InternalStrategy, cold.ColdStrategy):
            self.assertIn(NAMES[0], strategy(self.driver).reason_against(
                self.domain_plan))

    def test_nothing_speaks_against_a_guest_that_runs_or_has_none(self):
        self.assertIsNone(self.guest(GPU).reason_to_stay())
        devices = self.guest(*STAYS)
        self.domain.suspend()
        self.assertIsNone(devices.reason_to_stay())
        self.detached(devices)

    def test_an_attach_that_fails_once_is_tried_again(self):
        devices = self.guest(GPU, PORT)
        self.domain.attach_errors = [fake_guest.libvirt_error(1)]
        self.detached(devices)
        self.assertEqual([GPU, PORT, GPU], self.calls('attach'))
        self.pauses.assert_called_once_with(passthrough.ATTACH_PAUSE)
        self.assert_has_what_it_had()

    def always_fail_to_attach(self, failing):
        attach = self.domain.attachDeviceFlags

        def fail(xml, flags):
            if xml == failing:
                raise fake_guest.libvirt_error(1, 'device is busy')
            attach(xml, flags)

        self.domain.attachDeviceFlags = fail

    def test_what_can_not_be_attached_is_told_and_the_others_are(self):
        devices = self.guest(*ALL)
        self.always_fail_to_attach(PORT)
        error = self.assertRaises(exception.ReleaseFailed, self.detached,
                                  devices)
        self.assertEqual([GPU, VDPA, MDEV], self.calls('attach'))
        for part in (NAMES[1], 'device is busy', 'virsh attach-device'):
            self.assertIn(part, str(error))
        for name in (NAMES[0], NAMES[2], NAMES[3]):
            self.assertNotIn(name, str(error))
        self.assertIn(str(error), self.stdlog.logger.output)
        # The guest's next start brings it.
        self.assertEqual(self.had[1], self.definitions()[1])

    def test_a_device_that_libvirt_only_says_to_be_attached_is_told(self):
        devices = self.guest(GPU)
        self.domain.attachDeviceFlags = lambda _xml, flags: None
        error = self.assertRaises(exception.ReleaseFailed, self.detached,
                                  devices)
        self.assertIn(NAMES[0], str(error))

    def test_a_backup_touches_none(self):
        self.guest(*ALL)
        self.flags(freeze_directory=self.useFixture(fixtures.TempDir()).path,
                   group='snapext')
        self.patch(backup, '_qemu_uid', lambda _guest: os.geteuid())
        self.patch(backup, 'backup_job')
        self.patch(journal.Entry, 'write')
        with backup.BackupStrategy(self.driver).freeze(
                self.domain_plan):
            self.assert_has_what_it_had()
        self.assertEqual([], self.domain.calls)

    def fail_inside(self, devices):
        with devices.detached():
            raise ZeroDivisionError()

    def test_they_come_back_when_the_snapshot_fails(self):
        devices = self.guest(*ALL)
        self.assertRaises(ZeroDivisionError, self.fail_inside, devices)
        self.assert_has_what_it_had()

    def test_the_snapshot_s_own_error_is_not_hidden_by_an_attach_s(self):
        devices = self.guest(GPU)
        self.always_fail_to_attach(GPU)
        self.assertRaises(ZeroDivisionError, self.fail_inside, devices)
        self.assertIn(f'has not got back all of its devices: {NAMES[0]}',
                      self.stdlog.logger.output)

    def test_a_guest_that_vanished_is_no_error_of_theirs(self):
        devices = self.guest(GPU)
        with devices.detached():
            self.domain.undefine()
        self.assertEqual([], self.calls('attach'))
        self.assertIn('gone', self.stdlog.logger.output)

    def test_a_guest_that_vanishes_between_two_devices_is_told_apart(self):
        devices = self.guest(GPU, PORT)
        no_domain = fake_guest.libvirt_error(fakelibvirt.VIR_ERR_NO_DOMAIN)

        def vanish():
            self.domain.undefine()
            self.patch(self.domain, 'XMLDesc').side_effect = no_domain

        self.domain.answer = vanish
        error = self.assertRaises(fakelibvirt.libvirtError, self.detached,
                                  devices)
        self.assertIs(no_domain, error)

    def test_an_instance_that_is_deleted_meanwhile_is_told_apart(self):
        devices = self.guest(GPU)

        def delete():
            self.driver._device_event_handler.cleanup_waiters(
                self.domain.UUIDString())
            self.domain.undefine()

        self.domain.answer = delete
        self.assertRaises(nova_exception.InstanceNotFound, self.detached,
                          devices)

    def test_a_guest_that_is_shut_off_gets_them_when_it_starts(self):
        devices = self.guest(GPU)
        with devices.detached():
            self.domain.destroy()
        self.assertEqual([], self.calls('attach'))
        self.assertEqual(self.had[1], self.definitions()[1])

    def test_a_guest_that_stays_suspended_is_told_to_lack_them(self):
        devices = self.guest(GPU, PORT)
        with contextlib.ExitStack() as stack:
            stack.enter_context(devices.detached())
            self.domain.managedSave(0)
            error = self.assertRaises(exception.ReleaseFailed, stack.close)
        for part in (*NAMES[:2], 'suspended', 'virsh attach-device'):
            self.assertIn(part, str(error))
        self.assertEqual([], self.calls('attach'))

    def test_a_guest_that_was_suspended_meanwhile_gets_them_back(self):
        devices = self.guest(*ALL)
        with devices.detached():
            # libvirt's object of the domain is another one afterwards.
            before, self.domain = self.domain, fake_guest.Domain(
                self.connection, self.domain_plan.instance, ALL)
            self.domain.live.clear()
        self.assertEqual([], before.live)
        self.assertEqual(ALL, self.calls('attach'))
        self.assert_has_what_it_had()

    def test_what_was_taken_for_good_meanwhile_does_not_come_back(self):
        # As Nova does when Neutron tells it that a port was deleted.
        devices = self.guest(GPU, PORT)
        with devices.detached():
            del self.domain.persistent[1]
        self.assertEqual([GPU], self.calls('attach'))

    def test_what_only_the_running_guest_had_comes_back(self):
        # So are ports left by Nova's own suspend and resume.
        devices = self.guest(GPU, PORT)
        del self.domain.persistent[1]
        self.had = self.definitions()
        self.detached(devices)
        self.assert_has_what_it_had()

    def test_a_libvirtd_that_is_away_for_a_moment_is_asked_again(self):
        devices = self.guest(GPU)
        get_guest = self.driver._host.get_guest
        with contextlib.ExitStack() as stack:
            stack.enter_context(devices.detached())
            self.patch(self.driver._host, 'get_guest').side_effect = [
                nova_exception.HypervisorUnavailable(),
                get_guest(mock.Mock(uuid=self.domain.UUIDString()))]
        self.assert_has_what_it_had()

    def test_a_libvirtd_that_stays_away_is_told_with_what_may_lack(self):
        devices = self.guest(GPU)
        with contextlib.ExitStack() as stack:
            stack.enter_context(devices.detached())
            self.patch(self.driver._host, 'get_guest').side_effect = (
                nova_exception.HypervisorUnavailable())
            error = self.assertRaises(exception.ReleaseFailed, stack.close)
        self.assertIn(NAMES[0], str(error))
        self.assertIn('Connection to the hypervisor', str(error))
