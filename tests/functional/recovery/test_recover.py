# SPDX-License-Identifier: Apache-2.0
"""Recovery after nova-compute died during a snapshot."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
from unittest import mock

from devcloud import wait
import libvirt
from lxml import etree
from nova import exception as nova_exception
from oslo_config import fixture as config_fixture

from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.hypervisor import block_commit
from nova_snapext.hypervisor import qemu_img
from nova_snapext.hypervisor import write_limit
from nova_snapext import journal
from nova_snapext.recovery import recover
from nova_snapext.resources import disk_definition
from nova_snapext.resources import managed_save
from nova_snapext.resources import overlay
from nova_snapext.resources import overlay_files
from nova_snapext.resources import overlay_merge
from nova_snapext.strategies import backup
from nova_snapext.strategies import cold
from nova_snapext.strategies import external
from nova_snapext.strategies import internal
from tests.functional import base
from tests.functional.strategies import contract

BEFORE, AFTER, LATER, LATEST = contract.BEFORE, contract.AFTER, 0x44, 0x55


class Killed(BaseException):
    """Stands for SIGKILL: nothing runs after it."""


@contextlib.contextmanager
def killed():
    """Skip everything that a snapshot does when it is left."""
    with mock.patch.object(journal.ReleaseStack, '__exit__',
                           lambda *_args: None), \
            mock.patch.object(journal.JournalEntry, 'close'), \
            contextlib.suppress(Killed):
        yield


def killed_after(target, name):
    """Kill the process when a function has returned."""
    original = getattr(target, name)

    def function(*args, **kwargs):
        original(*args, **kwargs)
        raise Killed()

    return mock.patch.object(target, name, function)


def killed_before(target, name):
    """Kill the process when a function is called."""
    return mock.patch.object(target, name, side_effect=Killed)


class RecoveryTestCase(contract.FreezeAssertions, base.GuestTestCase):

    def leave(self, strategy, plan):
        """Take a snapshot, and die while the disk is frozen."""
        with killed(), strategy(self.driver).freeze(plan):
            pass

    def overlay_of(self, plan):
        return self.images / plan.instance.uuid / 'disk.snapext'

    def live_chain(self, plan):
        return [source.get('file') for source in etree.fromstring(
            plan.guest.get_xml_desc()).find('./devices/disk').iter('source')]

    def assert_recovers(self, plan, before):
        self.recover(plan)
        plan = self.plan_of(plan.instance, plan.disk)
        self.assert_same(before, self.definitions(plan))
        self.assert_nothing_left(plan)
        self.assertEqual([], qemu_nbds(plan.disk.path))

    def assert_recovers_running(self, plan, before, pattern=AFTER):
        self.assert_recovers(plan, before)
        guest = self.host.get_guest(plan.instance)
        self.assertEqual(libvirt.VIR_DOMAIN_RUNNING, guest._domain.state()[0])
        guest.poweroff()
        self.assert_holds(plan.disk, pattern)

    def fails(self, plan, *parts):
        """Check that the recovery fails; return its error."""
        error = self.assertRaises(exception.NotRecovered, self.recover, plan)
        for part in (plan.instance.uuid, *parts):
            self.assertIn(part, str(error))
        return error


def qemu_nbds(path):
    """Return the process ids of the qemu-nbd that export a disk."""
    found = subprocess.run(('pgrep', '-af', 'qemu-nbd'), capture_output=True,
                           text=True).stdout
    return [int(line.split()[0]) for line in found.splitlines()
            if path in line]


def end_qemu_nbds(path):
    """End the exports of a disk, as the end of their host does."""
    for pid in qemu_nbds(path):
        os.kill(pid, signal.SIGTERM)


class EveryStrategyTest(RecoveryTestCase):

    def test_recovered_guest_is_as_before_and_keeps_its_writes(self):
        for strategy in (backup.BackupStrategy, external.ExternalStrategy,
                         internal.InternalStrategy, cold.ColdStrategy):
            with self.subTest(strategy.name):
                disk = self.qcow2()
                self.fill(disk, BEFORE)
                plan = self.guest(disk)
                if strategy is internal.InternalStrategy:
                    self.detach_other_disk(plan)
                before = self.definitions(plan)
                self.leave(strategy, plan)
                self.write_as_guest(plan, AFTER)
                self.assert_recovers_running(plan, before)

    def detach_other_disk(self, plan):
        """Detach the raw disk, which can't have an internal snapshot."""
        plan.guest.poweroff()
        disk = etree.fromstring(plan.guest.get_xml_desc()).findall(
            './devices/disk')[1]
        plan.guest._domain.detachDeviceFlags(
            etree.tostring(disk, encoding='unicode'),
            libvirt.VIR_DOMAIN_AFFECT_CONFIG)
        plan.guest.launch()

    def test_recovered_guest_on_a_raw_disk_keeps_its_writes(self):
        for strategy in (backup.BackupStrategy, external.ExternalStrategy,
                         cold.ColdStrategy):
            with self.subTest(strategy.name):
                disk = self.raw()
                self.fill(disk, BEFORE)
                plan = self.guest(disk)
                before = self.definitions(plan)
                self.leave(strategy, plan)
                self.write_as_guest(plan, AFTER)
                self.assert_recovers_running(plan, before)

    def test_guest_powered_off_during_the_snapshot_keeps_its_writes(self):
        for strategy in (backup.BackupStrategy, external.ExternalStrategy,
                         cold.ColdStrategy):
            with self.subTest(strategy.name):
                disk = self.qcow2()
                self.fill(disk, BEFORE)
                plan = self.guest(disk)
                before = self.definitions(plan)[1]
                self.leave(strategy, plan)
                self.write_as_guest(plan, AFTER)
                plan.guest.poweroff()
                self.recover(plan)
                self.assertEqual(before, self.definitions(plan)[1])
                self.assert_nothing_left(plan)
                self.assert_holds(disk, AFTER)

    def test_qemu_nbd_of_a_shut_off_guest_is_stopped(self):
        plan = self.guest(self.qcow2(), running=False)
        self.leave(cold.ColdStrategy, plan)
        self.assertEqual(1, len(qemu_nbds(plan.disk.path)))
        self.recover(plan)
        self.assertEqual([], qemu_nbds(plan.disk.path))
        self.assert_nothing_left(plan)

    def test_nothing_is_left_of_a_deleted_guest(self):
        for strategy in (backup.BackupStrategy, external.ExternalStrategy):
            with self.subTest(strategy.name):
                plan = self.guest(self.qcow2())
                self.leave(strategy, plan)
                xml = plan.guest.get_xml_desc(dump_inactive=True)
                plan.guest.poweroff()
                plan.guest._domain.undefine()
                shutil.rmtree(self.overlay_of(plan).parent)
                self.recover(plan)
                self.assertEqual([], os.listdir(self.journal))
                self.assertEqual([], list(self.freezes.iterdir()))
                self.host.get_connection().defineXML(xml)  # for the clean-up

    def test_guest_paused_by_io_error_is_resumed(self):
        plan = self.guest(self.qcow2())
        before = self.definitions(plan)
        self.leave(backup.BackupStrategy, plan)
        real = plan.guest._domain.state

        # As on a full file system, which the cloud's tests have.
        plan.guest.pause()
        with mock.patch.object(
                libvirt.virDomain, 'state', autospec=True,
                side_effect=lambda domain, *_: [
                    real()[0], libvirt.VIR_DOMAIN_PAUSED_IOERROR]):
            self.recover(plan)
        self.assert_same(before, self.definitions(plan))
        self.assertEqual(libvirt.VIR_DOMAIN_RUNNING,
                         plan.guest._domain.state()[0])


