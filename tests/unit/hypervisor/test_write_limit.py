# SPDX-License-Identifier: Apache-2.0

from concurrent import futures
from unittest import mock

import fixtures
import libvirt

from nova_snapext import exception
from nova_snapext.hypervisor import write_limit
from tests.unit import base

NONE = {f'{kind}_{unit}{suffix}': 0
        for kind in ('total', 'read', 'write')
        for unit in ('bytes_sec', 'iops_sec')
        for suffix in ('', '_max', '_max_length')} | {
            'size_iops_sec': 0, 'group_name': ''}

RATE = write_limit.WriteRate(bytes_sec=1000, iops_sec=10)


def tuning(**values):
    return NONE | values


def limited(**values):
    """Return what the limit changes in a tuning."""
    before = tuning(**values)
    return {name: value for name, value
            in write_limit.limited_tuning(before, RATE).items()
            if value != before[name]}


class LimitedTuningTest(base.TestCase):

    def test_guest_without_limits_gets_two(self):
        self.assertEqual({'write_bytes_sec': 1000, 'write_iops_sec': 10},
                         limited())

    def test_limit_of_reads_stays(self):
        self.assertEqual({'write_bytes_sec': 1000, 'write_iops_sec': 10},
                         limited(read_bytes_sec=7, read_iops_sec=8))

    def test_lower_limit_of_writes_stays(self):
        self.assertEqual({'write_iops_sec': 10}, limited(
            write_bytes_sec=900, write_iops_sec=20))

    def test_burst_of_writes_is_taken_away(self):
        self.assertEqual(
            {'write_bytes_sec': 1000, 'write_iops_sec': 10,
             'write_bytes_sec_max': 0, 'write_bytes_sec_max_length': 0},
            limited(write_bytes_sec=5000, write_bytes_sec_max=6000,
                    write_bytes_sec_max_length=9))

    def test_sum_is_divided_between_reads_and_writes(self):
        self.assertEqual(
            {'write_bytes_sec': 1000, 'write_iops_sec': 10,
             'total_bytes_sec': 0, 'read_bytes_sec': 4000,
             'total_bytes_sec_max': 0, 'read_bytes_sec_max': 8000,
             'total_bytes_sec_max_length': 0, 'read_bytes_sec_max_length': 3},
            limited(total_bytes_sec=5000, total_bytes_sec_max=9000,
                    total_bytes_sec_max_length=3))

    def test_small_sum_never_leaves_reads_or_writes_without_limit(self):
        for total, write in ((1, 1), (2, 1), (15, 7)):
            changed = limited(total_iops_sec=total)
            self.assertEqual(write, changed['write_iops_sec'])
            self.assertEqual(max(1, total - write), changed['read_iops_sec'])

    def test_requests_are_counted_as_libvirt_counts_them(self):
        self.assertEqual({'write_bytes_sec': 1000, 'write_iops_sec': 160},
                         limited(size_iops_sec=4096))

    def test_group_is_never_changed(self):
        self.assertNotIn('group_name', write_limit.limited_tuning(NONE, RATE))


