# SPDX-License-Identifier: Apache-2.0

from unittest import mock

import fixtures
import libvirt
from oslo_utils import units

from nova_snapext import exception
from nova_snapext.hypervisor import block_commit
from nova_snapext.hypervisor import convergence
from nova_snapext.hypervisor import write_limit
from tests.unit import base

COMMIT_READY = ('<mirror type="file" job="active-commit" ready="yes">'
                '<source file="/i/disk"/></mirror>')
COMMIT_RUNNING = COMMIT_READY.replace(' ready="yes"', '')
# What libvirt reports of a commit.
UNCOUNTED = {'cur': 0, 'end': 1}
COUNTED = {'cur': 0, 'end': units.Mi}
DONE = {'cur': units.Mi, 'end': units.Mi}
FOREIGN_COPY = ('<mirror type="file" job="copy"><source file="/elsewhere"/>'
                '</mirror>')


def definition(*paths, mirror='', qemu='1'):
    """Return the definition of a guest with a backing chain, active first."""
    backing = '<backingStore/>'
    for path in reversed(paths[1:]):
        backing = (f'<backingStore type="file"><source file="{path}"/>'
                   f'{backing}</backingStore>')
    return (f'<domain id="{qemu}"><devices><disk type="file">'
            f'<source file="{paths[0]}"/>{backing}{mirror}'
            f'<target dev="vda"/></disk></devices></domain>')


class CommitTestCase(base.TestCase):

    def setUp(self):
        super().setUp()
        self.flags(operation_timeout=1, group='snapext')
        self.useFixture(fixtures.MockPatchObject(
            block_commit, 'POLL_INTERVAL', 0))
        self.commit_plan = self.plan()
        self.guest = self.commit_plan.guest
        self.abort = self.guest.get_block_device.return_value.abort_job
        self.guest.disk_writes.return_value = 0, 0