class NextSnapshotTest(RecoveryTestCase):

    def test_next_snapshot_recovers_the_interrupted_one_first(self):
        plan = self.guest(self.qcow2())
        before = self.definitions(plan)
        self.leave(external.ExternalStrategy, plan)
        self.assertRaises(exception.SnapshotInProgress, self.leave,
                          external.ExternalStrategy, plan)
        self.write_as_guest(plan, AFTER)
        recover.ensure_recovered(self.driver, None, plan.instance)
        with external.ExternalStrategy(self.driver).freeze(plan) as frozen:
            self.assertEqual({AFTER}, self.content(frozen))
        self.assert_same(before, self.definitions(plan))
        self.assert_nothing_left(plan)


class CommitTest(RecoveryTestCase):
    """The process dies while it merges the overlay."""

    def die_in_merge(self, kill, strategy=external.ExternalStrategy,
                     disk=None):
        """Take a snapshot, write as the guest, and die in the merge."""
        disk = disk or self.qcow2()
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        self.before = self.definitions(plan)
        self.leave(strategy, plan)
        self.write_as_guest(plan, AFTER)
        with kill, contextlib.suppress(Killed):
            self.recover(plan)
        return plan

    BEFORE_PIVOT = (
        lambda: killed_before(block_commit.ActiveCommit, '_begin'),
        lambda: killed_after(block_commit.ActiveCommit, '_begin'),
        lambda: killed_before(write_limit.WriteLimit, 'pause'),
    )
    # The guest is paused, and writes nothing.
    PAUSED = (
        lambda: killed_after(write_limit.WriteLimit, 'pause'),
        lambda: killed_before(overlay_merge.OverlayMerge, '_before_pivot'),
        lambda: killed_after(overlay_merge.OverlayMerge, '_before_pivot'),
        lambda: killed_after(block_commit.ActiveCommit, '_pivot'),
        lambda: killed_after(block_commit.ActiveCommit, 'run'),
        lambda: killed_before(overlay_files.OverlayFiles, 'remove_overlay'),
        lambda: killed_after(overlay_files.OverlayFiles, 'remove_overlay'),
    )
    REMOVED = (
        lambda: killed_before(disk_definition, 'move_persistent'),
        lambda: killed_before(overlay_files.OverlayFiles, 'remove_fence'),
        lambda: killed_after(overlay_files.OverlayFiles, 'remove_fence'),
    )
    # Of a guest that must not be paused. Here nobody can tell afterwards
    # where a guest that has ended wrote last.
    NOT_PAUSED = (
        lambda: killed_before(overlay_merge.OverlayMerge, '_before_pivot'),
        lambda: killed_after(overlay_merge.OverlayMerge, '_before_pivot'),
        lambda: killed_after(block_commit.ActiveCommit, '_pivot'),
        lambda: killed_after(block_commit.ActiveCommit, 'run'),
        lambda: killed_before(overlay_files.OverlayFiles, 'remove_overlay'),
    )

    def never_pause(self):
        """Forbid to slow guests down, and to pause them."""
        self.useFixture(config_fixture.Config(conf.CONF)).config(
            merge_min_write_kbps=0, group='snapext')

    def test_running_guest_keeps_its_writes_after_each_point(self):
        for number, kill in enumerate((*self.BEFORE_PIVOT, *self.REMOVED)):
            with self.subTest(number):
                plan = self.die_in_merge(kill())
                self.write_as_guest(plan, LATER)
                self.assert_recovers_running(plan, self.before, LATER)

    def test_guest_that_was_paused_for_the_pivot_is_resumed(self):
        for number, kill in enumerate(self.PAUSED):
            with self.subTest(number):
                plan = self.die_in_merge(kill())
                self.assertEqual(libvirt.VIR_DOMAIN_PAUSED,
                                 plan.guest._domain.state()[0])
                self.assert_recovers_running(plan, self.before)

    def test_guest_stays_paused_until_a_second_recovery_ends(self):
        for number, kill in enumerate(self.PAUSED[3:-1]):
            with self.subTest(number):
                plan = self.die_in_merge(kill())
                with killed_before(overlay_files.OverlayFiles,
                                   'remove_overlay'), \
                        contextlib.suppress(Killed):
                    self.recover(plan)
                self.assertEqual(libvirt.VIR_DOMAIN_PAUSED,
                                 plan.guest._domain.state()[0])
                self.assert_recovers_running(plan, self.before)

    def test_guest_that_is_not_in_the_journal_is_never_paused(self):
        disk = self.qcow2()
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        self.before = self.definitions(plan)
        self.leave(external.ExternalStrategy, plan)
        end_qemu_nbds(plan.disk.path)
        os.unlink(journal.find(plan.instance.uuid).path)
        with mock.patch.object(libvirt.virDomain, 'suspend') as suspend:
            recover.ensure_recovered(self.driver, None, plan.instance)
        suspend.assert_not_called()
        self.assert_same(self.before, self.definitions(plan))
        self.assertFalse(self.overlay_of(plan).exists())

    def test_guest_that_was_resumed_by_hand_and_ended_keeps_both(self):
        for number, kill in enumerate(self.PAUSED[3:-1]):
            with self.subTest(number):
                plan = self.die_in_merge(kill())
                self.wait_for_pivot(plan)
                plan.guest._domain.resume()
                self.write_as_guest(plan, LATER)
                self.cut_power(plan)
                self.assert_keeps_both(plan)

    def wait_for_pivot(self, plan):
        wait.until('the pivot', lambda: str(self.overlay_of(plan))
                   not in self.live_chain(plan), 30)

    def test_guest_without_power_while_it_is_paused_is_recovered(self):
        for number, kill in enumerate(self.PAUSED):
            with self.subTest(number):
                plan = self.die_in_merge(kill())
                self.cut_power(plan)
                self.assert_recovers_shut_off(plan, AFTER)

    def test_guest_that_is_never_paused_keeps_its_writes(self):
        self.never_pause()
        for number, kill in enumerate(self.NOT_PAUSED):
            with self.subTest(number):
                plan = self.die_in_merge(kill())
                self.write_as_guest(plan, LATER)
                self.assert_recovers_running(plan, self.before, LATER)

    def test_guest_without_power_keeps_its_writes_after_each_point(self):
        for number, kill in enumerate((*self.BEFORE_PIVOT, *self.REMOVED)):
            with self.subTest(number):
                plan = self.die_in_merge(kill())
                self.write_as_guest(plan, LATER)
                self.cut_power(plan)
                self.assert_recovers_shut_off(plan, LATER)

    def assert_recovers_shut_off(self, plan, pattern):
        self.recover(plan)
        plan = self.plan_of(plan.instance, plan.disk)
        self.assertEqual(self.before[1], self.definitions(plan)[1])
        self.assert_nothing_left(plan)
        self.assert_holds(plan.disk, pattern)

    def test_guest_without_power_at_pivot_is_recovered_if_all_is_same(self):
        self.never_pause()
        for number, kill in enumerate(self.NOT_PAUSED):
            with self.subTest(number):
                plan = self.die_in_merge(kill())
                self.cut_power(plan)
                self.assert_recovers_shut_off(plan, AFTER)

    def test_guest_without_power_at_pivot_keeps_both_if_they_differ(self):
        self.never_pause()
        # Before, the commit may still copy what the guest writes.
        for number, kill in enumerate(self.NOT_PAUSED[-2:]):
            with self.subTest(number):
                plan = self.die_in_merge(kill())
                self.write_as_guest(plan, LATER)
                self.cut_power(plan)
                self.assert_keeps_both(plan)

    def assert_keeps_both(self, plan, older=AFTER, newer=LATER):
        """Check that nothing is touched, and that the remedies work."""
        error = self.fails(plan, 'only one of them has the newest',
                           str(self.overlay_of(plan)), plan.disk.path)
        self.assertTrue(error.blocks_start)
        held = {pattern for pattern in (older, newer)
                for image in (plan.disk, self.overlay_disk(plan))
                if self.holds(image, pattern)}
        self.assertEqual({older, newer}, held)
        if self.holds(plan.disk, newer):
            os.rename(self.overlay_of(plan), self.images / 'kept')
        else:
            base.run('qemu-img', 'commit', '-q', '-f', 'qcow2',
                     str(self.overlay_of(plan)))
        self.assert_recovers_shut_off(plan, newer)

    def test_running_guest_whose_overlay_was_removed_keeps_its_writes(self):
        plan = self.die_in_merge(killed_before(
            block_commit.ActiveCommit, '_begin'))
        self.overlay_of(plan).unlink()
        self.assert_recovers_running(plan, self.before)

    def test_guest_that_is_off_is_not_started_without_its_overlay(self):
        plan = self.die_in_merge(killed_before(
            block_commit.ActiveCommit, '_begin'))
        plan.guest.poweroff()
        kept = self.images / 'kept'
        os.rename(self.overlay_of(plan), kept)
        error = self.fails(plan, f'{self.overlay_of(plan)} is missing')
        self.assertTrue(error.blocks_start)
        # Also if the journal is lost.
        entry = journal.find(plan.instance.uuid)
        os.unlink(entry.path)
        self.assertRaises(exception.NotRecovered, recover.ensure_recovered,
                          self.driver, None, plan.instance)
        entry.write()
        os.rename(kept, self.overlay_of(plan))
        self.assert_recovers_shut_off(plan, AFTER)

    def overlay_disk(self, plan):
        return base.planning.RootDisk(
            'vda', 'file', str(self.overlay_of(plan)), 'qcow2')

    def holds(self, disk, pattern):
        try:
            self.assert_holds(disk, pattern)
        except (AssertionError, subprocess.CalledProcessError):
            return False
        return True

    def cut_power(self, plan):
        """Kill QEMU and libvirtd together, and start libvirtd again."""
        [qemu] = [identity for name, identity
                  in self.libvirtd.guests().items()
                  if name == plan.instance.name]
        self.libvirtd.kill()
        qemu.signal(signal.SIGKILL)
        wait.until('end of QEMU', lambda: not qemu.is_alive(), 30)
        self.libvirtd.start()
        self.reconnect()

    def reconnect(self):
        with contextlib.suppress(nova_exception.HypervisorUnavailable):
            self.host.get_connection()

    def test_guest_restarted_on_its_disk_keeps_its_writes(self):
        for kill in self.REMOVED:
            plan = self.die_in_merge(kill())
            self.write_as_guest(plan, LATER)
            plan.guest.poweroff()
            plan.guest.launch()
            self.assert_recovers_running(plan, self.before, LATER)

    def test_pivot_that_did_not_happen_keeps_what_the_guest_wrote(self):
        self.never_pause()
        plan = self.die_in_merge(killed_after(
            overlay_merge.OverlayMerge, '_before_pivot'))
        self.write_as_guest(plan, LATER)
        plan.guest.poweroff()
        # As an operator does who does not know of the overlay.
        self.host.get_connection().defineXML(self.before[1])
        plan.guest.launch()
        self.write_as_guest(plan, LATEST)
        error = self.fails(plan, 'Do not commit it')
        self.assertTrue(error.blocks_start)
        plan.guest.poweroff()
        self.assert_keeps_both(plan, LATER, LATEST)

    def test_interrupted_commit_by_qemu_img_is_finished(self):
        for kill in (killed_before(qemu_img, 'commit'),
                     killed_after(qemu_img, 'commit'),
                     killed_before(disk_definition, 'move_persistent'),
                     killed_before(overlay_files.OverlayFiles,
                                   'remove_overlay'),
                     killed_before(overlay_files.OverlayFiles,
                                   'remove_fence')):
            disk = self.qcow2()
            self.fill(disk, BEFORE)
            plan = self.guest(disk)
            before = self.definitions(plan)[1]
            self.leave(external.ExternalStrategy, plan)
            self.write_as_guest(plan, AFTER)
            plan.guest.poweroff()
            with kill, contextlib.suppress(Killed):
                self.recover(plan)
            self.recover(plan)
            self.assertEqual(before, self.definitions(plan)[1])
            self.assert_nothing_left(plan)
            self.assert_holds(disk, AFTER)


