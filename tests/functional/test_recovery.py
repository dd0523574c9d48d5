# SPDX-License-Identifier: Apache-2.0
"""Snapshots whose nova-compute is gone, and what cleans up after them."""

import contextlib
import json
import os
import pathlib
import re
import subprocess
from unittest import mock

import libvirt
from lxml import etree
from nova import exception as nova_exception

from nova_snapext import exception
from nova_snapext.freeze import active_commit
from nova_snapext.freeze import backup
from nova_snapext.freeze import cold
from nova_snapext.freeze import external
from nova_snapext.freeze import internal
from nova_snapext.freeze import overlay
from nova_snapext.freeze import qemu_img
from nova_snapext import journal
from nova_snapext import recovery
from tests.functional import base
from tests.functional.freeze import contract

BEFORE, AFTER, LATER = contract.BEFORE, contract.AFTER, 0x44


class Killed(BaseException):
    """Takes the place of SIGKILL, after which nothing is done any more."""


@contextlib.contextmanager
def killed():
    """Leave undone all that a snapshot within does on its way out."""
    with mock.patch.object(journal.ReleaseStack, '__exit__',
                           lambda *_args: None), \
            mock.patch.object(journal.Entry, 'close'), \
            contextlib.suppress(Killed):
        yield


def killed_after(target, name):
    """Have the process die when a function of its has returned."""
    original = getattr(target, name)

    def function(*args, **kwargs):
        original(*args, **kwargs)
        raise Killed()

    return mock.patch.object(target, name, function)


def killed_before(target, name):
    return mock.patch.object(target, name, side_effect=Killed)


class RecoveryTestCase(contract.FreezeAssertions, base.GuestTestCase):

    def leave(self, strategy, plan):
        """Take a snapshot, and die while it is sent."""
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
        error = self.assertRaises(exception.NotRecovered, self.recover, plan)
        for part in (plan.instance.uuid, *parts):
            self.assertIn(part, str(error))
        return error


def qemu_nbds(path):
    found = subprocess.run(('pgrep', '-af', 'qemu-nbd'), capture_output=True,
                           text=True).stdout
    return [line for line in found.splitlines() if path in line]


class EveryStrategyTest(RecoveryTestCase):

    def test_each_leaves_a_guest_as_it_was_and_with_its_writes(self):
        for strategy in (backup.BackupStrategy, external.ExternalStrategy,
                         internal.InternalStrategy, cold.ColdStrategy):
            with self.subTest(strategy.name):
                disk = self.qcow2()
                self.fill(disk, BEFORE)
                plan = self.guest(disk)
                if strategy is internal.InternalStrategy:
                    self.take_away_other_disk(plan)
                before = self.definitions(plan)
                self.leave(strategy, plan)
                self.write_as_guest(plan, AFTER)
                self.assert_recovers_running(plan, before)

    def take_away_other_disk(self, plan):
        """Its raw disk keeps a guest from a snapshot within its disks."""
        plan.guest.poweroff()
        disk = etree.fromstring(plan.guest.get_xml_desc()).findall(
            './devices/disk')[1]
        plan.guest._domain.detachDeviceFlags(
            etree.tostring(disk, encoding='unicode'),
            libvirt.VIR_DOMAIN_AFFECT_CONFIG)
        plan.guest.launch()

    def test_each_on_a_raw_disk(self):
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

    def test_a_guest_that_was_powered_off_meanwhile_has_its_writes(self):
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

    def test_a_shut_off_guest_s_qemu_nbd_ends(self):
        plan = self.guest(self.qcow2(), running=False)
        self.leave(cold.ColdStrategy, plan)
        self.assertEqual(1, len(qemu_nbds(plan.disk.path)))
        self.recover(plan)
        self.assertEqual([], qemu_nbds(plan.disk.path))
        self.assert_nothing_left(plan)

    def test_a_guest_that_is_gone_leaves_nothing(self):
        for strategy in (backup.BackupStrategy, external.ExternalStrategy):
            with self.subTest(strategy.name):
                plan = self.guest(self.qcow2())
                self.leave(strategy, plan)
                xml = plan.guest.get_xml_desc(dump_inactive=True)
                plan.guest.poweroff()
                plan.guest._domain.undefine()
                self.overlay_of(plan).unlink(missing_ok=True)
                self.recover(plan)
                self.assertEqual([], os.listdir(self.journal))
                self.assertEqual([], list(self.freezes.iterdir()))
                self.host.get_connection().defineXML(xml)  # for the clean-up

    def test_a_guest_starved_by_a_snapshot_that_died_goes_on(self):
        plan = self.guest(self.qcow2())
        before = self.definitions(plan)
        self.leave(backup.BackupStrategy, plan)
        real = plan.guest._domain.state

        # What a full file system makes of it; the real thing is on the cloud.
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

    def test_the_next_one_cleans_up_after_the_last(self):
        plan = self.guest(self.qcow2())
        before = self.definitions(plan)
        self.leave(external.ExternalStrategy, plan)
        self.assertRaises(exception.SnapshotOutstanding, self.leave,
                          external.ExternalStrategy, plan)
        self.write_as_guest(plan, AFTER)
        recovery.ensure_whole(self.driver, None, plan.instance)
        with external.ExternalStrategy(self.driver).freeze(plan) as frozen:
            self.assertEqual({AFTER}, self.content(frozen))
        self.assert_same(before, self.definitions(plan))
        self.assert_nothing_left(plan)


