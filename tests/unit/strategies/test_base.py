# SPDX-License-Identifier: Apache-2.0

import contextlib
import dataclasses
import datetime
import glob
import os
import subprocess
import sys
from unittest import mock

import fixtures
import libvirt
from nova.compute import power_state
from nova import exception as nova_exception
from oslo_concurrency import processutils
from oslo_privsep import daemon

from nova_snapext import exception
from nova_snapext.hypervisor import image_header
from nova_snapext.hypervisor import qemu_img
from nova_snapext.hypervisor import qemu_nbd
from nova_snapext.hypervisor import qemu_process
from nova_snapext import reason as reasons
from nova_snapext.resources import disk_definition
from nova_snapext import space
from nova_snapext import strategies
from nova_snapext.strategies import backup
from nova_snapext.strategies import base as strategy_base
from nova_snapext.strategies import cold
from nova_snapext.strategies import external
from nova_snapext.strategies import internal
from tests import concurrency
from tests.unit import base

# The base class of the tests replaces them.
KNOWN_DEFECT_REASON = strategies.FreezingStrategy._known_defect_reason
WORK_DIRECTORY_REASON = strategies.FreezingStrategy._work_directory_reason
CHECK_HEADERS = strategy_base.check_headers

ALL = (backup.BackupStrategy, external.ExternalStrategy,
       internal.InternalStrategy, cold.ColdStrategy)

# In a process of its own: eventlet's patches can't be undone.
TIMES_OUT = """
from nova_snapext.hypervisor import errors
from oslo_concurrency import processutils
try:
    processutils.execute('sleep', '60', timeout=0.1)
except errors.HYPERVISOR_ERRORS as error:
    print(type(error).__name__)
"""


class HypervisorErrorsTest(base.TestCase):

    def test_timeout_of_program_is_included_in_both_modes(self):
        for backend in concurrency.BACKENDS:
            printed = subprocess.run(
                [sys.executable, '-W', 'ignore', '-c',
                 concurrency.beginning(backend) + TIMES_OUT], check=True,
                capture_output=True, text=True).stdout
            self.assertEqual('TimeoutExpired\n', printed)


class PlainStrategy(strategies.FreezingStrategy):
    """Fails to freeze, or exports the disk as it is."""

    name = 'plain'
    error = None
    snapshot = None

    def unsupported_guest_reason(self, plan):
        return None

    def freeze_disk(self, plan, stack):
        directory = self.create_work_directory(plan, stack)
        if self.error is not None:
            raise self.error
        return self.export_disk(
            plan, stack, directory,
            consistency=strategies.Consistency.CRASH, freeze_seconds=0.5,
            frozen_at=datetime.datetime(2020, 1, 1), snapshot=self.snapshot)


class FreezeTestCase(base.TestCase):

    def setUp(self):
        super().setUp()
        self.directory = self.useFixture(fixtures.TempDir()).path
        self.flags(work_directory=self.directory, group='snapext')
        self.strategy = PlainStrategy(mock.MagicMock())
        self.snapshot = self.plan()


class FreezeErrorTest(FreezeTestCase):

    def freeze_fails(self, error, raised):
        self.strategy.error = error
        with contextlib.ExitStack() as stack:
            failed = self.assertRaises(
                raised, stack.enter_context,
                self.strategy.freeze(self.snapshot))
        self.assertEqual([], os.listdir(self.directory))
        self.assertEqual([], os.listdir(self.journal))
        return failed

    def test_error_of_hypervisor_is_a_failed_freeze(self):
        for error in (base.libvirt_error(libvirt.VIR_ERR_OPERATION_FAILED),
                      processutils.ProcessExecutionError(),
                      OSError('libvirt refuses'),
                      daemon.FailedToDropPrivileges('helper exited'),
                      nova_exception.HypervisorUnavailable(),
                      exception.UnexpectedState(reason='no label')):
            failed = self.freeze_fails(error, exception.FreezeFailed)
            for part in (str(error), 'plain', self.snapshot.instance.uuid):
                self.assertIn(part, str(failed))

    def test_bug_is_not_a_failed_freeze(self):
        for error in (ValueError(), KeyError(), TypeError()):
            self.assertIs(error, self.freeze_fails(error, type(error)))

    def test_error_with_its_own_remedy_is_not_changed(self):
        for error in (
                exception.GuestBusy(guest='g', instance='i', job='backup'),
                exception.ThawFailed(guest='g', instance='i', reason='no')):
            self.assertIs(error, self.freeze_fails(error, type(error)))

    def test_error_of_guest_that_is_gone_is_not_changed(self):
        for error in (base.libvirt_error(libvirt.VIR_ERR_NO_DOMAIN),
                      nova_exception.InstanceNotFound(instance_id='i')):
            self.assertIs(error, self.freeze_fails(error, type(error)))