class WriteLimitTest(base.TestCase):

    def setUp(self):
        super().setUp()
        plan = self.plan()
        self.guest = plan.guest
        self.uuid = plan.instance.uuid
        self.now = NONE
        self.guest.block_tuning.side_effect = lambda _disk: dict(self.now)
        self.guest.persistent_block_tuning.return_value = NONE
        self.guest.set_block_tuning.side_effect = self.set
        self.events = []
        self.pauses = write_limit.Pauses()
        self.useFixture(fixtures.MockPatchObject(
            write_limit, 'PAUSES', self.pauses))
        self.limit = write_limit.WriteLimit(plan, self.save)

    def set(self, _disk, values):
        self.now = {**self.now, **values}
        self.events.append('set')

    def save(self):
        self.events.append('save')

    def test_record_is_written_before_each_change(self):
        self.limit.lower(self.guest, RATE)
        self.limit.lower(self.guest, write_limit.WriteRate(500, 5))
        self.limit.remove(self.guest)
        self.assertEqual(['save', 'set', 'save', 'set', 'set', 'save'],
                         self.events)
        self.assertEqual(NONE, self.now)

    def test_limit_that_is_in_place_is_not_set_again(self):
        self.limit.lower(self.guest, RATE)
        self.limit.lower(self.guest, RATE)
        self.assertEqual(['save', 'set'], self.events)

    def test_nothing_is_changed_without_a_record(self):
        self.limit._save = mock.Mock(side_effect=exception.JournalFailed(
            path='/j', reason='full'))
        self.assertRaises(exception.JournalFailed, self.limit.lower,
                          self.guest, RATE)
        self.assertEqual(NONE, self.now)
        self.assertFalse(self.limit.is_set)

    def test_limit_that_somebody_has_defined_is_kept(self):
        self.limit.lower(self.guest, RATE)
        self.guest.persistent_block_tuning.return_value = self.now
        self.limit.remove(self.guest)
        self.assertEqual(1000, self.now['write_bytes_sec'])

    def test_crash_before_the_change_leaves_nothing_to_put_back(self):
        self.guest.set_block_tuning.side_effect = KeyboardInterrupt
        self.assertRaises(KeyboardInterrupt, self.limit.lower, self.guest,
                          RATE)
        self.guest.set_block_tuning.side_effect = None
        self.guest.set_block_tuning.reset_mock()
        again = write_limit.WriteLimit(self.plan(), self.save)
        again.restore(self.limit.record())
        again.remove(self.guest)
        self.guest.set_block_tuning.assert_not_called()

    def test_guest_that_is_off_has_no_limit(self):
        self.limit.lower(self.guest, RATE)
        self.guest.is_active.return_value = False
        self.limit.remove(self.guest)
        self.assertFalse(self.limit.is_set)
        self.assertEqual(1, self.guest.set_block_tuning.call_count)

    def test_guest_is_paused_after_the_record_and_resumed_at_the_end(self):
        self.guest.pause.side_effect = lambda: self.events.append('pause')
        self.limit.pause(self.guest)
        self.assertEqual(['save', 'pause'], self.events)
        self.guest.state.return_value = (
            libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER)
        self.limit.remove(self.guest)
        self.guest.resume.assert_called_once_with()

    def test_clock_is_set_only_after_a_long_pause(self):
        paused = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER)
        self.useFixture(fixtures.MockPatch(
            'oslo_utils.timeutils.now', lambda: now))
        now = 0
        for seconds, is_set in ((0.9, False), (1.1, True)):
            with self.subTest(seconds):
                self.guest.state.return_value = (
                    libvirt.VIR_DOMAIN_RUNNING, 0)
                self.limit.pause(self.guest)
                self.guest.state.return_value = paused
                now += seconds
                self.limit.remove(self.guest)
                self.assertEqual(is_set, self.guest.sync_guest_time.called)

    def test_clock_is_set_after_the_pause_of_another_process(self):
        self.limit.pause(self.guest)
        other = write_limit.WriteLimit(self.plan(), self.save)
        other.restore(self.limit.record())
        self.guest.state.return_value = (
            libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER)
        other.remove(self.guest)
        self.guest.sync_guest_time.assert_called_once_with()

    def test_guest_that_is_paused_already_stays_paused(self):
        self.guest.state.return_value = (
            libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER)
        self.limit.pause(self.guest)
        self.limit.remove(self.guest)
        self.guest.pause.assert_not_called()
        self.guest.resume.assert_not_called()

    def paused(self):
        self.limit.pause(self.guest)
        self.guest.state.return_value = (
            libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER)

    def test_process_that_ends_waits_until_its_guest_is_resumed(self):
        self.paused()
        self.assertEqual([self.uuid], self.pauses.stop(0))
        with futures.ThreadPoolExecutor(1) as executor:
            stopped = executor.submit(self.pauses.stop, 60)
            self.limit.remove(self.guest)
            self.assertEqual([], stopped.result())
        self.guest.resume.assert_called_once_with()

    def test_process_that_ends_pauses_no_guest(self):
        self.pauses.stop(0)
        self.assertFalse(self.limit.pause(self.guest))
        self.guest.pause.assert_not_called()
        self.assertFalse(self.limit.is_set)

    def test_process_waits_for_a_guest_that_an_earlier_one_has_paused(self):
        self.paused()
        self.pauses.end(self.uuid)
        self.limit.restore(self.limit.record())
        self.assertEqual([self.uuid], self.pauses.stop(0))

    def test_guest_that_a_user_pauses_after_the_merge_is_not_resumed(self):
        self.limit.lower(self.guest, RATE)
        self.paused()
        self.guest.set_block_tuning.side_effect = base.libvirt_error(1)
        self.assertRaises(libvirt.libvirtError, self.limit.remove, self.guest)
        self.guest.resume.assert_called_once_with()
        self.guest.set_block_tuning.side_effect = self.set
        self.limit.remove(self.guest)
        self.guest.resume.assert_called_once_with()
        self.assertEqual(NONE, self.now)

    def test_nobody_waits_for_a_guest_that_could_not_be_paused(self):
        self.guest.pause.side_effect = base.libvirt_error(1)
        self.assertRaises(
            libvirt.libvirtError, self.limit.pause, self.guest)
        self.limit.remove(self.guest)
        self.limit._save = mock.Mock(side_effect=OSError)
        self.assertRaises(OSError, self.limit.pause, self.guest)
        self.assertEqual([], self.pauses.stop(0))
