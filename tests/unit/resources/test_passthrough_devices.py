# SPDX-License-Identifier: Apache-2.0

import contextlib
import dataclasses
import json
import os
from unittest import mock

import fixtures
import libvirt
from lxml import etree
from nova import exception as nova_exception
from nova.tests import fixtures as nova_fixtures
from nova.tests.fixtures import libvirt as fakelibvirt
from nova.virt import event
from nova.virt import fake
from nova.virt.libvirt import driver as nova_driver
import tenacity

from nova_snapext import compat
from nova_snapext import driver
from nova_snapext import exception
from nova_snapext.hypervisor import domain
from nova_snapext import journal
from nova_snapext.resources import passthrough_devices
from nova_snapext.resources import work_directory
from nova_snapext.strategies import backup
from nova_snapext.strategies import base as strategies_base
from nova_snapext.strategies import cold
from nova_snapext.strategies import internal
from tests.unit import base
from tests.unit.resources import fake_guest

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
# Devices of QEMU: a macvtap port of a virtual function, a port of a bridge, a
# USB stick.
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
        self.flags(virt_type='kvm', device_detach_attempts=3,
                   group='libvirt')
        self.driver = driver.SnapextDriver(fake.FakeVirtAPI())
        if not compat.concurrency_mode_threading():
            # The green thread that takes events from the queue is not there.
            host = self.driver._host
            self.patch(compat.event_queue(host).__self__, '_queue_event',
                       host._event_emit_delayed)
        self.connection = self.driver._host.get_connection()
        self.sleep = self.patch(tenacity.nap.time, 'sleep')
        # The guest answers only when Nova waits for its answer.
        wait = nova_driver.AsyncDeviceEventsHandler.wait

        def answer_and_wait(handler, token, timeout):
            self.domain.answer()
            return wait(handler, token, 0)

        self.patch(nova_driver.AsyncDeviceEventsHandler, 'wait',
                   answer_and_wait)

    def patch(self, target, name, *value):
        patch = mock.patch.object(target, name, *value)
        self.addCleanup(patch.stop)
        return patch.start()

    def guest(self, *devices):
        plan = self.plan()
        self.domain = fake_guest.Domain(
            self.connection, plan.instance, devices)
        self.before = self.definitions()
        self.domain_plan = dataclasses.replace(
            plan, guest=domain.Domain(self.domain))
        return passthrough_devices.PassthroughDevices(
            self.driver, self.domain_plan)

    def definitions(self):
        return [sorted(etree.tostring(device) for device in devices)
                for devices in (self.domain.live, self.domain.persistent)]

    def calls(self, verb):
        return [xml for called, xml, _flags in self.domain.calls
                if called == verb]

    def detached(self, devices):
        """Enter and leave the context.

        :returns: the devices that the guest had inside it
        """
        with self.detach(devices):
            return [etree.tostring(device, encoding='unicode')
                    for device in self.domain.live]

    def detach(self, devices):
        guest = self.domain_plan.guest
        devices.capture_state(guest)
        return devices.detached(guest)

    def reason(self, devices):
        return devices.unsupported_reason(self.domain_plan.guest)

    def assert_has_all_devices(self):
        self.assertEqual(self.before, self.definitions())

    def test_each_kind_is_detached_and_attached_by_its_own_element(self):
        for xml in ALL:
            devices = self.guest(xml)
            self.assertEqual([], self.detached(devices))
            self.assertEqual([('detach', xml, LIVE), ('attach', xml, LIVE)],
                             self.domain.calls)
            self.assert_has_all_devices()

    def test_all_devices_are_detached_together_and_attached_in_order(self):
        devices = self.guest(*ALL)
        self.assertEqual([], self.detached(devices))
        self.assertEqual(ALL, self.calls('attach'))
        self.assert_has_all_devices()

    def test_devices_that_nova_has_detached_are_attached_at_the_release(self):
        devices = self.guest(*ALL)
        devices.capture_state(self.domain_plan.guest)
        devices.release()
        self.assertEqual([], self.domain.calls)
        devices.detached_by_nova()
        self.domain.live = self.domain.live[:1]
        devices.release()
        self.assertEqual(ALL[1:], self.calls('attach'))
        self.assert_has_all_devices()

    def test_device_that_was_attached_again_is_novas_to_detach(self):
        devices = self.guest(GPU, PORT)
        devices.capture_state(self.domain_plan.guest)
        devices.detached_by_nova()
        gpu = self.domain.live.pop(0)
        devices.expect_late_unplugs()
        devices.release()
        self.assertEqual([GPU], self.calls('attach'))
        # The port has not followed the request yet.
        self.assertEqual(['hostdev1'], list(
            self.driver.pending_unplugs._expected[
                self.domain_plan.instance.uuid]))
        [attached] = [device for device in self.domain.live
                      if device.tag == gpu.tag]
        self.domain.end_request(attached, released=True)
        self.assertEqual([GPU], self.calls('attach'))

    def test_device_of_qemu_stays_attached(self):
        devices = self.guest(GPU, *STAYS)
        self.assertEqual(len(STAYS), len(self.detached(devices)))
        self.assertEqual([GPU], self.calls('detach'))

    def test_guest_that_is_shut_off_has_no_devices(self):
        devices = self.guest(GPU)
        self.domain.destroy()
        self.detached(devices)
        self.assertEqual([], self.domain.calls)

    def test_guest_without_devices_gets_no_request(self):
        devices = self.guest(*STAYS)
        with mock.patch.object(self.domain, 'XMLDesc',
                               wraps=self.domain.XMLDesc) as xml_desc:
            self.detached(devices)
        xml_desc.assert_called_once_with(flags=0)
        self.assertEqual([], self.domain.calls)

    def test_device_is_checked_only_after_answer_of_guest(self):
        devices = self.guest(GPU)
        with mock.patch.object(passthrough_devices, '_find') as find:
            find.side_effect = lambda *_: self.domain.calls.append('check')
            self.assertEqual([], self.detached(devices))
        # A check before the guest's answer would lead to a second request.
        self.assertEqual('check', self.domain.calls[1])
        self.assertEqual([GPU], [
            call[1] for call in self.domain.calls if call[0] == 'detach'])

    def test_guest_that_does_not_answer_gets_second_request(self):
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
        self.assert_has_all_devices()

    def assert_fails_to_detach(self, devices, name):
        error = self.assertRaises(nova_exception.DeviceDetachFailed,
                                  self.detached, devices)
        self.assertIn(name, str(error))
        return str(error)

    def test_refused_device_brings_earlier_devices_back(self):
        devices = self.guest(*ALL)
        self.domain.answers['net0'] = False
        self.assert_fails_to_detach(devices, NAMES[2])
        self.assertEqual([GPU, PORT, VDPA], self.calls('detach'))
        self.assertEqual([GPU, PORT], self.calls('attach'))
        self.assert_has_all_devices()

    def test_device_that_stays_is_named_in_error(self):
        for xml, name in zip(ALL, NAMES, strict=True):
            devices = self.guest(xml)
            alias = etree.fromstring(xml).find('alias').get('name')
            for answer in (False, None):
                self.domain.answers[alias] = answer
                self.assert_fails_to_detach(devices, name)
            self.assert_has_all_devices()

    def test_error_of_libvirt_is_in_error(self):
        devices = self.guest(GPU, MDEV)
        self.domain.answers['ua-vgpu'] = None
        detach = self.domain.detachDeviceFlags

        def refuse(xml, flags):
            if xml == MDEV:
                raise base.libvirt_error(
                    fakelibvirt.VIR_ERR_CONFIG_UNSUPPORTED, 'no such thing')
            detach(xml, flags)

        self.domain.detachDeviceFlags = refuse
        self.assertIn('no such thing',
                      self.assert_fails_to_detach(devices, NAMES[3]))
        self.assert_has_all_devices()
        # As after a first request that was not answered in time.
        self.domain.end_request(
            self.domain.find(etree.fromstring(MDEV)), released=True)
        self.assert_has_all_devices()

    def test_device_that_leaves_during_attach_of_others_comes_back(self):
        devices = self.guest(GPU, PORT)
        self.domain.answers['hostdev1'] = None
        attach = self.domain.attachDeviceFlags

        def leave_during_attach(xml, flags):
            if xml == GPU:
                self.domain.live.clear()
            attach(xml, flags)

        self.domain.attachDeviceFlags = leave_during_attach
        self.assert_fails_to_detach(devices, NAMES[1])
        self.assertEqual([GPU, PORT], self.calls('attach'))
        self.assert_has_all_devices()

    def refused(self):
        """Return the devices of a guest that did not answer, and the port."""
        devices = self.guest(GPU, PORT)
        self.domain.answers['hostdev1'] = None
        self.assert_fails_to_detach(devices, NAMES[1])
        self.domain.calls.clear()
        return devices, next(device for device in self.domain.live
                             if device.tag == 'interface')

    def test_device_that_leaves_long_after_failure_comes_back(self):
        _devices, port = self.refused()
        self.domain.end_request(port, released=True)
        self.assertEqual([('attach', PORT, LIVE)], self.domain.calls)
        self.assert_has_all_devices()

    def test_device_that_nova_removed_after_failure_stays_away(self):
        _devices, port = self.refused()
        del self.domain.persistent[1]
        self.domain.end_request(port, released=True)
        self.assertEqual([], self.domain.calls)

    def test_device_that_next_snapshot_detaches_stays_detached(self):
        devices, _port = self.refused()
        self.domain.answers.clear()
        self.assertEqual([], self.detached(devices))
        self.assertCountEqual([GPU, PORT], self.calls('detach'))
        self.assertCountEqual([GPU, PORT], self.calls('attach'))
        self.assert_has_all_devices()

    def test_stopped_guest_gets_no_late_device(self):
        _devices, port = self.refused()
        self.driver.emit_event(event.LifecycleEvent(
            self.domain.UUIDString(), event.EVENT_LIFECYCLE_STOPPED))
        self.domain.end_request(port, released=True)
        self.assertEqual([], self.domain.calls)

    def test_device_that_left_before_request_is_no_error(self):
        devices = self.guest(GPU)
        self.domain.answers['hostdev0'] = None
        detach = self.domain.detachDeviceFlags

        def leave_before_the_second(xml, flags):
            if self.calls('detach'):
                self.domain.live.clear()
            detach(xml, flags)

        self.domain.detachDeviceFlags = leave_before_the_second
        self.assertEqual([], self.detached(devices))
        self.assert_has_all_devices()

    def test_paused_guest_gets_no_request(self):
        devices = self.guest(GPU, PORT)
        self.domain.suspend()
        for name in NAMES[:2]:
            self.assertIn('paused',
                          self.assert_fails_to_detach(devices, name))
            self.assertIn(name, self.reason(devices))
        self.assertEqual([], self.domain.calls)

    def test_strategies_that_save_memory_refuse_paused_guest(self):
        self.guest(GPU)
        self.domain.suspend()
        self.patch(strategies_base, 'memory_space_reason',
                   lambda _plan, _path: None)
        for strategy in (internal.InternalStrategy, cold.ColdStrategy):
            self.assertIn(NAMES[0], strategy(self.driver).unsupported_reason(
                self.domain_plan))

    def test_guest_that_runs_or_has_no_devices_is_supported(self):
        self.assertIsNone(self.reason(self.guest(GPU)))
        devices = self.guest(*STAYS)
        self.domain.suspend()
        self.assertIsNone(self.reason(devices))
        self.detached(devices)

    def test_failed_attach_is_repeated(self):
        devices = self.guest(GPU, PORT)
        self.domain.attach_errors = [base.libvirt_error(1)]
        self.detached(devices)
        self.assertEqual([GPU, PORT, GPU], self.calls('attach'))
        self.sleep.assert_called_once_with(
            passthrough_devices.ATTACH_RETRY_INTERVAL)
        self.assert_has_all_devices()

    def always_fail_to_attach(self, failing):
        attach = self.domain.attachDeviceFlags

        def fail(xml, flags):
            if xml == failing:
                raise base.libvirt_error(1, 'device is busy')
            attach(xml, flags)

        self.domain.attachDeviceFlags = fail

    def test_failed_attach_of_one_device_is_named_and_others_attached(self):
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
        self.assertEqual(self.before[1], self.definitions()[1])

    def test_device_that_is_missing_after_attach_is_named(self):
        devices = self.guest(GPU)
        self.domain.attachDeviceFlags = lambda _xml, flags: None
        error = self.assertRaises(exception.ReleaseFailed, self.detached,
                                  devices)
        self.assertIn(NAMES[0], str(error))

    def test_backup_changes_no_devices(self):
        self.guest(*ALL)
        self.flags(work_directory=self.useFixture(fixtures.TempDir()).path,
                   group='snapext')
        self.patch(backup, '_qemu_owner',
                   lambda _guest: (os.geteuid(), os.getegid()))
        self.patch(domain.Domain, 'disk_size', lambda *_args: 1)
        for name in ('create_scratch', 'share_with', 'take_socket'):
            self.patch(work_directory.WorkDirectory, name)
        self.patch(backup.qemu_process, 'check_server')
        self.patch(backup, 'backup_job')
        self.patch(journal.JournalEntry, 'write')
        with backup.BackupStrategy(self.driver).freeze(
                self.domain_plan):
            self.assert_has_all_devices()
        self.assertEqual([], self.domain.calls)

    def fail_inside(self, devices):
        with self.detach(devices):
            raise ZeroDivisionError()

    def test_failed_snapshot_attaches_devices_again(self):
        devices = self.guest(*ALL)
        self.assertRaises(ZeroDivisionError, self.fail_inside, devices)
        self.assert_has_all_devices()

    def test_failed_attach_does_not_hide_error_of_snapshot(self):
        devices = self.guest(GPU)
        self.always_fail_to_attach(GPU)
        self.assertRaises(ZeroDivisionError, self.fail_inside, devices)
        self.assertIn(f'does not have all of its devices again: {NAMES[0]}',
                      self.stdlog.logger.output)

    def test_guest_that_is_gone_afterwards_is_no_error(self):
        devices = self.guest(GPU)
        with self.detach(devices):
            self.domain.undefine()
        self.assertEqual([], self.calls('attach'))
        self.assertIn('gone', self.stdlog.logger.output)

    def test_guest_that_goes_between_two_devices_raises_its_error(self):
        devices = self.guest(GPU, PORT)
        no_domain = base.libvirt_error(libvirt.VIR_ERR_NO_DOMAIN)

        def vanish():
            self.domain.undefine()
            self.patch(self.domain, 'XMLDesc').side_effect = no_domain

        self.domain.answer = vanish
        error = self.assertRaises(fakelibvirt.libvirtError, self.detached,
                                  devices)
        self.assertIs(no_domain, error)

    def test_instance_that_is_deleted_raises_not_found(self):
        devices = self.guest(GPU)

        def delete():
            self.driver._device_event_handler.cleanup_waiters(
                self.domain.UUIDString())
            self.domain.undefine()

        self.domain.answer = delete
        self.assertRaises(nova_exception.InstanceNotFound, self.detached,
                          devices)

    def test_recorded_devices_are_attached_after_crash(self):
        devices = self.guest(GPU, PORT)
        devices.capture_state(self.domain_plan.guest)
        record = json.loads(json.dumps(devices.record()))
        self.domain.live.clear()
        restored = passthrough_devices.PassthroughDevices.restore(
            self.driver, self.domain_plan, record)
        restored.release()
        restored.release()
        self.assertEqual([GPU, PORT], self.calls('attach'))
        self.assert_has_all_devices()

    def test_devices_are_not_recorded_before_they_are_captured(self):
        self.assertRaises(RuntimeError, self.guest(GPU).record)

    def test_guest_that_was_shut_off_starts_with_its_devices(self):
        devices = self.guest(GPU)
        with self.detach(devices):
            self.domain.destroy()
        self.assertEqual([], self.calls('attach'))
        self.assertEqual(self.before[1], self.definitions()[1])

    def test_guest_that_stays_suspended_is_an_error(self):
        devices = self.guest(GPU, PORT)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.detach(devices))
            self.domain.managedSave(0)
            error = self.assertRaises(exception.ReleaseFailed, stack.close)
        for part in (*NAMES[:2], 'suspended', 'virsh attach-device'):
            self.assertIn(part, str(error))
        self.assertEqual([], self.calls('attach'))

    def test_guest_that_was_suspended_and_resumed_gets_devices_back(self):
        devices = self.guest(*ALL)
        with self.detach(devices):
            # libvirt's object of the domain is another one afterwards.
            before, self.domain = self.domain, fake_guest.Domain(
                self.connection, self.domain_plan.instance, ALL)
            self.domain.live.clear()
        self.assertEqual([], before.live)
        self.assertEqual(ALL, self.calls('attach'))
        self.assert_has_all_devices()

    def test_device_that_was_removed_from_definition_stays_away(self):
        # As Nova does when Neutron reports that a port was deleted.
        devices = self.guest(GPU, PORT)
        with self.detach(devices):
            del self.domain.persistent[1]
        self.assertEqual([GPU], self.calls('attach'))

    def test_device_of_live_definition_only_comes_back(self):
        # Nova's own suspend and resume leave ports in this state.
        devices = self.guest(GPU, PORT)
        del self.domain.persistent[1]
        self.before = self.definitions()
        self.detached(devices)
        self.assert_has_all_devices()

    def test_attach_is_repeated_after_restart_of_libvirtd(self):
        devices = self.guest(GPU)
        get_guest = self.driver._host.get_guest
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.detach(devices))
            self.patch(self.driver._host, 'get_guest').side_effect = [
                nova_exception.HypervisorUnavailable(),
                get_guest(mock.Mock(uuid=self.domain.UUIDString()))]
        self.assert_has_all_devices()

    def test_libvirtd_that_stays_away_is_an_error_with_device_names(self):
        devices = self.guest(GPU)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.detach(devices))
            self.patch(self.driver._host, 'get_guest').side_effect = (
                nova_exception.HypervisorUnavailable())
            error = self.assertRaises(exception.ReleaseFailed, stack.close)
        self.assertIn(NAMES[0], str(error))
        self.assertIn('Connection to the hypervisor', str(error))