class MovedTest(RecoveryTestCase):
    """Somebody moves the disk of the guest, with virsh."""

    def leave_overlay(self, disk):
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        self.before = self.definitions(plan)
        self.leave(external.ExternalStrategy, plan)
        self.write_as_guest(plan, AFTER)
        return plan

    def virsh(self, command):
        ended = subprocess.run(
            ('virsh', '-c', conf.CONF.libvirt.connection_uri,
             *command.split()), capture_output=True, text=True)
        self.assertEqual(0, ended.returncode, ended.stderr)

    def follow(self, plan, error):
        """Do what an error says."""
        for command in re.findall(r'"virsh (blockcopy .*?)"', error):
            self.virsh(command)
        for command in re.findall(r'"(qemu-img convert -n .*?)"', error):
            base.run(*command.replace('FORMAT', 'qcow2').split())
        with contextlib.suppress(exception.NotRecovered):
            self.recover(plan)
        for path in self.overlay_of(plan).parent.glob('disk.snapext*'):
            path.rename(self.images / f'kept-{path.name}')
        if journal.find(plan.instance.uuid):
            self.recover(plan)
        self.assert_nothing_left(plan)

    def copy(self, plan):
        copy = self.images / f'{plan.instance.uuid}.copy'
        self.virsh(f'blockcopy {plan.instance.name} vda {copy} --format qcow2 '
                   f'--transient-job --wait --pivot')
        return copy

    def zero_half(self, plan):
        """Write as the guest: zeros, and other data."""
        self.write_as_guest(plan, LATER)
        self.run_as_guest(plan, f'write -z 0 {base.DISK_SIZE // 2}')

    def assert_half_zero(self, plan):
        if plan.guest.is_active():
            plan.guest.poweroff()
        half = base.DISK_SIZE // 2
        output = base.run('qemu-io', '-r', '-f', plan.disk.format, '-c',
                          f'read -P 0 0 {half}', '-c',
                          f'read -P {LATER} {half} {half}', plan.disk.path)
        self.assertNotIn('verification failed', output)
        self.assertEqual(self.before[1], self.definitions(plan)[1])

    def test_guest_on_a_copy_is_moved_back(self):
        for disk in (self.chained_qcow2(), self.raw()):
            plan = self.leave_overlay(disk)
            copy = self.copy(plan)
            self.zero_half(plan)
            error = str(self.fails(plan, str(copy)))
            self.assertNotIn('All data is in', error)
            self.follow(plan, error)
            self.assert_half_zero(plan)

    def test_guest_that_is_off_on_a_copy_is_moved_back(self):
        for disk in (self.chained_qcow2(), self.raw()):
            plan = self.leave_overlay(disk)
            copy = self.copy(plan)
            self.zero_half(plan)
            plan.guest.poweroff()
            error = str(self.fails(plan, str(copy), 'virsh edit'))
            # As by virsh edit.
            self.host.get_connection().defineXML(self.before[1])
            self.follow(plan, error)
            self.assert_half_zero(plan)

    def test_guest_on_a_pulled_overlay_is_moved_back(self):
        for disk in (self.chained_qcow2(), self.raw()):
            plan = self.leave_overlay(disk)
            self.zero_half(plan)
            self.virsh(f'blockpull {plan.instance.name} vda --wait')
            self.follow(plan, str(self.fails(plan, 'the whole disk now')))
            self.assert_half_zero(plan)

    def test_pulled_overlay_of_a_guest_that_is_off_is_copied(self):
        for disk in (self.chained_qcow2(), self.raw()):
            plan = self.leave_overlay(disk)
            self.zero_half(plan)
            self.virsh(f'blockpull {plan.instance.name} vda --wait')
            plan.guest.poweroff()
            self.follow(plan, str(self.fails(plan, 'the whole disk now')))
            self.assert_half_zero(plan)


