# SPDX-License-Identifier: Apache-2.0

import contextlib
import json
from unittest import mock

import fixtures
import libvirt
from nova import exception as nova_exception
from nova.virt.libvirt import host as libvirt_host
from oslo_concurrency import processutils
from oslo_utils import units

from nova_snapext import exception
from nova_snapext.hypervisor import connection
from nova_snapext.hypervisor import domain
from nova_snapext.hypervisor import image_header
from nova_snapext import journal
from nova_snapext import plan as planning
from nova_snapext.resources import internal_snapshot
from nova_snapext.resources import passthrough_devices
from nova_snapext import space
from nova_snapext.strategies import internal
from tests.unit import base

IMAGE_HEADER = 'nova_snapext.hypervisor.image_header'

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


class InternalTestCase(base.TestCase):

    def internal_plan(self, devices='', os='', memory=units.Mi, **kwargs):
        plan = self.plan(domain_xml=DOMAIN.format(devices=devices, os=os),
                         **kwargs)
        plan.guest.memory_size.return_value = memory
        return plan

    def patched_get(self, **kwargs):
        return self.useFixture(fixtures.MockPatchObject(
            domain, 'get', **kwargs)).mock


class UnsupportedReasonTest(InternalTestCase):

    def setUp(self):
        super().setUp()
        self.flags(min_free_disk_mb=0, group='snapext')
        self.free_bytes = self.useFixture(fixtures.MockPatchObject(
            space, 'free_bytes', return_value=9 * units.Mi)).mock
        self.useFixture(fixtures.MockPatch(
            f'{IMAGE_HEADER}.checked_header',
            return_value=image_header.Header(None, None, 0, None, 0, 0)))
        self.host = mock.create_autospec(libvirt_host.Host, instance=True)
        self.host.has_min_version.return_value = False
        self.strategy = internal.InternalStrategy(mock.Mock(_host=self.host))

    def reason(self, **kwargs):
        return self.strategy.unsupported_reason(self.internal_plan(**kwargs))

    def test_guest_with_only_qcow2_disks_is_supported(self):
        for running in (True, False):
            self.assertIsNone(self.reason(
                running=running,
                devices=EPHEMERAL.format(format='qcow2', more='')))

    def test_raw_second_disk_is_named(self):
        for running in (True, False):
            self.assertIn('vdb has the format raw', self.reason(
                running=running,
                devices=EPHEMERAL.format(format='raw', more='')))

    def test_second_disk_that_is_no_file_is_named(self):
        self.assertIn('vdc is on block storage', self.reason(devices=VOLUME))

    def test_encrypted_second_disk_is_named(self):
        self.assertIn('vdb is encrypted', self.reason(
            devices=EPHEMERAL.format(
                format='qcow2', more="<encryption format='luks'/>")))

    def test_read_only_disk_is_ignored(self):
        self.assertIsNone(self.reason(devices=CONFIG_DRIVE))

    def test_raw_root_disk_is_refused(self):
        self.assertIn('raw', self.reason(disk=planning.RootDisk(
            target='vda', storage='file', path='/i/disk', format='raw')))

    def test_uefi_variables_are_refused_on_old_libvirt(self):
        for running in (True, False):
            self.assertIn('10.10.0', self.reason(
                running=running, os=NVRAM.format(format=" format='qcow2'")))
        self.host.has_min_version.assert_called_with((10, 10, 0))

    def test_raw_uefi_variables_are_refused_on_new_libvirt(self):
        self.host.has_min_version.return_value = True
        for attribute in ('', " format='raw'"):
            self.assertIn('guest_VARS.fd) have the format raw',
                          self.reason(os=NVRAM.format(format=attribute)))

    def test_qcow2_uefi_variables_are_supported_on_new_libvirt(self):
        self.host.has_min_version.return_value = True
        self.assertIsNone(self.reason(
            os=NVRAM.format(format=" format='qcow2'")))

    def test_memory_without_space_is_refused_with_sizes(self):
        self.assertIsNone(self.reason(memory=9 * units.Mi))
        reason = self.reason(memory=10 * units.Mi)
        self.assertIn('10 MiB is saved', reason)
        self.assertIn('9 MiB free', reason)
        self.free_bytes.assert_called_with('/i/disk')

    def test_unreadable_file_system_is_refused(self):
        self.free_bytes.side_effect = OSError('no such file')
        self.assertIn('no such file', self.reason(running=True))

    def test_guest_that_is_shut_off_needs_no_space_for_memory(self):
        self.assertIsNone(self.reason(memory=units.Gi, running=False))

    def test_auto_skips_strategy(self):
        self.assertIn('memory', self.strategy.auto_skip_reason(
            self.internal_plan()))


