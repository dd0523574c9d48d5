# SPDX-License-Identifier: Apache-2.0
"""What a strategy can't do is known before anything is changed.

Each condition is made in a real guest. The strategy has a reason then, and
libvirt or QEMU would indeed refuse.
"""

import contextlib
import os
import re
from unittest import mock
import uuid

import fixtures
import libvirt

from nova_snapext import exception
from nova_snapext.hypervisor import qemu_nbd
from nova_snapext import plan as planning
from nova_snapext import reason as reasons
from nova_snapext.snapshot import selection
from nova_snapext.strategies import cold
from nova_snapext.strategies import external
from nova_snapext.strategies import internal
from tests.functional import base
from tests.functional.strategies import contract

#: Those for disks in files.
GUEST_STRATEGIES = ('backup', 'external', 'internal', 'cold', 'native')


class UnsupportedTest(contract.FreezeAssertions, base.GuestTestCase):

    def setUp(self):
        super().setUp()
        self.strategy = internal.InternalStrategy(self.driver)

    def reasons(self, plan):
        """Return the reason of each strategy, by name."""
        return {name: strategy.unsupported_reason(plan)
                for name, strategy in self.driver.strategies.items()
                if name in GUEST_STRATEGIES}

    def select(self, plan, text):
        return selection.select(
            plan, selection.StrategyRequest.parse(text, 'a test'),
            self.driver.strategies).name

    def created(self, *options):
        path = self.images / f'disk-{uuid.uuid4()}.qcow2'
        base.run('qemu-img', 'create', '-q', '-f', 'qcow2', *options,
                 str(path), str(base.DISK_SIZE))
        return planning.RootDisk('vda', 'file', str(path), 'qcow2')

    def guest_in_qcow2(self, disk, running=True):
        """Define a guest whose other disk can contain a snapshot, too."""
        plan = self.guest(disk, running=False)
        other = self.images / f'{plan.instance.uuid}.other'
        base.run('qemu-img', 'create', '-q', '-f', 'qcow2', str(other), '1M')
        self.redefine(plan, lambda xml: xml.replace("type='raw'",
                                                    "type='qcow2'"))
        if running:
            plan.guest._domain.create()
        return self.plan_of(plan.instance, disk)

    def redefine(self, plan, change):
        domain = plan.guest._domain
        self.host.get_connection().defineXML(change(domain.XMLDesc()))

    def changed_root(self, disk, element):
        """Start a guest whose root disk has another element."""
        plan = self.guest(disk, running=False)
        self.redefine(plan, lambda xml: re.sub(
            r"(<target dev='vda' bus='virtio'/>)", rf'\1<{element}/>', xml))
        plan.guest._domain.create()
        return self.plan_of(plan.instance, disk)

    def test_normal_guest_has_no_reason(self):
        for running in (True, False):
            plan = self.guest_in_qcow2(self.chained_qcow2(), running)
            found = self.reasons(plan)
            expected = set(found) if running else {
                'internal', 'cold', 'native'}
            self.assertEqual(
                expected, {name for name, reason in found.items()
                           if reason is None}, found)

    def test_narrow_reference_counts_are_refused_by_internal(self):
        for running in (True, False):
            disk = self.created('-o', 'refcount_bits=1')
            self.fill(disk, 0x11)
            plan = self.guest_in_qcow2(disk, running)
            reason = self.strategy.unsupported_reason(plan)
            self.assertIn('refcount_bits=1', reason)
            self.assertNotIn('/', reasons.for_users(reason))
            # QEMU refuses it indeed.
            self.freeze_fails(plan, exception.FreezeFailed)
            self.assert_nothing_left(plan)
            self.assertEqual('backup' if running else 'cold', self.select(
                plan, 'internal,backup,cold'))

    def test_reference_counts_limit_the_number_of_snapshots(self):
        disk = self.created('-o', 'refcount_bits=2')
        self.fill(disk, 0x11)
        plan = self.guest_in_qcow2(disk, running=False)
        for name in ('first', 'second'):
            self.assertIsNone(self.strategy.unsupported_reason(plan))
            base.run('qemu-img', 'snapshot', '-c', name, disk.path)
        self.assertIn('2 internal snapshots',
                      self.strategy.unsupported_reason(plan))
        self.freeze_fails(plan, exception.FreezeFailed)

    def test_data_file_is_refused_and_not_left_to_nova(self):
        for running in (True, False):
            data = f'{self.images}/{uuid.uuid4()}.raw'
            disk = self.created('-o', f'data_file={data}')
            # libvirt does not give the file to QEMU's user.
            os.chmod(data, 0o666)
            plan = self.guest_in_qcow2(disk, running)
            found = self.reasons(plan)
            for name in ('internal', 'cold'):
                self.assertIsInstance(found[name], reasons.UnsafeDiskReason)
            # QEMU itself has opened it when the guest started.
            if running:
                self.assertEqual('backup', self.select(
                    plan, 'internal,backup'))
            self.assertRaises(exception.StrategyRefused, self.select, plan,
                              'internal,cold,native')

    def test_corrupt_disk_is_refused_by_internal(self):
        disk = self.qcow2()
        plan = self.guest_in_qcow2(disk, running=False)
        with open(disk.path, 'r+b') as file:
            file.seek(79)
            file.write(b'\2')
        self.assertIn('corrupt', self.strategy.unsupported_reason(plan))

    def test_missing_disk_is_a_reason(self):
        plan = self.guest_in_qcow2(self.qcow2(), running=False)
        os.unlink(plan.disk.path)
        for name in ('internal', 'cold'):
            reason = self.driver.strategies[name].unsupported_reason(plan)
            self.assertIn('No such file', reason)
            self.assertEqual(reasons.HIDDEN, reasons.for_users(reason))

    def test_leftover_overlay_is_refused_before_anything_is_changed(self):
        plan = self.guest(self.qcow2())
        overlay = self.images / plan.instance.uuid / 'disk.snapext'
        overlay.touch()
        found = self.reasons(plan)
        for name in ('external', 'cold'):
            self.assertIn(str(overlay), found[name])
            self.assertEqual(reasons.HIDDEN, reasons.for_users(found[name]))
        self.assertEqual('backup', self.select(plan, 'external,cold,backup'))

    def test_job_of_the_guest_excludes_all_strategies(self):
        plan = self.guest_in_qcow2(self.qcow2())
        with self.driver.strategies['backup'].freeze(plan):
            for name, reason in self.reasons(plan).items():
                self.assertIn("'backup'", reason, name)
                self.assertIn('(backup)', reasons.for_users(reason))
                self.assertNotIn('virsh', reasons.for_users(reason))

    def test_job_of_the_disk_excludes_all_strategies(self):
        plan = self.guest_in_qcow2(self.qcow2())
        copy = self.images / f'copy-{uuid.uuid4()}'
        plan.guest._domain.blockCopy(
            'vda', f"<disk type='file'><source file='{copy}'/>"
                   f"<driver type='raw'/></disk>", {}, libvirt
            .VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB)
        for name, reason in self.reasons(plan).items():
            self.assertIn("'copy'", reason, name)
        # Nova's own snapshot would have aborted it.
        self.assertTrue(plan.guest.block_job_info('vda'))
        with contextlib.ExitStack() as stack:
            self.assertRaises(
                exception.SnapextError, stack.enter_context,
                self.driver.strategies['external'].freeze(plan))
        plan.guest._domain.blockJobAbort('vda')

    def test_transient_domain_is_refused_by_what_changes_its_definition(self):
        plan = self.guest(self.qcow2())
        xml = plan.guest.get_xml_desc(dump_inactive=True)
        plan.guest._domain.undefine()
        found = self.reasons(plan)
        for name in ('external', 'cold'):
            self.assertIn('persistent', found[name])
        self.assertIsNone(found['backup'])
        self.assertEqual('backup', self.select(plan, 'external,backup'))
        self.host.get_connection().defineXML(xml)

    def test_read_only_root_disk_is_refused(self):
        plan = self.changed_root(self.raw(), 'readonly')
        for name in ('external', 'cold', 'internal'):
            self.assertTrue(self.reasons(plan)[name])
        self.assertIn('read-only', self.reasons(plan)['external'])

    def test_shared_root_disk_is_refused(self):
        plan = self.changed_root(self.raw(), 'shareable')
        for strategy in (external.ExternalStrategy, cold.ColdStrategy):
            self.assertIn('shared', strategy(self.driver).unsupported_reason(
                plan))
        # libvirt refuses it indeed.
        self.strategy = external.ExternalStrategy(self.driver)
        self.assertIn('shared', self.freeze_fails(
            plan, exception.FreezeFailed))
        self.assert_nothing_left(plan)

    def test_work_directory_that_can_not_be_created_is_a_reason(self):
        plan = self.guest_in_qcow2(self.qcow2())
        base.conf.CONF.set_override(
            'work_directory', '/dev/null/nova', group='snapext')
        for name, reason in self.reasons(plan).items():
            if name != 'native':
                self.assertIn('/dev/null is not a directory', reason)
                self.assertEqual(reasons.HIDDEN, reasons.for_users(reason))

    def test_libvirt_that_does_not_answer_is_a_reason(self):
        plan = self.guest(self.qcow2())
        with mock.patch.object(
                libvirt.virDomain, 'jobStats',
                side_effect=libvirt.libvirtError('no answer')):
            self.assertIn('no answer', self.reasons(plan)['backup'])