class CommitTest(RecoveryTestCase):
    """The overlay of a snapshot whose process dies in its merge."""

    def dies(self, kill, strategy=external.ExternalStrategy, disk=None):
        """Take a snapshot while the guest writes, and die in its release."""
        disk = disk or self.qcow2()
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        self.before = self.definitions(plan)
        self.leave(strategy, plan)
        self.write_as_guest(plan, AFTER)
        with kill, contextlib.suppress(Killed):
            self.recover(plan)
        return plan

    POINTS = (
        lambda: killed_before(active_commit.ActiveCommit, '_begin'),
        lambda: killed_after(active_commit.ActiveCommit, '_begin'),
        lambda: killed_before(overlay.Overlay, '_note_pivot'),
        lambda: killed_after(overlay.Overlay, '_note_pivot'),
        lambda: killed_after(active_commit.ActiveCommit, '_follow'),
        lambda: killed_after(active_commit.ActiveCommit, 'run'),
        lambda: killed_before(overlay.Overlay, '_move_definition'),
        lambda: killed_before(overlay.Overlay, '_remove'),
        lambda: killed_after(overlay.Overlay, '_remove'),
    )

    def test_a_guest_that_runs_on_loses_nothing_at_any_point(self):
        for number, kill in enumerate(self.POINTS):
            with self.subTest(number):
                plan = self.dies(kill())
                self.write_as_guest(plan, LATER)
                self.assert_recovers_running(plan, self.before, LATER)

    def test_a_guest_that_loses_power_loses_nothing_at_any_point(self):
        for number, kill in enumerate(self.POINTS):
            with self.subTest(number):
                plan = self.dies(kill())
                self.write_as_guest(plan, LATER)
                self.cut_power(plan)
                self.recover(plan)
                plan = self.plan_of(plan.instance, plan.disk)
                self.assertEqual(self.before[1], self.definitions(plan)[1])
                self.assert_nothing_left(plan)
                self.assert_holds(plan.disk, LATER)

    def cut_power(self, plan):
        """Kill QEMU and libvirtd together, and start libvirtd again."""
        [qemu] = [identity for name, identity
                  in self.libvirtd.guests().items()
                  if name == plan.instance.name]
        self.libvirtd.kill()
        os.kill(qemu.pid, 9)
        self.libvirtd.start()
        self.reconnect()

    def reconnect(self):
        with contextlib.suppress(nova_exception.HypervisorUnavailable):
            self.host.get_connection()

    def test_a_guest_started_since_it_left_the_overlay_keeps_all(self):
        for name in ('_move_definition', '_remove'):
            with self.subTest(name):
                plan = self.dies(killed_before(overlay.Overlay, name))
                self.write_as_guest(plan, LATER)
                plan.guest.poweroff()
                plan.guest.launch()
                self.assert_recovers_running(plan, self.before, LATER)

    def test_a_commit_of_qemu_img_s_that_was_ended_is_finished(self):
        for kill in (killed_before(qemu_img, 'commit'),
                     killed_after(qemu_img, 'commit'),
                     killed_before(overlay.Overlay, '_move_definition'),
                     killed_before(overlay.Overlay, '_remove')):
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