class SuspendedTest(RecoveryTestCase):
    """The process dies while the guest is suspended for the freeze."""

    def test_running_guest_is_resumed_from_its_memory_after_each_point(self):
        for owner, name in ((overlay.Overlay, 'switch_suspended'),
                            (disk_definition, 'move_saved_memory'),
                            (disk_definition, 'move_persistent')):
            for kill in (killed_before, killed_after):
                with self.subTest(f'{name} {kill.__name__}'):
                    disk = self.qcow2()
                    self.fill(disk, BEFORE)
                    plan = self.guest(disk)
                    self.write_as_guest(plan, AFTER)
                    before = self.definitions(plan)
                    with kill(owner, name), \
                            mock.patch.object(managed_save.ManagedSave,
                                              'resume_on_disk'):
                        self.leave(cold.ColdStrategy, plan)
                    self.assert_recovers(plan, before)
                    guest = self.host.get_guest(plan.instance)
                    self.assertEqual(
                        [libvirt.VIR_DOMAIN_RUNNING,
                         libvirt.VIR_DOMAIN_RUNNING_RESTORED],
                        guest._domain.state())
                    guest.poweroff()
                    self.assert_holds(disk, AFTER)

    def test_paused_guest_is_resumed_as_paused(self):
        plan = self.guest(self.qcow2())
        plan.guest.pause()
        before = self.definitions(plan)
        with killed_before(overlay.Overlay, 'switch_suspended'), \
                mock.patch.object(managed_save.ManagedSave, 'resume_on_disk'):
            self.leave(cold.ColdStrategy, plan)
        self.assert_recovers(plan, before)
        self.assertEqual(libvirt.VIR_DOMAIN_PAUSED, self.host.get_guest(
            plan.instance)._domain.state()[0])


