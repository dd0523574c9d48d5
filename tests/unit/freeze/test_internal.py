# SPDX-License-Identifier: Apache-2.0

import contextlib
import os
from unittest import mock

import fixtures
import libvirt
from nova import exception as nova_exception
from nova.virt.libvirt import host as libvirt_host
from oslo_concurrency import processutils
from oslo_utils import units

from nova_snapext import exception
from nova_snapext.freeze import internal
from nova_snapext.freeze import internal_snapshot
from nova_snapext.freeze import libvirtd
from nova_snapext import journal
from nova_snapext import plan as planning
from tests.unit import base

DOMAIN = """
<domain>
  <os>{os}</os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='/i/disk'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    {devices}
  </devices>
</domain>
"""

EPHEMERAL = """
<disk type='file' device='disk'>
  <driver name='qemu' type='{format}'/>
  <source file='/i/disk.eph0'/>
  <target dev='vdb' bus='virtio'/>
  {more}
</disk>
"""

VOLUME = """
<disk type='block' device='disk'>
  <driver name='qemu' type='raw'/>
  <source dev='/dev/sdx'/>
  <target dev='vdc' bus='virtio'/>
</disk>
"""

NVRAM = '<nvram{format}>/nvram/guest_VARS.fd</nvram>'

CONFIG_DRIVE = """
<disk type='file' device='cdrom'>
  <driver name='qemu' type='raw'/>
  <source file='/i/disk.config'/>
  <target dev='sda' bus='sata'/>
  <readonly/>
</disk>
"""

NAME = f'snapext-{base.IMAGE_ID}'


def libvirt_error(code):
    error = libvirt.libvirtError('libvirt says no')
    error.err = (code, 0, 'libvirt says no', 0, None, None, None, 0, 0)
    return error