class FreezeTest(InternalTestCase):

    def setUp(self):
        super().setUp()
        self.flags(work_directory=self.useFixture(
            fixtures.TempDir()).path, group='snapext')
        self.order = []
        self.useFixture(fixtures.MockPatchObject(
            journal.JournalEntry, 'write'))
        self.serve = self.patched(
            'nova_snapext.hypervisor.qemu_nbd.serve',
            side_effect=lambda *_args: self.log('serve'))
        devices = self.patched(
            'nova_snapext.resources.passthrough_devices.PassthroughDevices'
        ).return_value
        devices.record.return_value = {}
        devices.kind = passthrough_devices.PassthroughDevices.kind
        devices.capture_state = lambda _guest: self.log('capture')
        devices.detached = self.detached
        self.patched(f'{IMAGE_HEADER}.snapshot_names', return_value=[])
        self.patched(f'{IMAGE_HEADER}.checked_header')
        self.execute = self.patched(
            'oslo_concurrency.processutils.execute')
        self.get_guest = self.patched_get()
        self.patched('os.access', return_value=True)
        self.host = mock.create_autospec(libvirt_host.Host, instance=True)
        self.strategy = internal.InternalStrategy(mock.Mock(_host=self.host))

    def patched(self, name, **kwargs):
        return self.useFixture(fixtures.MockPatch(name, **kwargs)).mock

    def log(self, event):
        self.order.append(event)
        return mock.DEFAULT

    @contextlib.contextmanager
    def detached(self, _guest):
        self.log('detach')
        yield
        self.log('attach')

    def frozen(self, **kwargs):
        plan = self.internal_plan(**kwargs)
        self.get_guest.return_value = plan.guest
        plan.guest.snapshot.side_effect = (
            lambda *_args, **_kwargs: self.log('snapshot'))
        with self.strategy.freeze(plan):
            self.log('read')
        return plan

    def test_devices_are_detached_only_for_creation(self):
        self.frozen()
        self.assertEqual(['capture', 'detach', 'snapshot', 'attach', 'serve',
                          'read'], self.order)

    def test_devices_of_guest_that_is_shut_off_are_not_detached(self):
        self.frozen(running=False)
        self.assertEqual(['serve', 'read'], self.order)

    def test_snapshot_is_exported_by_its_name(self):
        self.frozen()
        self.assertEqual(NAME, self.serve.call_args.args[-1])

    def test_all_writable_disks_are_included_without_metadata(self):
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

    def test_busy_guest_is_refused_before_any_change(self):
        plan = self.internal_plan()
        plan.guest.job_stats.return_value = {'type': 1}
        self.assertRaises(exception.GuestBusy, self.enter, plan)
        self.assertEqual([], self.order)

    def test_required_quiesce_that_is_not_possible_creates_no_snapshot(self):
        plan = self.internal_plan(os_require_quiesce='yes')
        self.get_guest.return_value = plan.guest
        self.assertRaises(nova_exception.InstanceQuiesceFailed,
                          self.enter, plan)
        plan.guest.snapshot.assert_not_called()

    def enter(self, plan):
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.strategy.freeze(plan))

    def test_disk_of_guest_that_is_shut_off_is_opened_as_qcow2(self):
        self.frozen(running=False)
        self.execute.assert_called_once_with(
            'qemu-img', 'snapshot', '-c', NAME,
            'json:{"driver": "qcow2", "file": {"driver": "file", '
            '"filename": "/i/disk"}, "backing": null}')