class ExportDiskTest(FreezeTestCase):

    def test_export_is_stopped_and_its_directory_removed(self):
        serve = self.useFixture(fixtures.MockPatchObject(
            qemu_nbd, 'serve')).mock
        serve.return_value.stop.side_effect = (
            lambda: self.assertEqual(1, len(os.listdir(self.directory))))
        self.useFixture(fixtures.MockPatchObject(
            disk_definition, 'live_chain',
            return_value=[self.snapshot.disk.path, '/i/base']))
        self.strategy.snapshot = 'inside'
        with self.strategy.freeze(self.snapshot) as frozen:
            [directory] = glob.glob(f'{self.directory}/*/*')
            self.assertIn(os.path.join(directory, 'nbd'), frozen.uri)
            serve.return_value.stop.assert_not_called()
        serve.assert_called_once_with(
            self.snapshot.disk, ['/i/base'], f'{directory}/nbd',
            f'{directory}/pid',
            self.snapshot.instance.uuid, 'inside')
        serve.return_value.stop.assert_called_once_with()
        self.assertEqual([], os.listdir(self.directory))
        self.assertEqual(
            (strategies.Consistency.CRASH, 0.5,
             datetime.datetime(2020, 1, 1)),
            (frozen.consistency, frozen.freeze_seconds, frozen.frozen_at))


DISKS = """<domain><devices>
<disk type='file' device='disk'>
  <driver name='qemu' type='qcow2'/><source file='/i/disk'/>
  <target dev='vda' bus='virtio'/>
</disk>
<disk type='file' device='disk'>
  <driver name='qemu' type='qcow2'/><source file='/e/disk.eph0'/>
  <target dev='vdb' bus='virtio'/>
</disk>
</devices><seclabel model='dac'><label>+0:+0</label></seclabel></domain>"""


class GrowingPathsTest(base.TestCase):
    """The file systems that need free space while the disk is frozen."""

    def growing_paths(self, strategy, **plan):
        self.flags(instances_path='/instances')
        self.flags(work_directory='/scratch', group='snapext')
        return strategy(mock.MagicMock()).growing_paths(
            self.plan(domain_xml=DISKS, **plan))

    def test_backup_fills_directory_of_scratch_file(self):
        self.assertEqual(('/scratch',),
                         self.growing_paths(backup.BackupStrategy))

    def test_overlay_fills_directory_of_instance(self):
        for strategy in (external.ExternalStrategy, cold.ColdStrategy):
            [path] = self.growing_paths(strategy)
            self.assertEqual('/instances', os.path.dirname(path))

    def test_guest_that_is_shut_off_fills_nothing(self):
        self.assertEqual((), self.growing_paths(
            cold.ColdStrategy, running=False))

    def test_internal_snapshot_fills_all_disks(self):
        self.assertEqual(('/i/disk', '/e/disk.eph0'),
                         self.growing_paths(internal.InternalStrategy))

    def test_strategy_without_growing_paths_has_none(self):
        self.assertEqual((), self.growing_paths(PlainStrategy))


IOTHREAD = """<domain><devices>
<disk type='file' device='disk'>
  <driver name='qemu' type='qcow2' iothread='1'/><source file='/i/disk'/>
  <target dev='vda' bus='virtio'/>
</disk>
</devices><seclabel model='dac'><label>+0:+0</label></seclabel></domain>"""


class KnownDefectTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.useFixture(fixtures.MockPatchObject(
            strategies.FreezingStrategy, '_known_defect_reason',
            KNOWN_DEFECT_REASON))
        for function in ('installed_version', 'libvirt_version'):
            self.useFixture(fixtures.MockPatchObject(
                qemu_process, function, return_value=(99, 0, 0)))
        self.running_version = self.useFixture(fixtures.MockPatchObject(
            qemu_process, 'running_version', return_value=(7, 2, 22))).mock

    def reason(self, strategy, domain_xml=IOTHREAD, **plan):
        return strategy(mock.MagicMock()).unsupported_reason(
            self.plan(domain_xml=domain_xml, **plan))

    def test_strategy_is_refused_with_the_version_and_the_defect(self):
        reason = self.reason(backup.BackupStrategy)
        for text in ('QEMU 7.2.22', 'nbd-iothread', 'QEMU dies'):
            self.assertIn(text, reason)

    def test_unknown_version_is_refused(self):
        self.running_version.return_value = None
        self.assertIn('version is unknown',
                      self.reason(backup.BackupStrategy))

    def test_newer_qemu_is_not_refused(self):
        self.running_version.return_value = (9, 0, 0)
        self.assertIsNone(self.reason(backup.BackupStrategy))

    def test_guest_without_the_condition_is_not_refused(self):
        self.assertIsNone(self.reason(
            backup.BackupStrategy, domain_xml=DISKS))

    def test_next_strategy_is_not_refused(self):
        self.assertIsNone(self.reason(external.ExternalStrategy))

    def test_defect_that_the_operator_says_is_fixed_is_ignored(self):
        self.flags(fixed_defects=['nbd-iothread'], group='snapext')
        self.assertIsNone(self.reason(backup.BackupStrategy))

    def test_guest_that_is_shut_off_is_not_looked_at(self):
        self.assertIsNone(self.reason(cold.ColdStrategy, running=False))
        self.running_version.assert_not_called()

    def test_strategy_without_mechanisms_is_not_looked_at(self):
        self.assertIsNone(self.reason(PlainStrategy))
        self.running_version.assert_not_called()

    def test_strategy_of_another_package_is_refused_by_its_mechanisms(self):
        class TheirStrategy(PlainStrategy):
            mechanisms = frozenset({strategies.Mechanism.BACKUP_JOB})

        self.assertIn('nbd-iothread', self.reason(TheirStrategy))


class UnsupportedReasonTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.strategy = PlainStrategy(mock.MagicMock())

    def reason(self, **plan):
        return self.strategy.unsupported_reason(self.plan(**plan))

    def raising(self, error):
        self.strategy.unsupported_guest_reason = mock.Mock(side_effect=error)

    def test_error_is_a_reason(self):
        for error in (base.libvirt_error(libvirt.VIR_ERR_OPERATION_FAILED),
                      processutils.ProcessExecutionError(),
                      OSError('libvirt refuses'),
                      subprocess.TimeoutExpired('qemu-img', 1),
                      nova_exception.HypervisorUnavailable(),
                      exception.UnexpectedState(reason='no label')):
            self.raising(error)
            reason = self.reason()
            self.assertIn(str(error), reason)
            self.assertEqual(reasons.HIDDEN, reasons.for_users(reason))

    def test_bug_is_no_reason(self):
        for error in (ValueError(), KeyError(), TypeError()):
            self.raising(error)
            self.assertIs(error, self.assertRaises(type(error), self.reason))

    def test_guest_that_is_gone_is_no_reason(self):
        error = base.libvirt_error(libvirt.VIR_ERR_NO_DOMAIN)
        self.raising(error)
        self.assertIs(error, self.assertRaises(type(error), self.reason))

    def test_job_has_a_remedy_for_operators_alone(self):
        self.raising(exception.DiskBusy(
            guest='g', instance='i', disk='vda', job='copy'))
        reason = self.reason()
        self.assertIn('virsh blockjob', reason)
        self.assertNotIn('virsh', reasons.for_users(reason))
        self.assertIn('(copy)', reasons.for_users(reason))

    def test_unexpected_header_keeps_others_from_the_disk(self):
        self.raising(exception.UnexpectedHeader(path='/d', reason='names /x'))
        self.assertIsInstance(self.reason(), reasons.UnsafeDiskReason)

    def test_storage_and_format_are_for_users(self):
        for change in ({'storage': 'nvme'}, {'storage': 'vhostuser'},
                       {'storage': 'network'}, {'format': 'luks'}):
            reason = self.reason(disk=dataclasses.replace(
                base.QCOW2, **change))
            [value] = change.values()
            self.assertIn(value, reasons.for_users(reason))

    def test_lack_of_space_is_a_reason(self):
        self.strategy.growing_paths = lambda _plan: (self.journal,)
        self.assertIsNone(self.reason())
        self.flags(min_free_disk_mb=10 ** 9, group='snapext')
        reason = self.reason()
        self.assertIn(self.journal, reason)
        self.assertEqual('the host has not enough free space',
                         reasons.for_users(reason))
        self.assertIsInstance(reason, reasons.NoSpaceReason)

    def test_strategy_that_needs_no_space_is_not_refused(self):
        self.flags(min_free_disk_mb=10 ** 9, group='snapext')
        self.assertIsNone(self.reason())

    def test_work_directory_that_can_not_be_used_is_a_reason(self):
        self.useFixture(fixtures.MockPatchObject(
            strategies.FreezingStrategy, '_work_directory_reason',
            WORK_DIRECTORY_REASON))
        directory = self.useFixture(fixtures.TempDir(rootdir='/tmp')).path
        self.flags(work_directory=f'{directory}/new', group='snapext')
        self.assertIsNone(self.reason())
        with mock.patch('os.access', return_value=False):
            self.assertIn(f'{directory} is not a directory', self.reason())
        self.flags(work_directory=f'{directory}/{"long" * 40}',
                   group='snapext')
        self.assertIn('Unix socket', self.reason())

    def test_missing_disk_is_an_error(self):
        self.assertRaises(FileNotFoundError, CHECK_HEADERS,
                          self.plan(running=False))