class InternalTestCase(base.TestCase):

    def internal_plan(self, devices='', os='', memory=units.Mi, **kwargs):
        plan = self.plan(domain_xml=DOMAIN.format(devices=devices, os=os),
                         **kwargs)
        plan.guest._domain.info.return_value = [1, memory // units.Ki]
        plan.guest._domain.state.return_value = [
            libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_BOOTED]
        plan.guest._domain.hasManagedSaveImage.return_value = False
        plan.guest.is_active.return_value = plan.running
        return plan


class ReasonTest(InternalTestCase):

    def setUp(self):
        super().setUp()
        self.flags(reserved_host_disk_mb=1)
        self.statvfs = self.useFixture(fixtures.MockPatchObject(
            os, 'statvfs')).mock
        self.statvfs.return_value = mock.Mock(
            f_bavail=10 * units.Ki, f_frsize=units.Ki)
        self.host = mock.create_autospec(libvirt_host.Host, instance=True)
        self.host.has_min_version.return_value = False
        self.strategy = internal.InternalStrategy(mock.Mock(_host=self.host))

    def reason(self, **kwargs):
        return self.strategy.reason_against(self.internal_plan(**kwargs))

    def test_a_guest_with_nothing_but_qcow2_is_served(self):
        for running in (True, False):
            self.assertIsNone(self.reason(
                running=running,
                devices=EPHEMERAL.format(format='qcow2', more='')))

    def test_a_second_disk_that_is_raw_is_named(self):
        for running in (True, False):
            self.assertIn('vdb has the format raw', self.reason(
                running=running,
                devices=EPHEMERAL.format(format='raw', more='')))

    def test_a_second_disk_that_is_no_file_is_named(self):
        self.assertIn('vdc is on block storage', self.reason(devices=VOLUME))

    def test_a_second_disk_that_is_encrypted_is_named(self):
        self.assertIn('vdb is encrypted', self.reason(
            devices=EPHEMERAL.format(
                format='qcow2', more="<encryption format='luks'/>")))

    def test_what_the_guest_can_only_read_does_not_matter(self):
        self.assertIsNone(self.reason(devices=CONFIG_DRIVE))

    def test_a_raw_root_disk_is_refused(self):
        self.assertIn('raw', self.reason(disk=planning.RootDisk(
            target='vda', storage='file', path='/i/disk', format='raw')))

    def test_uefi_variables_are_refused_by_an_old_libvirt(self):
        for running in (True, False):
            self.assertIn('10.10.0', self.reason(
                running=running, os=NVRAM.format(format=" format='qcow2'")))
        self.host.has_min_version.assert_called_with((10, 10, 0))

    def test_raw_uefi_variables_are_refused_by_a_new_libvirt_too(self):
        self.host.has_min_version.return_value = True
        for attribute in ('', " format='raw'"):
            self.assertIn('guest_VARS.fd) have the format raw',
                          self.reason(os=NVRAM.format(format=attribute)))

    def test_qcow2_uefi_variables_are_served_by_a_new_libvirt(self):
        self.host.has_min_version.return_value = True
        self.assertIsNone(self.reason(
            os=NVRAM.format(format=" format='qcow2'")))

    def test_memory_that_finds_no_room_is_refused_with_numbers(self):
        self.assertIsNone(self.reason(memory=9 * units.Mi))
        reason = self.reason(memory=10 * units.Mi)
        self.assertIn('10 MiB is saved', reason)
        self.assertIn('9 MiB are left', reason)
        self.statvfs.assert_called_with('/i/disk')

    def test_a_disk_that_can_not_be_looked_at_is_a_reason(self):
        self.statvfs.side_effect = OSError('no such file')
        self.assertIn('no such file', self.reason(running=True))

    def test_a_guest_that_is_shut_off_has_no_memory_to_save(self):
        self.assertIsNone(self.reason(memory=units.Gi, running=False))

    def test_unasked_it_is_not_chosen(self):
        self.assertIn('memory', self.strategy.reason_against_unasked(
            self.internal_plan()))


class FreezeTest(InternalTestCase):

    def setUp(self):
        super().setUp()
        self.flags(freeze_directory=self.useFixture(
            fixtures.TempDir()).path, group='snapext')
        self.order = []
        self.useFixture(fixtures.MockPatchObject(journal.Entry, 'write'))
        self.serve = self.patched(
            'nova_snapext.freeze.qemu_nbd.serve',
            side_effect=lambda *_args: self.note('serve'))
        self.patched(
            'nova_snapext.freeze.passthrough.PassthroughDevices'
        ).return_value.detached = self.detached
        self.look = self.patched('nova.virt.images.qemu_img_info',
                                 return_value=mock.Mock(snapshots=[]))
        self.execute = self.patched(
            'oslo_concurrency.processutils.execute')
        self.access = self.patched('os.access', return_value=True)
        self.host = mock.create_autospec(libvirt_host.Host, instance=True)
        self.strategy = internal.InternalStrategy(mock.Mock(_host=self.host))

    def patched(self, name, **kwargs):
        return self.useFixture(fixtures.MockPatch(name, **kwargs)).mock

    def note(self, event):
        self.order.append(event)
        return mock.DEFAULT

    @contextlib.contextmanager
    def detached(self):
        self.note('detach')
        yield
        self.note('attach')

    def frozen(self, **kwargs):
        plan = self.internal_plan(**kwargs)
        self.host.get_guest.return_value = plan.guest
        plan.guest.snapshot.side_effect = (
            lambda *_args, **_kwargs: self.note('snapshot'))
        with self.strategy.freeze(plan):
            self.note('read')
        return plan

    def test_devices_are_out_for_the_snapshot_alone(self):
        self.frozen()
        self.assertEqual(['detach', 'snapshot', 'attach', 'serve', 'read'],
                         self.order)

    def test_the_devices_of_a_guest_that_is_shut_off_stay(self):
        self.frozen(running=False)
        self.assertEqual(['serve', 'read'], self.order)

    def test_it_is_the_snapshot_that_is_served(self):
        self.frozen()
        self.assertEqual(NAME, self.serve.call_args.args[-1])

    def test_all_disks_are_named_and_libvirt_is_not_to_remember(self):
        plan = self.frozen(devices=CONFIG_DRIVE + EPHEMERAL.format(
            format='qcow2', more=''))
        call = plan.guest.snapshot.call_args
        self.assertTrue(call.kwargs['no_metadata'])
        self.assertXmlEqual(
            f'<domainsnapshot><name>{NAME}</name><disks>'
            '<disk name="vda" snapshot="internal"/>'
            '<disk name="vdb" snapshot="internal"/></disks>'
            '<memory snapshot="internal"/></domainsnapshot>',
            call.args[0].to_xml())

    def test_a_busy_guest_is_refused_before_anything_is_touched(self):
        plan = self.internal_plan()
        plan.guest._domain.jobStats.return_value = {'type': 1}
        self.assertRaises(exception.GuestBusy, self.enter, plan)
        self.assertEqual([], self.order)

    def test_a_quiesce_that_is_required_and_not_possible_gives_it_up(self):
        plan = self.internal_plan(os_require_quiesce='yes')
        self.host.get_guest.return_value = plan.guest
        self.assertRaises(nova_exception.InstanceQuiesceFailed,
                          self.enter, plan)
        plan.guest.snapshot.assert_not_called()

    def enter(self, plan):
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.strategy.freeze(plan))

    def test_the_disk_of_a_guest_that_is_shut_off_is_named_as_a_qcow2(self):
        self.frozen(running=False)
        self.execute.assert_called_once_with(
            'qemu-img', 'snapshot', '-c', NAME, '--image-opts',
            'driver=qcow2,file.driver=file,file.filename=/i/disk')

    def test_a_disk_that_nova_can_not_write_to_is_written_to_as_root(self):
        self.access.side_effect = lambda _path, mode: mode == os.R_OK
        privileged = self.patched(
            'nova_snapext.freeze.qemu_img._privileged_snapshot')
        self.frozen(running=False)
        privileged.assert_called_once_with('-c', NAME, '/i/disk')
        self.execute.assert_not_called()


