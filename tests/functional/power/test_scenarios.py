# SPDX-License-Identifier: Apache-2.0
"""Power that goes while something else goes wrong, too."""

import contextlib
import unittest

import libvirt
from testtools import content

from tests.functional.power import base
from tests.functional.power import steps
from tests.functional.power import victim

NOTHING = ()
AFTER, DURING, LAST = victim.AFTER, victim.DURING, victim.LAST


class ScenarioTestCase(base.PowerTestCase):

    APART = True

    @contextlib.contextmanager
    def case(self, name):
        """Name a case of a test in its failure."""
        try:
            yield
        except BaseException:
            self.addDetail('case', content.text_content(name))
            raise

    def snapshot(self, guest, point, kind=victim.Victim, **loss):
        self.snapshot_until_power_goes(
            guest, victim.PowerLoss('external', point, **loss), kind)

    def start_from_disk(self, guest):
        """Start a guest that is off from its disk, as an operator may."""
        with self.domain_of(guest, self.definition) as domain:
            domain.create()

    def end_guest(self, guest):
        with self.domain_of(guest) as domain:
            domain.destroy()


class PivotTest(ScenarioTestCase):
    """The guest is leaving its overlay."""

    def test_guest_writes_nothing_in_a_pivot_that_nobody_sees(self):
        guest = self.guest()
        self.snapshot(guest, steps.PIVOT_TOLD, victim.VictimWithoutLibvirtd)
        self.assertEqual(DURING, self.acknowledged)
        self.restore_power()
        self.assertIsNone(self.assert_nothing_lost(guest))

    def test_pivot_that_nobody_saw_of_a_running_guest_is_not_undone(self):
        guest = self.guest()
        self.snapshot(guest, steps.PIVOT_TOLD, victim.VictimWithoutLibvirtd,
                      may_pause=False)
        self.assertEqual(AFTER, self.acknowledged)
        self.restore_power()
        self.assertIsNotNone(self.assert_nothing_lost(guest))
        # The disk is the right one. What the refusal says leads back to it.
        self.overlay(guest).rename(self.paths[base.INSTANCES] / 'moved')
        self.assertIsNone(self.assert_nothing_lost(guest))

    def test_guest_that_did_not_write_after_an_unseen_pivot_is_recovered(self):
        for may_pause in (True, False):
            with self.case(f'may pause: {may_pause}'):
                guest = self.guest()
                self.snapshot(guest, steps.PIVOT_TOLD, may_pause=may_pause)
                self.restore_power()
                self.assertIsNone(self.assert_nothing_lost(guest))

    def test_histories_after_a_pivot_that_did_not_happen_are_both_kept(self):
        for power in ('stays', 'goes'):
            with self.case(power):
                guest = self.guest()
                self.snapshot(
                    guest, steps.points.Point(
                        'before the pivot', steps.PIVOT, steps.BEFORE),
                    victim.KilledVictim, may_pause=False)
                self.write(guest, AFTER)
                self.end_guest(guest)
                self.start_from_disk(guest)
                self.write(guest, LAST)
                if power == 'goes':
                    self.lose_power()
                    self.restore_power()
                refusal = self.recover(guest)
                self.assertTrue(refusal.blocks_start)
                self.assert_safe_to_follow(refusal.text, power == 'stays')
                if power == 'stays':
                    self.end_guest(guest)
                self.assertEqual({AFTER}, self.holds(
                    self.overlay(guest), 'qcow2'))
                self.assertEqual({LAST}, self.holds(
                    guest.disk.path, guest.disk.format))

    def test_guest_that_shuts_itself_off_after_the_pivot_keeps_its_disk(self):
        for point, may_pause in (
                (steps.GUEST_CONTINUES, True), (steps.END[-1], True),
                (steps.ON_DISK_AGAIN, False), (steps.OVERLAY_REMOVED, False)):
            with self.case(f'{point.name}, may pause: {may_pause}'):
                guest = self.guest()
                self.snapshot(guest, point, victim.VictimOfGuest,
                              may_pause=may_pause)
                self.restore_power()
                self.assert_nothing_lost(guest)