class FoundOverlayTest(RecoveryTestCase):
    """An overlay that is not in the journal of this host."""

    def left(self):
        disk = self.instance_disk()
        plan = self.guest(disk)
        target = self.images / plan.instance.uuid / 'disk'
        plan.guest.poweroff()
        os.rename(disk.path, target)
        xml = plan.guest.get_xml_desc(dump_inactive=True).replace(
            disk.path, str(target))
        self.host.get_connection().defineXML(xml)
        plan = self.plan_of(plan.instance, base.planning.RootDisk(
            'vda', 'file', str(target), 'qcow2'))
        plan.guest.launch()
        self.leave(external.ExternalStrategy,
                   self.plan_of(plan.instance, plan.disk))
        self.write_as_guest(plan, AFTER)
        self.forget_journal(plan)
        end_qemu_nbds(str(target))
        return plan

    def instance_disk(self):
        disk = self.qcow2()
        self.fill(disk, BEFORE)
        return disk

    def test_overlay_is_merged_before_the_guest_is_started(self):
        plan = self.left()
        plan.guest.poweroff()
        recover.ensure_recovered(self.driver, None, plan.instance)
        self.assertFalse(self.overlay_of(plan).exists())
        self.assert_holds(plan.disk, AFTER)

    def test_overlay_of_an_evacuated_disk_is_merged(self):
        plan = self.left()
        xml = plan.guest.get_xml_desc(dump_inactive=True)
        plan.guest.poweroff()
        plan.guest._domain.undefine()
        recover.ensure_recovered(self.driver, None, plan.instance)
        self.assertFalse(self.overlay_of(plan).exists())
        self.assert_holds(plan.disk, AFTER)
        self.host.get_connection().defineXML(xml)  # for the clean-up

    def test_overlay_of_a_running_guest_is_merged(self):
        plan = self.left()
        recover.ensure_recovered(self.driver, None, plan.instance)
        self.assertFalse(self.overlay_of(plan).exists())
        self.assertEqual(plan.disk.path, self.live_chain(plan)[0])
        plan.guest.poweroff()
        self.assert_holds(plan.disk, AFTER)

    def test_overlay_over_a_foreign_disk_is_left_and_blocks_the_start(self):
        plan = self.left()
        plan.guest.poweroff()
        foreign = self.qcow2()
        base.run('qemu-img', 'rebase', '-u', '-b', foreign.path, '-F',
                 'qcow2', str(self.overlay_of(plan)))
        error = self.assertRaises(
            exception.NotRecovered, recover.ensure_recovered, self.driver,
            None, plan.instance)
        self.assertIn('names the backing file', str(error))
        self.assertTrue(self.overlay_of(plan).exists())