ROOT_DISK = """<domain><devices>
<disk type='file' device='disk'>
  <driver name='qemu' type='qcow2'/><source file='/i/disk'/>
  <target dev='vda' bus='virtio'/>{}
</disk>
{}</devices>{}<seclabel model='dac'><label>{}</label></seclabel></domain>"""


class KnownBeforehandTest(base.TestCase):
    """What libvirt or QEMU would refuse."""

    def setUp(self):
        super().setUp()
        self.checked = self.useFixture(fixtures.MockPatchObject(
            image_header, 'checked_header')).mock
        self.checked.return_value = image_header.Header(
            None, None, 0, None, 0, 0)
        self.useFixture(fixtures.MockPatchObject(
            space, 'free_bytes', return_value=1 << 40))

    def reason(self, strategy, state=None, disk='', device='', security='',
               label='+0:+0', **plan):
        plan = self.plan(domain_xml=ROOT_DISK.format(
            disk, device, security, label), **plan)
        plan.guest.memory_size.return_value = 1
        plan.guest.get_power_state.return_value = state
        self.guest = plan.guest
        return strategy(mock.MagicMock()).unsupported_reason(plan)

    def assert_refused(self, strategy, text, **kwargs):
        reason = self.reason(strategy, **kwargs)
        self.assertIn(text, reason)
        self.assertIn(text, reasons.for_users(reason))

    def test_normal_guest_is_supported(self):
        for strategy in ALL:
            self.assertIsNone(self.reason(strategy))

    def test_state_without_snapshot_is_refused(self):
        for state, text in ((power_state.SUSPENDED, 'suspended'),
                            (power_state.SHUTDOWN, 'being shut down')):
            for strategy in (external.ExternalStrategy, cold.ColdStrategy,
                             internal.InternalStrategy):
                self.assert_refused(strategy, text, state=state)
            self.assertIsNone(self.reason(backup.BackupStrategy, state=state))

    def test_memory_of_a_crashed_guest_is_not_saved(self):
        for strategy in (cold.ColdStrategy, internal.InternalStrategy):
            self.assert_refused(strategy, 'crashed', state=power_state.CRASHED)

    def test_attributes_of_the_root_disk_are_refused(self):
        for element, text in (('readonly', 'read-only'),
                              ('shareable', 'shared'),
                              ('transient', 'transient')):
            for strategy in (external.ExternalStrategy, cold.ColdStrategy,
                             internal.InternalStrategy):
                self.assert_refused(strategy, text, disk=f'<{element}/>')

    def test_job_does_not_see_the_writes_of_other_guests(self):
        self.assert_refused(
            backup.BackupStrategy, 'shared', disk='<shareable/>')

    def test_memory_without_space_is_not_saved(self):
        self.flags(libvirt_save_directory='/save', group='snapext')
        space.free_bytes.side_effect = lambda path: (
            0 if path == '/save' else 1 << 40)
        self.assertIn('/save', self.reason(cold.ColdStrategy))
        self.assertIsNone(self.reason(cold.ColdStrategy, running=False))
        self.assertIsNone(self.reason(backup.BackupStrategy))

    def test_attributes_of_a_disk_that_is_only_read_do_not_matter(self):
        for element in ('readonly', 'shareable'):
            self.assertIsNone(self.reason(
                cold.ColdStrategy, disk=f'<{element}/>', running=False))

    def test_memory_that_can_not_be_saved_is_refused(self):
        for name, element in (
                ('security', '<launchSecurity type="sev"/>'),
                ('device', '<filesystem><driver type="virtiofs"/>'
                           '</filesystem>'),
                ('device', '<shmem name="s"/>'),
                ('device', '<disk type="file"><driver type="qcow2"/>'
                           '<source file="/e"/><target dev="vdb"/>'
                           '<transient/></disk>'),
                ('device', '<hostdev mode="subsystem" type="usb"/>')):
            for strategy in ALL:
                kwargs = {name: element}
                if strategy in (cold.ColdStrategy, internal.InternalStrategy):
                    reason = self.reason(strategy, **kwargs)
                    self.assertIn('memory', reason)
                    self.assertEqual(reason, reasons.for_users(reason))
                    self.assertIsNone(self.reason(
                        cold.ColdStrategy, running=False, **kwargs))
                else:
                    self.assertIsNone(self.reason(strategy, **kwargs))

    def test_guest_without_persistent_definition_is_refused(self):
        for strategy in (external.ExternalStrategy, cold.ColdStrategy):
            with mock.patch.object(base, 'fake_guest', self.transient_guest):
                reason = self.reason(strategy)
            self.assertIn('persistent', reason)

    @staticmethod
    def transient_guest(running, create=base.fake_guest):
        guest = create(running)
        guest.has_persistent_configuration.return_value = False
        return guest

    def test_user_of_qemu_that_nobody_knows_is_refused(self):
        for label in ('', 'nobody-knows-me:nogroup', 'root:no-such-group'):
            reason = self.reason(backup.BackupStrategy, label=label)
            self.assertEqual(reasons.HIDDEN, reasons.for_users(reason))

    def test_header_of_a_disk_is_checked_before_qemu_nbd_opens_it(self):
        error = exception.UnexpectedHeader(path='/d', reason='names /secret')
        check = mock.Mock(side_effect=error)
        with mock.patch.object(strategy_base, 'check_headers', check), \
                mock.patch('nova_snapext.resources.overlay.Overlay.check',
                           check):
            for strategy, running in ((cold.ColdStrategy, False),
                                      (cold.ColdStrategy, True),
                                      (external.ExternalStrategy, True),
                                      (internal.InternalStrategy, False),
                                      (internal.InternalStrategy, True)):
                self.assertIsInstance(
                    self.reason(strategy, running=running),
                    reasons.UnsafeDiskReason)

    def header(self, **changes):
        self.checked.return_value = dataclasses.replace(
            self.checked.return_value, **changes)

    def test_qcow2_that_can_not_contain_a_snapshot_is_refused(self):
        for bits, snapshots in ((1, 0), (2, 2), (4, 14)):
            self.header(refcount_bits=bits, snapshots=snapshots)
            for running in (True, False):
                reason = self.reason(internal.InternalStrategy,
                                     running=running)
                self.assertIn(f'refcount_bits={bits}', reason)
                self.assertNotIn('/', reasons.for_users(reason))

    def test_qcow2_that_can_contain_another_snapshot_is_supported(self):
        with mock.patch.object(qemu_img, 'holds_snapshot',
                               return_value=False):
            for bits, snapshots in ((2, 0), (2, 1), (4, 13), (16, 100),
                                    (64, 100)):
                self.header(refcount_bits=bits, snapshots=snapshots)
                self.assertIsNone(self.reason(internal.InternalStrategy))

    def test_every_disk_has_to_be_able_to_contain_a_snapshot(self):
        self.checked.side_effect = lambda path: dataclasses.replace(
            self.checked.return_value,
            refcount_bits=1 if path == '/e/disk' else 16)
        self.assertIn('/e/disk has refcount_bits=1', self.reason(
            internal.InternalStrategy, device='<disk type="file">'
            '<driver type="qcow2"/><source file="/e/disk"/>'
            '<target dev="vdb"/></disk>'))

    def test_corrupt_disk_is_refused(self):
        self.header(features=image_header.CORRUPT)
        self.assertIn('corrupt', self.reason(internal.InternalStrategy))

    def test_snapshot_of_the_same_name_is_refused(self):
        self.header(snapshots=1)
        with mock.patch.object(qemu_img, 'holds_snapshot', return_value=True):
            self.assertIn(f'snapext-{base.IMAGE_ID}', self.reason(
                internal.InternalStrategy))


class FailureClassTest(FreezeTestCase):
    """The class of a failure says what the guest noticed."""

    def failure(self, failure, error):
        def fail():
            with self.strategy.failing_as(failure, self.snapshot):
                raise error

        return self.assertRaises(exception.SnapextError, fail)

    def test_failure_has_the_class_that_the_strategy_says(self):
        for failure in (exception.FreezeFailed, exception.GuestStoodStill,
                        exception.FreezeFailedForGood):
            self.assertIs(failure, type(self.failure(failure, OSError())))

    def test_class_of_the_innermost_context_counts(self):
        inner = self.failure(exception.GuestStoodStill, OSError())
        self.assertIs(inner, self.failure(exception.FreezeFailed, inner))

    def test_disk_that_must_not_be_opened_fails_for_good(self):
        self.assertIs(exception.FreezeFailedForGood, type(self.failure(
            exception.FreezeFailed,
            exception.UnexpectedHeader(path='/d', reason='r'))))