class ReleaseTest(InternalTestCase):

    def setUp(self):
        super().setUp()
        self.flags(job_timeout=1, group='snapext')
        self.useFixture(fixtures.MockPatchObject(libvirtd, 'PAUSE', 0.1))
        self.useFixture(fixtures.MockPatch(
            'os.access', return_value=True))
        self.useFixture(fixtures.MockPatch(
            'nova.virt.images.qemu_img_info', self.info))
        self.qemu_img = self.useFixture(fixtures.MockPatch(
            'oslo_concurrency.processutils.execute',
            side_effect=self.run_qemu_img)).mock
        self.host = mock.create_autospec(libvirt_host.Host, instance=True)
        self.holders = set()
        self.plan_ = self.internal_plan()
        self.guest = self.plan_.guest
        self.guest.snapshot.side_effect = self.create
        self.host.get_guest.return_value = self.guest
        self.known = self.guest._domain.snapshotCreateXML.return_value
        self.known.delete.side_effect = self.delete
        self.snapshot = internal_snapshot.InternalSnapshot(
            self.host, self.plan_, ['/i/disk', '/i/disk.eph0'])
        self.snapshot.note(self.guest)
        self.snapshot.create_with_memory(self.guest, ['vda', 'vdb'])

    def create(self, _config, no_metadata):
        self.holders |= {'/i/disk', '/i/disk.eph0'}

    def delete(self, flags=0):
        if not flags:
            self.holders.clear()

    def info(self, path, _format):
        return mock.Mock(snapshots=[{'name': 'operator\'s'}] + [
            {'name': NAME}] * (path in self.holders))

    def run_qemu_img(self, *command, **_kwargs):
        self.holders.discard(command[-1].partition('filename=')[2])

    def failed(self):
        return str(self.assertRaises(exception.ReleaseFailed,
                                     self.snapshot.release))

    def test_libvirt_is_told_of_it_in_order_to_delete_it(self):
        self.snapshot.release()
        xml, flags = self.guest._domain.snapshotCreateXML.call_args.args
        self.assertIn(f'<name>{NAME}</name>', xml)
        self.assertEqual(libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE, flags)
        self.known.delete.assert_called_once_with()
        self.qemu_img.assert_not_called()

    def test_what_was_never_made_is_not_deleted(self):
        self.holders.clear()
        self.snapshot.release()
        self.guest._domain.snapshotCreateXML.assert_not_called()

    def test_libvirt_forgets_it_when_it_can_not_delete_it(self):
        self.known.delete.side_effect = [
            libvirt_error(libvirt.VIR_ERR_OPERATION_FAILED), None] * 3
        reason = self.failed()
        self.assertEqual(
            [mock.call(), mock.call(
                libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)] * 3,
            self.known.delete.mock_calls)
        for word in ('libvirt says no', '/i/disk', '/i/disk.eph0',
                     f'qemu-img snapshot -d {NAME}'):
            self.assertIn(word, reason)

    def test_a_deletion_that_did_nothing_is_noticed(self):
        self.known.delete.side_effect = None
        self.assertIn('/i/disk', self.failed())

    def test_a_guest_that_is_powered_off_just_then_is_no_obstacle(self):
        def power_off(flags=0):
            self.guest.is_active.return_value = False
            raise libvirt_error(libvirt.VIR_ERR_OPERATION_INVALID)

        self.known.delete.side_effect = power_off
        self.snapshot.release()
        self.assertEqual(2, self.qemu_img.call_count)

    def test_a_guest_that_is_started_just_then_is_no_obstacle(self):
        def start(*_command, **_kwargs):
            self.guest.is_active.return_value = True
            raise processutils.ProcessExecutionError(stderr='locked')

        self.guest.is_active.return_value = False
        self.qemu_img.side_effect = start
        self.snapshot.release()
        self.known.delete.assert_called_once_with()

    def test_without_a_guest_what_is_left_of_its_disks_is_cleaned(self):
        self.host.get_guest.side_effect = nova_exception.InstanceNotFound(
            instance_id='gone')
        self.holders.discard('/i/disk')
        self.snapshot.release()
        [call] = self.qemu_img.mock_calls
        self.assertTrue(call.args[-1].endswith('/i/disk.eph0'))

    def test_a_libvirtd_that_restarts_is_waited_for(self):
        self.host.get_guest.side_effect = [
            nova_exception.HypervisorUnavailable(), self.guest, self.guest]
        self.snapshot.release()
        self.known.delete.assert_called_once_with()

    def test_a_libvirtd_that_does_not_come_back_is_told_of(self):
        self.host.get_guest.side_effect = (
            nova_exception.HypervisorUnavailable())
        reason = self.failed()
        for word in (NAME, '/i/disk', 'virsh resume'):
            self.assertIn(word, reason)

    def halt(self, reason):
        self.guest._domain.state.return_value = [
            libvirt.VIR_DOMAIN_PAUSED, reason]

    def test_a_guest_without_room_to_write_is_resumed_when_there_is(self):
        self.halt(libvirt.VIR_DOMAIN_PAUSED_IOERROR)
        self.guest.resume.side_effect = (
            lambda: self.assertEqual(set(), self.holders))
        self.snapshot.release()
        self.guest.resume.assert_called_once_with()

    def test_a_guest_is_resumed_although_the_snapshot_stays(self):
        self.known.delete.side_effect = None
        self.halt(libvirt.VIR_DOMAIN_PAUSED_IOERROR)
        self.failed()
        self.guest.resume.assert_called_once_with()

    def test_a_guest_that_somebody_paused_stays_paused(self):
        self.halt(libvirt.VIR_DOMAIN_PAUSED_USER)
        self.snapshot.release()
        self.guest.resume.assert_not_called()

    def test_a_guest_that_was_paused_before_stays_paused(self):
        self.halt(libvirt.VIR_DOMAIN_PAUSED_SAVE)
        self.snapshot.note(self.guest)
        self.snapshot.create_with_memory(self.guest, ['vda', 'vdb'])
        self.snapshot.release()
        self.guest.resume.assert_not_called()

    def test_a_guest_that_can_not_be_resumed_is_told_of(self):
        self.halt(libvirt.VIR_DOMAIN_PAUSED_SAVE)
        self.guest.resume.side_effect = libvirt_error(
            libvirt.VIR_ERR_OPERATION_TIMEOUT)
        self.assertIn('virsh resume', self.failed())