class FailureClassTest(contract.FreezeAssertions, base.GuestTestCase):
    """What a failed freeze says about the guest."""

    def failure(self, plan, name):
        """Return the class of the failure of a strategy."""
        definitions = self.definitions(plan)
        with contextlib.ExitStack() as stack:
            error = self.assertRaises(
                exception.FreezeFailed, stack.enter_context,
                self.driver.strategies[name].freeze(plan))
        self.assert_same(definitions, self.definitions(plan))
        self.assert_nothing_left(plan)
        return type(error)

    def failing(self, owner, name):
        self.useFixture(fixtures.MockPatchObject(
            owner, name, side_effect=libvirt.libvirtError('refused')))

    def test_guest_is_not_touched_if_libvirt_refuses_job_or_snapshot(self):
        self.failing(libvirt.virDomain, 'backupBegin')
        self.failing(libvirt.virDomain, 'snapshotCreateXML')
        plan = self.guest(self.qcow2())
        for name in ('backup', 'external'):
            self.assertIs(exception.FreezeFailed, self.failure(plan, name))

    def test_guest_may_have_stood_still_if_its_memory_is_not_saved(self):
        self.failing(libvirt.virDomain, 'managedSave')
        plan = self.guest(self.qcow2())
        self.assertIs(exception.GuestStoodStill, self.failure(plan, 'cold'))

    def test_guest_that_was_suspended_is_not_touched_again(self):
        self.failing(qemu_nbd, 'serve')
        plan = self.guest(self.qcow2())
        for name in ('cold', 'external'):
            self.assertIs(exception.FreezeFailedForGood,
                          self.failure(plan, name))

    def test_guest_that_is_shut_off_is_not_touched(self):
        self.failing(qemu_nbd, 'serve')
        plan = self.guest(self.qcow2(), running=False)
        self.assertIs(exception.FreezeFailed, self.failure(plan, 'cold'))