class ReleaseTest(InternalTestCase):

    def setUp(self):
        super().setUp()
        self.flags(operation_timeout=1, group='snapext')
        self.useFixture(fixtures.MockPatchObject(
            connection, 'RETRY_INTERVAL', 0.1))
        self.useFixture(fixtures.MockPatch(
            'os.access', return_value=True))
        self.useFixture(fixtures.MockPatch(
            f'{IMAGE_HEADER}.snapshot_names', self.snapshot_names))
        self.checked_header = self.useFixture(fixtures.MockPatch(
            f'{IMAGE_HEADER}.checked_header')).mock
        self.qemu_img = self.useFixture(fixtures.MockPatch(
            'oslo_concurrency.processutils.execute',
            side_effect=self.run_qemu_img)).mock
        self.host = mock.create_autospec(libvirt_host.Host, instance=True)
        self.holders = set()
        self.plan_ = self.internal_plan()
        self.guest = self.plan_.guest
        self.guest.snapshot.side_effect = self.create
        self.get_guest = self.patched_get(return_value=self.guest)
        self.known = self.guest.create_snapshot.return_value
        self.known.delete.side_effect = self.delete
        self.snapshot = internal_snapshot.InternalSnapshot(
            self.host, self.plan_, ['/i/disk', '/i/disk.eph0'])
        self.snapshot.capture_state(self.guest)
        self.snapshot.create_with_memory(self.guest, ['vda', 'vdb'])

    def create(self, _config, no_metadata):
        self.holders |= {'/i/disk', '/i/disk.eph0'}

    def delete(self, flags=0):
        if not flags:
            self.holders.clear()

    def snapshot_names(self, path):
        return ['operator\'s'] + [NAME] * (path in self.holders)

    def run_qemu_img(self, *command, **_kwargs):
        self.holders.discard(self.path_in(command))

    def path_in(self, command):
        return json.loads(command[-1].removeprefix('json:'))[
            'file']['filename']

    def failed(self):
        return str(self.assertRaises(exception.ReleaseFailed,
                                     self.snapshot.release))

    def test_active_guest_deletes_snapshot_through_libvirt(self):
        self.snapshot.release()
        xml, flags = self.guest.create_snapshot.call_args.args
        self.assertIn(f'<name>{NAME}</name>', xml)
        self.assertEqual(libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE, flags)
        self.known.delete.assert_called_once_with()
        self.qemu_img.assert_not_called()

    def test_snapshot_that_was_never_created_is_not_deleted(self):
        self.holders.clear()
        self.snapshot.release()
        self.guest.create_snapshot.assert_not_called()

    def test_failed_deletion_removes_metadata_from_libvirt(self):
        self.known.delete.side_effect = [
            base.libvirt_error(libvirt.VIR_ERR_OPERATION_FAILED), None] * 3
        reason = self.failed()
        self.assertEqual(
            [mock.call(), mock.call(
                libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)] * 3,
            self.known.delete.mock_calls)
        for word in ('libvirt refuses', '/i/disk', '/i/disk.eph0',
                     f'qemu-img snapshot -d {NAME}'):
            self.assertIn(word, reason)

    def test_deletion_without_effect_is_an_error(self):
        self.known.delete.side_effect = None
        self.assertIn('/i/disk', self.failed())

    def test_guest_powered_off_during_deletion_is_cleaned_by_qemu_img(self):
        def power_off(flags=0):
            self.guest.is_active.return_value = False
            raise base.libvirt_error(libvirt.VIR_ERR_OPERATION_INVALID)

        self.known.delete.side_effect = power_off
        self.snapshot.release()
        self.assertEqual(2, self.qemu_img.call_count)

    def test_guest_started_during_deletion_is_cleaned_by_libvirt(self):
        def start(*_command, **_kwargs):
            self.guest.is_active.return_value = True
            raise processutils.ProcessExecutionError(stderr='locked')

        self.guest.is_active.return_value = False
        self.qemu_img.side_effect = start
        self.snapshot.release()
        self.known.delete.assert_called_once_with()

    def test_remaining_disks_of_deleted_guest_are_cleaned(self):
        self.get_guest.side_effect = nova_exception.InstanceNotFound(
            instance_id='gone')
        self.holders.discard('/i/disk')
        self.snapshot.release()
        [call] = self.qemu_img.mock_calls
        self.assertEqual('/i/disk.eph0', self.path_in(call.args))

    def test_disk_with_an_unexpected_header_is_not_opened(self):
        self.guest.is_active.return_value = False
        self.checked_header.side_effect = exception.UnexpectedHeader(
            path='/i/disk', reason='names a data file')
        reason = self.failed()
        self.assertIn('names a data file', reason)
        self.assertNotIn('run "qemu-img', reason)
        self.qemu_img.assert_not_called()

    def test_snapshot_is_deleted_after_restart_of_libvirtd(self):
        self.get_guest.side_effect = [
            nova_exception.HypervisorUnavailable(), self.guest, self.guest]
        self.snapshot.release()
        self.known.delete.assert_called_once_with()

    def test_libvirtd_that_does_not_come_back_is_an_error(self):
        self.get_guest.side_effect = (
            nova_exception.HypervisorUnavailable())
        reason = self.failed()
        for word in (NAME, '/i/disk', 'virsh resume'):
            self.assertIn(word, reason)

    def halt(self, reason):
        self.guest.state.return_value = (libvirt.VIR_DOMAIN_PAUSED, reason)

    def test_guest_paused_by_io_error_is_resumed_after_deletion(self):
        self.halt(libvirt.VIR_DOMAIN_PAUSED_IOERROR)
        self.guest.resume.side_effect = (
            lambda: self.assertEqual(set(), self.holders))
        self.snapshot.release()
        self.guest.resume.assert_called_once_with()

    def test_guest_is_resumed_although_deletion_failed(self):
        self.known.delete.side_effect = None
        self.halt(libvirt.VIR_DOMAIN_PAUSED_IOERROR)
        self.failed()
        self.guest.resume.assert_called_once_with()

    def test_guest_paused_by_user_stays_paused(self):
        self.halt(libvirt.VIR_DOMAIN_PAUSED_USER)
        self.snapshot.release()
        self.guest.resume.assert_not_called()

    def test_guest_paused_before_snapshot_stays_paused(self):
        self.halt(libvirt.VIR_DOMAIN_PAUSED_SAVE)
        self.snapshot.capture_state(self.guest)
        self.snapshot.create_with_memory(self.guest, ['vda', 'vdb'])
        self.snapshot.release()
        self.guest.resume.assert_not_called()

    def test_failed_resume_is_an_error(self):
        self.halt(libvirt.VIR_DOMAIN_PAUSED_SAVE)
        self.guest.resume.side_effect = base.libvirt_error(
            libvirt.VIR_ERR_OPERATION_TIMEOUT)
        self.assertIn('virsh resume', self.failed())