class NotRecoveredTest(RecoveryTestCase):
    """Resources that are left unchanged, and reported."""

    def test_two_histories_are_both_kept_and_block_the_start(self):
        disk = self.qcow2()
        plan = self.guest(disk)
        definition = plan.guest.get_xml_desc(dump_inactive=True)
        self.leave(external.ExternalStrategy, plan)
        self.write_as_guest(plan, AFTER)
        plan.guest.poweroff()
        end_qemu_nbds(disk.path)
        self.host.get_connection().defineXML(definition).create()
        self.write_as_guest(plan, LATER)
        self.assertTrue(self.fails(plan, 'Do not commit it').blocks_start)
        self.assertRaises(
            exception.NotRecovered, self.driver.gate.ensure_recovered, None,
            plan.instance)
        self.assertTrue(self.overlay_of(plan).exists())
        plan.guest.poweroff()
        self.assert_holds(disk, LATER)

    def test_overlay_is_kept_if_its_disk_is_missing(self):
        disk = self.qcow2()
        plan = self.guest(disk)
        self.leave(external.ExternalStrategy, plan)
        self.write_as_guest(plan, AFTER)
        plan.guest.poweroff()
        os.rename(disk.path, f'{disk.path}.away')
        self.assertTrue(self.fails(plan, disk.path).blocks_start)
        self.assertTrue(self.overlay_of(plan).exists())
        os.rename(f'{disk.path}.away', disk.path)
        self.recover(plan)
        self.assert_nothing_left(plan)
        self.assert_holds(disk, AFTER)

    def leave_unknown_resource(self, blocks_start):
        """Leave a backup job, and a resource of an uninstalled package."""
        plan = self.guest(self.qcow2())
        self.leave(backup.BackupStrategy, plan)
        path = pathlib.Path(journal.find(plan.instance.uuid).path)
        content = json.loads(path.read_text())
        content['records'].insert(0, {
            'kind': 'checkpoint', 'data': {}, 'blocks_start': blocks_start,
            'blocks_snapshot': True})
        path.write_text(json.dumps(content))
        return plan

    def test_unknown_resource_is_left_and_others_are_released(self):
        plan = self.leave_unknown_resource(blocks_start=True)
        self.assertTrue(self.fails(
            plan, 'checkpoint', "the strategy 'backup'").blocks_start)
        self.assertEqual(libvirt.VIR_DOMAIN_JOB_NONE,
                         plan.guest._domain.jobInfo()[0])

    def test_unknown_resource_blocks_no_start_by_itself(self):
        plan = self.leave_unknown_resource(blocks_start=False)
        self.assertFalse(self.fails(plan, 'checkpoint').blocks_start)
        self.driver.gate.ensure_recovered(None, plan.instance)
        [record] = journal.find(plan.instance.uuid).records
        self.assertEqual('checkpoint', record.kind)