class SuspendedTest(RecoveryTestCase):
    """A guest whose process dies while it is suspended for its freeze."""

    def test_it_is_resumed_from_its_memory_at_any_point(self):
        for number, point in enumerate((
                'take_suspended', '_move_saved_state', '_move_definition')):
            for kill in (killed_before, killed_after):
                with self.subTest(f'{number} {kill.__name__}'):
                    disk = self.qcow2()
                    self.fill(disk, BEFORE)
                    plan = self.guest(disk)
                    self.write_as_guest(plan, AFTER)
                    before = self.definitions(plan)
                    with kill(overlay.Overlay, point), \
                            mock.patch.object(cold.Suspension,
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

    def test_a_guest_that_was_paused_is_paused(self):
        plan = self.guest(self.qcow2())
        plan.guest.pause()
        before = self.definitions(plan)
        with killed_before(overlay.Overlay, 'take_suspended'), \
                mock.patch.object(cold.Suspension, 'resume_on_disk'):
            self.leave(cold.ColdStrategy, plan)
        self.assert_recovers(plan, before)
        self.assertEqual(libvirt.VIR_DOMAIN_PAUSED, self.host.get_guest(
            plan.instance)._domain.state()[0])


class FoundOverlayTest(RecoveryTestCase):
    """An overlay that this host's journal does not tell of."""

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
        os.unlink(journal.find(plan.instance.uuid).path)
        subprocess.run(('pkill', '-f', f'qemu-nbd.*{target}'), check=True)
        return plan

    def instance_disk(self):
        disk = self.qcow2()
        self.fill(disk, BEFORE)
        return disk

    def test_it_is_merged_before_its_guest_is_started(self):
        plan = self.left()
        plan.guest.poweroff()
        recovery.ensure_whole(self.driver, None, plan.instance)
        self.assertFalse(self.overlay_of(plan).exists())
        self.assert_holds(plan.disk, AFTER)

    def test_one_that_came_with_an_evacuated_disk_is_merged(self):
        plan = self.left()
        xml = plan.guest.get_xml_desc(dump_inactive=True)
        plan.guest.poweroff()
        plan.guest._domain.undefine()
        recovery.ensure_whole(self.driver, None, plan.instance)
        self.assertFalse(self.overlay_of(plan).exists())
        self.assert_holds(plan.disk, AFTER)
        self.host.get_connection().defineXML(xml)  # for the clean-up

    def test_one_of_a_guest_that_runs_is_merged(self):
        plan = self.left()
        recovery.ensure_whole(self.driver, None, plan.instance)
        self.assertFalse(self.overlay_of(plan).exists())
        self.assertEqual(plan.disk.path, self.live_chain(plan)[0])
        plan.guest.poweroff()
        self.assert_holds(plan.disk, AFTER)

    def test_one_over_another_s_disk_is_left_and_keeps_the_guest_off(self):
        plan = self.left()
        plan.guest.poweroff()
        strange = self.qcow2()
        base.run('qemu-img', 'rebase', '-u', '-b', strange.path, '-F',
                 'qcow2', str(self.overlay_of(plan)))
        error = self.assertRaises(
            exception.NotRecovered, recovery.ensure_whole, self.driver, None,
            plan.instance)
        self.assertIn('not of this instance', str(error))
        self.assertTrue(self.overlay_of(plan).exists())


class WhatCanNotBeTest(RecoveryTestCase):
    """What is left exactly as it is, and told."""

    def test_two_histories_keep_both_and_keep_the_guest_off(self):
        disk = self.qcow2()
        plan = self.guest(disk)
        definition = plan.guest.get_xml_desc(dump_inactive=True)
        self.leave(external.ExternalStrategy, plan)
        self.write_as_guest(plan, AFTER)
        plan.guest.poweroff()
        subprocess.run(('pkill', '-f', f'qemu-nbd.*{disk.path}'), check=True)
        self.host.get_connection().defineXML(definition).create()
        self.write_as_guest(plan, LATER)
        self.assertTrue(self.fails(plan, 'two histories').vital)
        self.assertRaises(exception.NotRecovered, self.driver._ensure_whole,
                          None, plan.instance)
        self.assertTrue(self.overlay_of(plan).exists())
        plan.guest.poweroff()
        self.assert_holds(disk, LATER)

    def test_a_disk_that_is_missing_keeps_the_overlay(self):
        disk = self.qcow2()
        plan = self.guest(disk)
        self.leave(external.ExternalStrategy, plan)
        self.write_as_guest(plan, AFTER)
        plan.guest.poweroff()
        os.rename(disk.path, f'{disk.path}.away')
        self.assertTrue(self.fails(plan, disk.path).vital)
        self.assertTrue(self.overlay_of(plan).exists())
        os.rename(f'{disk.path}.away', disk.path)
        self.recover(plan)
        self.assert_nothing_left(plan)
        self.assert_holds(disk, AFTER)

    def test_what_another_version_wrote_is_left(self):
        plan = self.guest(self.qcow2())
        self.leave(backup.BackupStrategy, plan)
        path = pathlib.Path(journal.find(plan.instance.uuid).path)
        content = json.loads(path.read_text())
        content['records'].insert(0, {'kind': 'checkpoint', 'data': {}})
        path.write_text(json.dumps(content))
        self.assertTrue(self.fails(plan, 'checkpoint').vital)
        self.assertEqual(libvirt.VIR_DOMAIN_JOB_NONE,
                         plan.guest._domain.jobInfo()[0])


class TwoDeepTest(RecoveryTestCase):
    """Somebody's own overlay on top of the snapshot's."""

    def on_top(self):
        disk = self.qcow2()
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        self.leave(external.ExternalStrategy, plan)
        self.write_as_guest(plan, AFTER)
        top = self.images / plan.instance.uuid / 'theirs'
        plan.guest._domain.snapshotCreateXML(
            f'<domainsnapshot><disks><disk name="vda" snapshot="external">'
            f'<source file="{top}"/></disk><disk name="vdb" snapshot="no"/>'
            f'</disks></domainsnapshot>',
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY |
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA)
        subprocess.run(('pkill', '-f', f'qemu-nbd.*{disk.path}'), check=True)
        return plan, top

    def assert_holds_below(self, top, disk):
        chain = qemu_img.backing_chain(str(top), 'qcow2')
        self.assertEqual([str(top), disk.path], chain)
        self.assert_holds(base.planning.RootDisk(
            'vda', 'file', str(top), 'qcow2'), AFTER)

    def test_the_snapshot_s_is_taken_out_from_below_while_it_runs(self):
        plan, top = self.on_top()
        self.recover(plan)
        self.assertEqual([str(top), plan.disk.path],
                         self.live_chain(plan)[:2])
        self.assertFalse(self.overlay_of(plan).exists())
        self.assertEqual([], os.listdir(self.journal))
        plan.guest.poweroff()
        self.assert_holds_below(top, plan.disk)

    def test_the_snapshot_s_is_taken_out_from_below_while_it_is_off(self):
        plan, top = self.on_top()
        plan.guest.poweroff()
        self.recover(plan)
        self.assertFalse(self.overlay_of(plan).exists())
        self.assertEqual([], os.listdir(self.journal))
        self.assert_holds_below(top, plan.disk)
        plan.guest.launch()
        self.assertTrue(re.search(str(top), plan.guest.get_xml_desc()))
