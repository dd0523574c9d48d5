# SPDX-License-Identifier: Apache-2.0

import contextlib
import datetime
import os
import subprocess
import sys
from unittest import mock

import fixtures
import libvirt
from nova import exception as nova_exception
from oslo_concurrency import processutils
from oslo_privsep import daemon

from nova_snapext import exception
from nova_snapext.hypervisor import qemu_nbd
from nova_snapext.hypervisor import qemu_process
from nova_snapext.resources import disk_definition
from nova_snapext import strategies
from nova_snapext.strategies import backup
from nova_snapext.strategies import cold
from nova_snapext.strategies import external
from nova_snapext.strategies import internal
from tests.unit import base

# The base class of the tests replaces it.
KNOWN_DEFECT_REASON = strategies.FreezingStrategy._known_defect_reason

# In a process of its own: eventlet's patches can't be undone.
TIMES_OUT = """
from nova import monkey_patch
monkey_patch.patch(backend='{}')
from nova_snapext.hypervisor import errors
from oslo_concurrency import processutils
try:
    processutils.execute('sleep', '60', timeout=0.1)
except errors.HYPERVISOR_ERRORS as error:
    print(type(error).__name__)
"""


class HypervisorErrorsTest(base.TestCase):

    def test_timeout_of_program_is_included_in_both_modes(self):
        environment = {name: value for name, value in os.environ.items()
                       if name != 'OS_NOVA_DISABLE_EVENTLET_PATCHING'}
        for backend in ('threading', 'eventlet'):
            printed = subprocess.run(
                [sys.executable, '-W', 'ignore', '-c',
                 TIMES_OUT.format(backend)], env=environment, check=True,
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
            [name] = os.listdir(self.directory)
            directory = os.path.join(self.directory, name)
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
</devices></domain>"""


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
</devices></domain>"""


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