class TwoDeepTest(RecoveryTestCase):
    """Another overlay on top of the snapshot's."""

    def leave_under_another(self):
        disk = self.qcow2()
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        self.leave(external.ExternalStrategy, plan)
        self.write_as_guest(plan, AFTER)
        top = self.images / plan.instance.uuid / 'other'
        plan.guest._domain.snapshotCreateXML(
            f'<domainsnapshot><disks><disk name="vda" snapshot="external">'
            f'<source file="{top}"/></disk><disk name="vdb" snapshot="no"/>'
            f'</disks></domainsnapshot>',
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY |
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA)
        end_qemu_nbds(disk.path)
        return plan, top

    def assert_holds_through(self, top, disk):
        chain = qemu_img.backing_chain(str(top), 'qcow2')
        self.assertEqual([str(top), disk.path], chain)
        self.assert_holds(base.planning.RootDisk(
            'vda', 'file', str(top), 'qcow2'), AFTER)

    def test_overlay_is_removed_from_the_chain_of_a_running_guest(self):
        plan, top = self.leave_under_another()
        self.recover(plan)
        self.assertEqual([str(top), plan.disk.path],
                         self.live_chain(plan)[:2])
        self.assertFalse(self.overlay_of(plan).exists())
        self.assertEqual([], os.listdir(self.journal))
        plan.guest.poweroff()
        self.assert_holds_through(top, plan.disk)

    def test_overlay_is_removed_from_the_chain_of_a_shut_off_guest(self):
        plan, top = self.leave_under_another()
        plan.guest.poweroff()
        self.recover(plan)
        self.assertFalse(self.overlay_of(plan).exists())
        self.assertEqual([], os.listdir(self.journal))
        self.assert_holds_through(top, plan.disk)
        plan.guest.launch()
        self.assertTrue(re.search(str(top), plan.guest.get_xml_desc()))