class ActiveCommitTest(CommitTestCase):

    def setUp(self):
        super().setUp()
        plan = self.commit_plan
        self.pivot = self.abort
        self.before_pivot = mock.Mock()
        self.pivot_failed = mock.Mock()
        self.limit = mock.create_autospec(
            write_limit.WriteLimit, instance=True, is_set=False,
            is_paused=False)
        # A guest that somebody else has paused.
        self.limit.pause.return_value = False
        self.guest.state.return_value = (
            libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER)
        self.commit = block_commit.ActiveCommit(
            plan, '/i/overlay', self.before_pivot, self.pivot_failed,
            self.limit)

    def run_commit(self, *definitions):
        self.guest.get_xml_desc.side_effect = definitions
        return self.commit.run(self.guest)

    def assert_fails(self, reason, *definitions):
        error = self.assertRaises(
            exception.CommitFailed, self.run_commit, *definitions)
        self.assertIn(reason, str(error))

    def test_overlay_is_committed_and_guest_pivots(self):
        chain = ('/i/overlay', '/i/disk', '/i/base')
        self.assertIs(block_commit.CommitState.MERGED, self.run_commit(
            definition(*chain),
            definition(*chain, mirror=COMMIT_RUNNING),
            *[definition(*chain, mirror=COMMIT_READY)] * 2,
            definition(*chain[1:])))
        self.guest.commit_block.assert_called_once_with(
            'vda', '/i/disk', '/i/overlay',
            libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
        self.before_pivot.assert_called_once_with()
        self.pivot.assert_called_once_with(async_=True, pivot=True)
        self.pivot_failed.assert_not_called()

    def test_guest_that_was_started_again_is_committed_in_its_new_qemu(self):
        chain = ('/i/overlay', '/i/disk')
        ready = definition(*chain, mirror=COMMIT_READY)
        self.assertIs(block_commit.CommitState.ENDED, self.run_commit(
            definition(*chain), ready, definition(*chain, qemu='2')))
        self.guest.commit_block.reset_mock()
        self.assertIs(block_commit.CommitState.MERGED, self.run_commit(
            *[definition(*chain, mirror=mirror, qemu='2')
              for mirror in ('', COMMIT_RUNNING, COMMIT_READY, COMMIT_READY)],
            definition('/i/disk', qemu='2')))
        self.guest.commit_block.assert_called_once()

    def test_guest_that_is_paused_for_the_pivot_stays_so_after_it(self):
        self.limit.pause.return_value = True
        chain = ('/i/overlay', '/i/disk')
        ready = definition(*chain, mirror=COMMIT_READY)
        self.guest.block_job_info.side_effect = [
            {'cur': 7, 'end': 8}, {'cur': 7, 'end': 8}, {'cur': 8, 'end': 8}]
        self.limit.pause.side_effect = (
            lambda _guest: self.before_pivot.assert_not_called() or True)
        self.assertIs(block_commit.CommitState.MERGED, self.run_commit(
            definition(*chain), *[ready] * 3, definition(chain[1])))
        self.before_pivot.assert_called_once_with()
        self.pivot.assert_called_once_with(async_=True, pivot=True)
        self.limit.remove.assert_not_called()
        self.commit.remove_limit(self.guest)
        self.limit.remove.assert_called_once_with(self.guest)

    def test_guest_paused_for_an_earlier_commit_is_resumed_for_the_next(self):
        self.limit.is_paused = True
        self.guest.commit_block.side_effect = (
            lambda *_args: self.limit.remove.assert_called_once_with(
                self.guest))
        chain = ('/i/overlay', '/i/disk')
        self.run_commit(definition(*chain), definition(chain[1]))
        self.guest.commit_block.assert_called_once()

    def test_guest_is_paused_when_a_second_of_copying_is_left(self):
        chain = ('/i/overlay', '/i/disk')
        mib, now = units.Mi, 0
        infos = iter([{'cur': 10 * mib, 'end': 50 * mib},
                      {'cur': 500 * mib, 'end': 550 * mib},
                      {'cur': 560 * mib, 'end': 561 * mib}])

        def info(_disk):
            nonlocal now
            now += 1
            return next(infos)

        self.useFixture(fixtures.MockPatch(
            'oslo_utils.timeutils.now', lambda: now))
        self.guest.block_job_info.side_effect = info
        paused_at = []
        self.limit.pause.side_effect = lambda _guest: paused_at.append(
            self.guest.block_job_info.call_count)
        ready = definition(*chain, mirror=COMMIT_READY)
        self.run_commit(*[ready] * 3, definition(chain[1]))
        self.assertEqual([2], paused_at)

    def test_guest_that_is_still_on_the_overlay_is_resumed(self):
        self.limit.pause.return_value = True
        chain = ('/i/overlay', '/i/disk')
        ready = definition(*chain, mirror=COMMIT_READY)
        self.assert_fails('is still on the overlay', definition(*chain),
                          ready, ready, definition(*chain))
        self.limit.remove.assert_called_once_with(self.guest)

    def test_guest_is_not_paused_if_the_option_forbids_it(self):
        self.flags(merge_min_write_kbps=0, group='snapext')
        chain = ('/i/overlay', '/i/disk')
        self.run_commit(definition(*chain),
                        definition(*chain, mirror=COMMIT_READY),
                        definition(chain[1]))
        self.limit.pause.assert_not_called()
        self.before_pivot.assert_called_once_with()

    def test_guest_that_can_not_be_paused_pivots_all_the_same(self):
        self.limit.pause.side_effect = exception.JournalFailed(
            path='/j', reason='full')
        chain = ('/i/overlay', '/i/disk')
        self.guest.block_job_info.return_value = {'cur': 7, 'end': 8}
        self.run_commit(definition(*chain),
                        *[definition(*chain, mirror=COMMIT_READY)] * 2,
                        definition(chain[1]))
        self.before_pivot.assert_called_once_with()

    def test_overlay_below_another_is_committed_without_pivot(self):
        chain = ('/i/top', '/i/overlay', '/i/disk')
        self.assertIs(block_commit.CommitState.MERGED, self.run_commit(
            definition(*chain), definition('/i/top', '/i/disk')))
        self.guest.commit_block.assert_called_once_with(
            'vda', '/i/disk', '/i/overlay', 0)
        self.pivot.assert_not_called()

    def test_guest_on_its_disk_needs_no_commit(self):
        self.assertIs(block_commit.CommitState.NOT_THERE,
                      self.run_commit(definition('/i/disk')))
        self.guest.commit_block.assert_not_called()

    def test_guest_in_another_qemu_ends_commit(self):
        self.assertIs(block_commit.CommitState.ENDED, self.run_commit(
            definition('/i/overlay', '/i/disk'),
            definition('/i/overlay', '/i/disk', qemu='2')))

    def test_unknown_chain_is_named_in_error(self):
        self.assert_fails('is on /i/disk <- /i/between <- /i/overlay',
                          definition('/i/overlay', '/i/between', '/i/disk'))
        self.guest.commit_block.assert_not_called()

    def test_changed_chain_is_named_in_error(self):
        self.assert_fails('is now on /i/disk <- /i/overlay <- /i/top',
                          definition('/i/overlay', '/i/disk'),
                          definition('/i/top', '/i/overlay', '/i/disk'))

    def test_foreign_job_is_named_in_error(self):
        self.assert_fails('has the job \'copy\'', definition(
            '/i/overlay', '/i/disk', mirror=FOREIGN_COPY))

    def test_foreign_job_on_inner_overlay_fails_commit(self):
        self.guest.block_job_info.return_value = {
            'type': libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_PULL}
        self.assert_fails('has a job', definition(
            '/i/top', '/i/overlay', '/i/disk'))

    def test_ended_job_without_merge_fails_commit(self):
        chain = ('/i/overlay', '/i/disk')
        self.assert_fails('is still on the overlay', definition(*chain),
                          definition(*chain))

    def test_stalled_job_fails_commit(self):
        self.guest.block_job_info.return_value = {'cur': 3, 'end': 8}
        self.useFixture(fixtures.MockPatch(
            'oslo_utils.timeutils.now', side_effect=range(100, 200)))
        self.assert_fails('at 3 of 8 bytes', *[definition(
            '/i/overlay', '/i/disk', mirror=COMMIT_RUNNING)] * 9)

    def test_error_before_pivot_aborts_commit_and_is_raised(self):
        self.before_pivot.side_effect = OSError('no marker')
        chain = ('/i/overlay', '/i/disk')
        self.assertRaisesRegex(
            OSError, 'no marker', self.run_commit,
            definition(*chain),
            *[definition(*chain, mirror=COMMIT_READY)] * 3,
            definition(*chain))
        self.pivot.assert_called_once_with(async_=True)
        self.pivot_failed.assert_not_called()

    def test_error_before_pivot_leaves_commit_that_may_pivot_already(self):
        self.before_pivot.side_effect = OSError('no marker')
        self.assertRaisesRegex(
            OSError, 'no marker', self.run_commit,
            *[definition('/i/overlay', '/i/disk', mirror=COMMIT_READY)] * 2)
        self.pivot.assert_not_called()

    def test_guest_on_overlay_after_pivot_is_reported(self):
        chain = ('/i/overlay', '/i/disk')
        self.assert_fails('is still on the overlay', definition(*chain),
                          *[definition(*chain, mirror=COMMIT_READY)] * 2,
                          definition(*chain))
        self.pivot_failed.assert_called_once_with()

    def test_pivot_waits_until_little_is_left(self):
        chain = ('/i/overlay', '/i/disk')
        self.guest.block_job_info.side_effect = [
            {'cur': 1 << 30, 'end': 2 << 30},
            *[{'cur': 2 << 30, 'end': 2 << 30}] * 2]
        ready = definition(*chain, mirror=COMMIT_READY)
        self.run_commit(definition(*chain), *[ready] * 3,
                        definition(chain[1]))
        self.pivot.assert_called_once_with(async_=True, pivot=True)

    def test_limited_guest_is_paused_before_the_pivot(self):
        self.limit.is_set = True
        chain = ('/i/overlay', '/i/disk')
        self.guest.block_job_info.side_effect = [
            {'cur': 7, 'end': 8}, {'cur': 7, 'end': 8}, {'cur': 8, 'end': 8}]
        self.limit.pause.side_effect = (
            lambda _guest: self.pivot.assert_not_called() or True)
        ready = definition(*chain, mirror=COMMIT_READY)
        self.run_commit(definition(*chain), ready, ready, ready,
                        definition(chain[1]))
        self.limit.pause.assert_called_once_with(self.guest)
        self.pivot.assert_called_once_with(async_=True, pivot=True)

    def test_process_that_ends_leaves_the_pivot_to_the_next_one(self):
        self.limit.is_set = True
        pauses = write_limit.Pauses()
        pauses.stop(0)
        ready = definition('/i/overlay', '/i/disk', mirror=COMMIT_READY)
        with mock.patch.object(write_limit, 'PAUSES', pauses):
            self.assertIn('when nova-compute has started again', str(
                self.assertRaises(exception.CommitFailed, self.run_commit,
                                  ready, ready)))
        self.limit.pause.assert_not_called()
        self.pivot.assert_not_called()

    def test_guest_that_is_paused_already_pivots_in_a_process_that_ends(self):
        self.limit.is_set = True
        pauses = write_limit.Pauses()
        chain = ('/i/overlay', '/i/disk')
        self.guest.block_job_info.side_effect = [
            {'cur': 7, 'end': 8}, {'cur': 8, 'end': 8}]
        self.limit.pause.side_effect = (
            lambda _guest: pauses.stop(0) == [])
        ready = definition(*chain, mirror=COMMIT_READY)
        with mock.patch.object(write_limit, 'PAUSES', pauses):
            self.run_commit(ready, ready, definition(chain[1]))
        self.pivot.assert_called_once_with(async_=True, pivot=True)

    def test_guest_that_does_not_pivot_is_paused(self):
        self.useFixture(fixtures.MockPatchObject(
            block_commit, 'PIVOT_PATIENCE', 0))
        chain = ('/i/overlay', '/i/disk')
        pivots = definition(*chain, mirror=COMMIT_READY.replace(
            'ready="yes"', 'ready="pivot"'))
        self.run_commit(pivots, pivots, definition(chain[1]))
        self.limit.pause.assert_called_once_with(self.guest)

    def test_job_that_libvirt_is_ending_is_awaited(self):
        chain = ('/i/overlay', '/i/disk')
        self.assertIs(block_commit.CommitState.MERGED, self.run_commit(
            definition(*chain, mirror=COMMIT_READY.replace(
                'active-commit', '')), definition(chain[1])))

    def test_limit_that_can_not_be_removed_does_not_hide_the_result(self):
        self.limit.remove.side_effect = base.libvirt_error(1)
        self.assertIs(block_commit.CommitState.NOT_THERE,
                      self.run_commit(definition('/i/disk')))

    def test_paused_guest_that_has_not_run_is_told_to_be_unpaused(self):
        self.guest.state.return_value = libvirt.VIR_DOMAIN_PAUSED, 1
        self.guest.commit_block.side_effect = base.libvirt_error(
            1, "Inactive 'libvirt-2-format' can't be a backing child of "
            "active '#block065'")
        self.assert_fails('openstack server unpause',
                          definition('/i/overlay', '/i/disk'))


class StartTest(CommitTestCase):
    """A commit in a QEMU that misses writes while it starts one."""

    CHAIN = ('/i/overlay', '/i/disk')
    ON_OVERLAY = definition(*CHAIN)
    RUNNING = definition(*CHAIN, mirror=COMMIT_RUNNING)
    READY = definition(*CHAIN, mirror=COMMIT_READY)
    MERGED = definition('/i/disk')

    def setUp(self):
        super().setUp()
        plan = self.commit_plan
        self.limit = write_limit.WriteLimit(plan, mock.Mock())
        self.addCleanup(write_limit.PAUSES.end, plan.instance.uuid)
        self.events = []
        self.guest.pause.side_effect = lambda: self.change('pause')
        self.guest.resume.side_effect = lambda: self.change('resume')
        self.guest.commit_block.side_effect = (
            lambda *_args: self.events.append('commit'))
        self.abort.side_effect = lambda async_, pivot=False: (
            self.events.append('pivot' if pivot else 'abort'))
        self.misses_writes = mock.Mock(return_value=True)
        self.commit = block_commit.ActiveCommit(
            plan, '/i/overlay', write_limit=self.limit,
            misses_writes=self.misses_writes)

    def change(self, event):
        self.events.append(event)
        self.guest.state.return_value = (
            (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER)
            if event == 'pause' else
            (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_UNPAUSED))

    def run_commit(self, *steps):
        """Run the commit, with definitions and the progress after each."""
        self.guest.get_xml_desc.side_effect = [step[0] for step in steps]
        self.guest.block_job_info.side_effect = [
            step[1] for step in steps if len(step) > 1]
        return self.commit.run(self.guest)

    def assert_fails(self, reason, *steps):
        error = self.assertRaises(
            exception.CommitFailed, self.run_commit, *steps)
        self.assertIn(reason, str(error))
        self.assertIn('missed-writes', str(error))

    def test_guest_is_paused_until_its_commit_has_started(self):
        self.run_commit(
            (self.ON_OVERLAY,), (self.RUNNING, UNCOUNTED),
            (self.RUNNING, COUNTED), (self.RUNNING, COUNTED),
            *[(self.READY, DONE)] * 2, (self.MERGED,))
        self.assertEqual(
            ['pause', 'commit', 'resume', 'pause', 'pivot'], self.events)
        self.misses_writes.assert_called_once_with(self.guest)

    def test_guest_whose_commit_is_ready_at_once_is_paused_once(self):
        self.run_commit(
            (self.ON_OVERLAY,), *[(self.READY, DONE)] * 2,
            (self.MERGED,))
        self.assertEqual(['pause', 'commit', 'pivot'], self.events)
        wait = self.guest.watch_event.return_value.__enter__.return_value
        self.assertEqual([mock.call(block_commit.PAUSED_INTERVAL)] * 3,
                         wait.mock_calls)

    def test_guest_of_another_qemu_is_only_paused_for_the_pivot(self):
        self.misses_writes.return_value = False
        self.run_commit(
            (self.ON_OVERLAY,), (self.RUNNING, UNCOUNTED),
            *[(self.READY, DONE)] * 2, (self.MERGED,))
        self.assertEqual(['commit', 'pause', 'pivot'], self.events)

    def test_guest_that_can_not_be_paused_is_not_committed(self):
        self.guest.pause.side_effect = base.libvirt_error(1, 'no monitor')
        self.assert_fails('no monitor', (self.ON_OVERLAY,))
        self.assertEqual([], self.events)

    def test_guest_that_is_resumed_before_the_commit_is_not_committed(self):
        self.guest.pause.side_effect = None
        self.assert_fails('it was resumed', (self.ON_OVERLAY,))
        self.assertNotIn('commit', self.events)

    def test_guest_is_not_committed_while_nova_compute_stops(self):
        self.useFixture(fixtures.MockPatchObject(
            write_limit.PAUSES, 'are_forbidden', True))
        self.assert_fails('nova-compute stops', (self.ON_OVERLAY,))
        self.assertEqual([], self.events)

    def test_guest_that_a_user_has_paused_is_committed(self):
        self.change('pause')
        self.run_commit(
            (self.ON_OVERLAY,), (self.RUNNING, UNCOUNTED),
            *[(self.READY, DONE)] * 2, (self.MERGED,))
        self.assertEqual(['pause', 'commit', 'pivot'], self.events)

    def test_guest_that_is_resumed_during_the_start_stays_on_overlay(self):
        def resume(*_args):
            self.guest.state.return_value = (
                libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_BOOTED)

        for info in (UNCOUNTED, COUNTED):
            self.commit._forget_qemu()
            self.guest.commit_block.side_effect = resume
            self.assert_fails(
                'was resumed', (self.ON_OVERLAY,), (self.RUNNING, info),
                (self.RUNNING, info), (self.ON_OVERLAY,))
            self.assertEqual('abort', self.events[-1])
            self.assertFalse(self.limit.is_paused)

    def test_guest_whose_commit_does_not_start_is_resumed(self):
        self.useFixture(fixtures.MockPatchObject(block_commit, 'MAX_PAUSE', 0))
        self.assert_fails(
            'has not started', (self.ON_OVERLAY,),
            (self.RUNNING, UNCOUNTED), (self.RUNNING, UNCOUNTED),
            (self.ON_OVERLAY,))
        self.assertEqual(
            ['pause', 'commit', 'abort', 'resume'], self.events)

    def test_guest_whose_commit_is_refused_is_resumed(self):
        self.guest.commit_block.side_effect = base.libvirt_error(1)
        self.assertRaises(libvirt.libvirtError, self.run_commit,
                          (self.ON_OVERLAY,))
        self.assertEqual(['pause', 'resume'], self.events)

    def test_commit_of_killed_process_ends_if_its_guest_runs_too_early(self):
        self.assert_fails(
            'was resumed', (self.RUNNING, UNCOUNTED),
            (self.ON_OVERLAY,))
        self.assertEqual(['abort'], self.events)

    def test_guest_that_the_killed_process_paused_is_resumed(self):
        self.limit.pause(self.guest)
        self.run_commit(
            (self.RUNNING, UNCOUNTED),
            *[(self.RUNNING, COUNTED)] * 3,
            *[(self.READY, DONE)] * 2, (self.MERGED,))
        self.assertEqual(['pause', 'resume', 'pause', 'pivot'], self.events)

    def test_commit_that_has_started_long_ago_goes_on(self):
        self.run_commit((self.RUNNING, COUNTED),
                        *[(self.READY, DONE)] * 2, (self.MERGED,))
        self.assertEqual(['pause', 'pivot'], self.events)
        self.misses_writes.assert_not_called()

    def test_commit_below_another_overlay_pauses_no_guest(self):
        chain = ('/i/other', *self.CHAIN)
        self.run_commit((definition(*chain), {}),
                        (definition('/i/other', '/i/disk'),))
        self.assertEqual(['commit'], self.events)


class PaceTest(base.TestCase):
    """The decisions for a guest that rewrites more than is copied."""

    def setUp(self):
        super().setUp()
        self.flags(operation_timeout=100, merge_min_write_kbps=1024,
                   min_free_disk_mb=0, group='snapext')
        self.now = self.copied = self.total = 0
        self.useFixture(fixtures.MockPatch(
            'oslo_utils.timeutils.now', lambda: self.now))
        self.guest = base.fake_guest()
        self.guest.disk_writes.return_value = 0, 0
        self.limit = mock.create_autospec(
            write_limit.WriteLimit, instance=True, is_set=False)

    def pace(self):
        return block_commit._Pace(
            self.instance(), 'vda', '/i/overlay', self.limit)

    def follow(self, pace, seconds, copied=1, rewritten=2):
        """Follow a commit, with its bytes for each second.

        :returns: what the last second says
        """
        said = None
        for _ in range(seconds):
            self.now += 1
            self.copied += copied
            self.total += rewritten
            said = pace.keep(
                self.guest, {'cur': self.copied, 'end': self.total + 1000})
        return said

    def test_guest_is_slowed_step_by_step_down_to_the_option(self):
        self.guest.disk_writes.side_effect = (
            (number << 23, number * 1000) for number in range(1000))
        pace = self.pace()
        self.assertIsNone(self.follow(pace, convergence.PATIENCE))
        self.limit.lower.assert_not_called()
        self.assertIsNone(self.follow(
            pace, 3 * convergence.WINDOW, copied=1 << 22, rewritten=1 << 22))
        rates = [call.args[1] for call in self.limit.lower.mock_calls]
        self.assertEqual(1 << 20, rates[-1].bytes_sec)
        self.assertTrue(all(rate.iops_sec >= 16 for rate in rates), rates)

    def test_guest_at_the_lowest_rate_ends_the_commit_after_the_timeout(self):
        pace = self.pace()
        self.follow(pace, convergence.PATIENCE + 1)
        self.limit.lower.assert_called_once_with(
            self.guest, write_limit.WriteRate(1 << 20, 16))
        self.assertIsNone(self.follow(pace, 100))
        self.assertEqual(
            'in 30 seconds 30 bytes were copied and the guest wrote to 60 '
            'others, and 1162 are left', self.follow(pace, 1))

    def test_guest_is_never_slowed_if_the_option_forbids_it(self):
        self.flags(merge_min_write_kbps=0, group='snapext')
        pace = self.pace()
        self.assertIsNone(self.follow(pace, 100))
        self.assertIsNotNone(self.follow(pace, 1))
        self.limit.lower.assert_not_called()

    def test_guest_is_not_slowed_without_a_journal(self):
        self.limit.lower.side_effect = exception.JournalFailed(
            path='/j', reason='full')
        pace = self.pace()
        self.follow(pace, convergence.PATIENCE + 1)
        self.assertIsNotNone(self.follow(pace, 110))
        self.limit.lower.assert_called_once()