class JournalTest(ScenarioTestCase):
    """The journal does not know what happened."""

    POINTS = (steps.points.SERVED, steps.PIVOT_TOLD, steps.ON_DISK_AGAIN,
              steps.GUEST_CONTINUES)

    def test_guest_keeps_its_data_if_the_journal_is_lost(self):
        for point in self.POINTS:
            with self.case(point.name):
                guest = self.guest()
                self.snapshot(guest, point)
                self.restore_power()
                for path in self.paths[base.JOURNAL].iterdir():
                    path.unlink()
                self.assert_nothing_lost(guest, journaled=False)

    def test_guest_keeps_its_data_if_the_journal_is_set_aside(self):
        for point in self.POINTS[-2:]:
            with self.case(point.name):
                guest = self.guest()
                self.snapshot(guest, point)
                self.restore_power()
                for path in self.paths[base.JOURNAL].iterdir():
                    path.write_text('{')
                self.assert_nothing_lost(guest, journaled=False)

    def test_guest_keeps_its_data_if_the_journal_is_full(self):
        for point in (steps.PIVOT_TOLD, steps.ON_DISK_AGAIN,
                      steps.GUEST_CONTINUES, steps.END[-1]):
            with self.case(point.name):
                guest = self.guest()
                self.snapshot(guest, point, victim.VictimWithFullJournal)
                self.restore_power()
                (self.paths[base.JOURNAL].parent / 'full').unlink(
                    missing_ok=True)
                self.assert_nothing_lost(guest)


class RemovalTest(ScenarioTestCase):
    """What was removed does not come back."""

    def test_merged_overlay_does_not_come_back(self):
        for synced in (NOTHING, (base.LIBVIRT,), (base.JOURNAL,)):
            with self.case(str(synced)):
                guest = self.guest()
                self.snapshot(guest, steps.END[-1], synced=synced)
                self.assertEqual(AFTER, self.acknowledged)
                self.restore_power()
                self.assertFalse(self.overlay(guest).exists())
                self.assertIsNone(self.assert_nothing_lost(guest))

    def test_work_directory_does_not_come_back(self):
        guest = self.guest()
        self.snapshot_until_power_goes(
            guest, victim.PowerLoss('backup', steps.END[-1]))
        self.restore_power()
        self.assert_nothing_lost(guest)

    def test_memory_that_the_guest_was_resumed_from_does_not_come_back(self):
        guest = self.guest()
        self.snapshot_until_power_goes(
            guest, victim.PowerLoss('cold', steps.points.SERVED, writes=True))
        self.assertEqual(LAST, self.acknowledged)
        self.restore_power()
        with self.domain_of(guest) as domain:
            self.assertFalse(domain.hasManagedSaveImage())
        self.assert_nothing_lost(guest)

    def test_memory_of_a_guest_that_has_written_since_is_not_restored(self):
        guest = self.guest()
        self.snapshot_until_power_goes(guest, victim.PowerLoss(
            'cold', steps.find(steps.COLD, 'libvirt has resumed the guest'),
            writes=True))
        self.assertEqual(LAST, self.acknowledged)
        self.restore_power()
        self.assert_nothing_lost(guest)
        with self.domain_of(guest) as domain:
            domain.create()
            self.assertNotEqual(
                libvirt.VIR_DOMAIN_RUNNING_RESTORED, domain.state()[1])


class RecoveryTest(ScenarioTestCase):
    """The power goes again, during the recovery."""

    def test_guest_that_is_off_keeps_its_data_at_every_step(self):
        always = steps.part(steps.RECOVERY, 'qemu-img has committed',
                            steps.OVERLAY_REMOVED.name)
        for point in steps.RECOVERY if base.IN_FULL else always:
            with self.case(point.name):
                guest = self.guest()
                self.snapshot(guest, steps.points.SERVED,
                              synced=(base.LIBVIRT,), writes=True)
                self.restore_power()
                self.snapshot(guest, point, victim.RecoveringVictim)
                self.restore_power()
                self.assertEqual(LAST, self.acknowledged)
                self.assertIsNone(self.assert_nothing_lost(guest))


@unittest.skipUnless(base.IN_FULL, base.ONLY_IN_FULL)
class XfsPivotTest(PivotTest):

    KIND = 'xfs'


@unittest.skipUnless(base.IN_FULL, base.ONLY_IN_FULL)
class XfsRemovalTest(RemovalTest):

    KIND = 'xfs'


@unittest.skipUnless(base.IN_FULL, base.ONLY_IN_FULL)
class XfsRecoveryTest(RecoveryTest):

    KIND = 'xfs'
