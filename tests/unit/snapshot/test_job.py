# SPDX-License-Identifier: Apache-2.0

import contextlib
import functools
import os
from unittest import mock

import libvirt
from nova.compute import task_states
from nova.compute import utils as compute_utils
from nova.compute import vm_states
from nova import exception as nova_exception
from nova import objects
from nova.virt.libvirt import guest as libvirt_guest
from oslo_utils import units

from nova_snapext import cancel
from nova_snapext import checks
from nova_snapext import encode
from nova_snapext import exception
from nova_snapext.hypervisor import privsep
from nova_snapext import journal
from nova_snapext import plan as planning
from nova_snapext import read
from nova_snapext.snapshot import direct
from nova_snapext.snapshot import job
from nova_snapext.snapshot import progress
from nova_snapext.snapshot import properties
from nova_snapext.snapshot import published
from nova_snapext.snapshot import trim
from nova_snapext import strategies
from nova_snapext.strategies import native
from nova_snapext import upload
from tests.unit import base
from tests.unit.snapshot import base as snapshot_base

STREAM = job.stream


class OrderTest(snapshot_base.SnapshotTestCase):

    def test_task_states_frame_freeze_and_stream_in_the_order_of_nova(self):
        self.snapshot()
        self.assertEqual(
            [task_states.IMAGE_PENDING_UPLOAD, 'freeze',
             task_states.IMAGE_UPLOADING, 'stream', 'release'], self.steps)

    def test_first_task_state_expects_the_state_of_its_caller(self):
        # Backup, shelve and image create each set another one before it.
        self.snapshot()
        self.assertEqual(
            [mock.call(task_state=task_states.IMAGE_PENDING_UPLOAD),
             mock.call(task_state=task_states.IMAGE_UPLOADING,
                       expected_state=task_states.IMAGE_PENDING_UPLOAD)],
            self.update_task_state.mock_calls)

    def test_privileged_helper_starts_while_the_plan_is_made(self):
        self.patch(privsep.context, 'start_ahead', lambda: self.step('start'))
        self.driver._image_api.get.side_effect = (
            lambda *_: self.step('plan', self.image))
        self.snapshot()
        self.assertEqual(['start', 'plan'], self.steps[:2])

    def test_disks_in_ceph_need_no_privileged_helper(self):
        self.flags(images_type='rbd', group='libvirt')
        start = self.patch(privsep.context, 'start_ahead')
        self.snapshot()
        start.assert_not_called()

    def test_untracked_task_states_do_not_matter(self):
        # Nova's resize between cells passes a function that does nothing.
        self.update_task_state = lambda *_args, **_kwargs: None
        self.snapshot()
        self.assertEqual(['freeze', 'stream', 'release'], self.steps)

    def test_wait_for_disk_operations_precedes_freeze(self):
        semaphore = mock.Mock()
        semaphore.acquire.side_effect = lambda **_: self.step('turn', True)
        semaphore.release.side_effect = lambda: self.step('next')
        self.patch(compute_utils, 'disk_ops_semaphore', semaphore)
        self.snapshot()
        order = [self.steps.index(step) for step in (
            'turn', 'freeze', 'release', 'next')]
        self.assertEqual(sorted(order), order, self.steps)

    def test_wait_for_a_digest_keeps_neither_disk_nor_turn(self):
        semaphore = mock.Mock()
        semaphore.release.side_effect = lambda: self.step('next')
        self.patch(compute_utils, 'disk_ops_semaphore', semaphore)
        self.patch(direct, 'wait_until_hashed',
                   lambda *_: self.step('digest'))
        self.stream.side_effect = lambda *_: direct.Stored(in_ceph=True)
        self.snapshot()
        self.assertEqual(['freeze', 'release', 'next', 'digest'],
                         [step for step in self.steps if step.islower()
                          and not step.startswith('image_')])

    def test_phases_are_published_while_they_last(self):
        seen = []
        steps = self.steps

        class Steps(list):
            def append(self, step):
                seen.append((step, *(
                    (one.phase, one.strategy) for one in published.running())))
                steps.append(step)

        self.steps = Steps()
        self.snapshot()
        self.assertIn(('freeze', ('freezing', 'backup')), seen)
        self.assertIn(('stream', ('uploading', 'backup')), seen)
        self.assertIn(('release', ('releasing', 'backup')), seen)
        self.assertEqual([], published.running())

    def test_failed_upload_is_not_published_any_more(self):
        self.stream.side_effect = nova_exception.GlanceConnectionFailed(
            server='glance', reason='down')
        self.assertRaises(nova_exception.GlanceConnectionFailed,
                          self.snapshot)
        self.assertEqual([], published.running())

    def test_failed_upload_releases_disk(self):
        self.stream.side_effect = nova_exception.GlanceConnectionFailed(
            server='glance', reason='down')
        self.assertRaises(nova_exception.GlanceConnectionFailed,
                          self.snapshot)
        self.assertEqual('release', self.steps[-1])

    def test_each_step_is_in_the_debug_log(self):
        with self.assertLogs('nova_snapext.snapshot', 'DEBUG') as logs:
            self.snapshot()
        output = '\n'.join(logs.output)
        positions = [output.index(text) for text in (
            'Strategy backup is selected', 'Beginning snapshot of root disk',
            'Task state set to image_pending_upload', 'is frozen, crash',
            'Task state set to image_uploading', 'Root disk vda is released',
            'finished: strategy=backup consistency=crash')]
        self.assertEqual(sorted(positions), positions)


class PlanTest(snapshot_base.SnapshotTestCase):

    def test_metadata_is_that_of_nova(self):
        self.snapshot()
        plan = self.stream.mock_calls[0].args[0]
        self.assertEqual('snap', plan.metadata['name'])
        self.assertEqual('qcow2', plan.metadata['disk_format'])
        self.assertEqual('snapshot',
                         plan.metadata['properties']['image_location'])

    def test_image_properties_describe_the_snapshot(self):
        instance = self.snapshot()
        metadata, informing = self.set_metadata.call_args.args
        plan, frozen, *_ = self.stream.mock_calls[0].args
        self.assertEqual(plan.metadata, metadata)
        self.assertEqual(
            {'snapext_strategy': None, 'snapext_trim': None,
             'snapext_strategy_used': 'backup',
             'snapext_consistency': 'crash',
             'snapext_frozen_at': '2026-11-01T12:00:00.250Z',
             'instance_uuid': instance.uuid},
            informing | properties.of_frozen(frozen))

    def test_refusal_of_nova_s_own_metadata_touches_nothing(self):
        self.set_metadata.side_effect = exception.GlanceRefused(
            server='s', image='i', reason='quota (HTTP 413)')
        error = self.assertRaises(exception.GlanceRefused, self.snapshot)
        self.assertEqual([task_states.IMAGE_PENDING_UPLOAD], self.steps)
        self.discard.assert_called_once()
        self.assertIn(str(error), self.stdlog.logger.output)

    def test_refused_properties_are_not_set_after_the_freeze(self):
        self.refused = frozenset({'snapext_frozen_at'})
        self.snapshot()
        _plan, _frozen, metadata, *_ = self.stream.mock_calls[0].args
        self.assertEqual({'snapext_consistency'}, metadata.informing.keys())

    def test_image_as_it_was_before_the_freeze_is_passed_on(self):
        self.snapshot()
        _plan, _frozen, metadata, *_ = self.stream.mock_calls[0].args
        self.assertIs(self.glance_image.seen, metadata.seen)

    def test_refused_request_touches_nothing(self):
        self.image['properties'] = {'snapext_strategy': 'native'}
        self.assertRaises(exception.StrategyRefused, self.snapshot)
        self.assertEqual([], self.steps)
        self.native.assert_not_called()
        self.set_metadata.assert_not_called()
        self.driver._image_api.update.assert_not_called()

    def test_request_of_flavor_is_followed(self):
        self.snapshot(**{'snapext:strategy': 'native'})
        self.native.assert_called_once()

    def test_unknown_root_disk_touches_nothing(self):
        self.patch(objects.BlockDeviceMappingList, 'get_by_instance_uuid') \
            .return_value.root_bdm.return_value = None
        instance = self.instance()
        instance.root_device_name = '/dev/vdc'
        self.domain.XMLDesc.return_value = snapshot_base.EPHEMERAL_FIRST
        self.assertRaises(exception.RootDiskUnknown, self.snapshot_of,
                          instance)
        self.assertEqual([], self.steps)
        self.native.assert_not_called()
        self.driver._image_api.update.assert_not_called()

    def test_root_disk_may_be_the_second_one(self):
        instance = self.instance()
        instance.root_device_name = '/dev/vdb'
        self.domain.XMLDesc.return_value = snapshot_base.EPHEMERAL_FIRST
        self.snapshot_of(instance)
        self.assertEqual(
            planning.RootDisk('vdb', 'file', '/i/disk', 'qcow2'),
            self.stream.mock_calls[0].args[0].disk)

    def test_auto_never_takes_a_second_disk_by_the_snapshot_of_nova(self):
        # Only Nova's own snapshot can read an encrypted disk.
        self.flags(enabled=True, group='ephemeral_storage_encryption')
        instance = self.instance()
        instance.root_device_name = '/dev/vdb'
        self.domain.XMLDesc.return_value = snapshot_base.EPHEMERAL_FIRST
        error = self.assertRaises(
            exception.StrategyRefused, self.snapshot_of, instance)
        self.assertIn('its root disk is vdb', str(error))
        self.assertEqual([], self.steps)
        self.native.assert_not_called()

    def test_rescued_guest_is_refused(self):
        # It runs from another disk.
        self.assertRaises(nova_exception.InstanceInvalidState,
                          self.snapshot, vm_states.RESCUED)
        self.assertEqual([], self.steps)

    def test_missing_domain_means_instance_not_running(self):
        self.patch(self.driver._host, 'get_guest',
                   mock.Mock(side_effect=nova_exception.InstanceNotFound(
                       instance_id='i')))
        self.assertRaises(nova_exception.InstanceNotRunning, self.snapshot)

    def test_image_deleted_before_the_snapshot_touches_nothing(self):
        self.driver._image_api.get.side_effect = (
            nova_exception.ImageNotFound(image_id='i'))
        self.assertRaises(nova_exception.ImageNotFound, self.snapshot)
        self.assertEqual([], self.steps)


class TrimTest(snapshot_base.SnapshotTestCase):

    def setUp(self):
        super().setUp()
        self.image['properties'] = {'snapext_trim': 'yes'}
        self.trim = self.patch(trim, 'GuestTrim').return_value
        self.trim.run.side_effect = lambda: self.step('trim')

    def test_guest_trims_before_anything_is_frozen_or_journaled(self):
        def run():
            self.step('trim')
            [entry] = journal.entries()
            self.assertEqual([], entry.records)

        self.trim.run.side_effect = run
        self.snapshot()
        self.assertEqual(['trim', task_states.IMAGE_PENDING_UPLOAD, 'freeze'],
                         self.steps[:3])

    def test_guest_trims_before_the_snapshot_of_nova(self):
        self.flags(strategy='native', group='snapext')
        self.native.side_effect = lambda *_args: self.step('native')
        self.snapshot()
        self.assertEqual(['trim', 'native'], self.steps)

    def test_guest_trims_once_although_a_strategy_fails(self):
        self.patch(self.driver.strategies['backup'], 'freeze', mock.Mock(
            side_effect=exception.FreezeFailed(
                strategy='backup', disk='vda', instance='i', reason='r')))
        self.patch(self.driver.strategies['external'], 'unsupported_reason',
                   mock.Mock(return_value=None))
        self.patch(self.driver.strategies['external'], 'freeze', self.freeze)
        self.snapshot()
        self.assertEqual(1, self.steps.count('trim'))

    def test_guest_is_taken_as_it_is_after_the_trim(self):
        # On a connection that works, too, if libvirtd has restarted.
        def run():
            self.domain.isActive.return_value = 0

        self.trim.run.side_effect = run
        self.snapshot()
        self.assertFalse(self.stream.mock_calls[0].args[0].running)

    def test_guest_that_can_not_trim_is_snapshotted(self):
        self.trim.is_possible.return_value = False
        self.snapshot()
        self.trim.run.assert_not_called()
        self.assertIn('freeze', self.steps)

    def test_guest_does_not_trim_unless_that_is_wanted(self):
        self.image['properties'] = {}
        self.snapshot()
        self.trim.is_possible.assert_not_called()

    def test_snapshot_can_be_cancelled_during_the_trim(self):
        # As by the check that runs beside it.
        self.trim.run.side_effect = nova_exception.ImageNotFound(image_id='i')
        self.assertRaises(nova_exception.ImageNotFound, self.snapshot)
        self.assertIn(upload.ImageDeletedCheck,
                      {type(check) for check in self.checks})
        self.assertEqual([], self.steps)
        self.assertEqual([], os.listdir(self.journal))

    def test_refused_request_trims_nothing(self):
        self.image['properties']['snapext_strategy'] = 'native'
        self.assertRaises(exception.StrategyRefused, self.snapshot)
        self.trim.run.assert_not_called()


class AbortTest(snapshot_base.SnapshotTestCase):

    def setUp(self):
        super().setUp()
        self.discard.side_effect = self.record_discard
        self.discard_failure = None
        self.cause = exception.ServiceStopping(instance='i')

    def record_discard(self, _context, image_id, _seen_by_nova):
        self.steps.append(f'discard {image_id}')
        return self.discard_failure

    def cancel(self, *_args):
        self.token.cancel(self.cause)

    def test_check_knows_that_service_user_has_seen_the_image(self):
        self.patch(upload, 'look_as_nova').return_value = lambda: True
        self.snapshot()
        [seen] = {check._seen_by_nova for check in self.checks
                  if isinstance(check, upload.ImageDeletedCheck)}
        self.assertTrue(seen)

    def test_all_checks_run(self):
        self.snapshot()
        self.assertEqual(
            {checks.ServiceStoppingCheck, checks.InstanceDeletedCheck,
             checks.FreeSpaceCheck, upload.ImageDeletedCheck,
             progress.UploadProgress},
            {type(check) for check in self.checks})

    def test_cancellation_before_the_freeze_prevents_it(self):
        self.update_task_state.side_effect = None
        semaphore = mock.Mock()

        def acquire(timeout):
            self.cancel()
            return True

        semaphore.acquire = acquire
        self.patch(compute_utils, 'disk_ops_semaphore', semaphore)
        self.assertRaises(exception.ServiceStopping, self.snapshot)
        self.assertEqual([f'discard {base.IMAGE_ID}'], self.steps)

    def test_lack_of_space_prevents_the_freeze(self):
        self.flags(min_free_disk_mb=10 ** 9, group='snapext')
        error = self.assertRaises(exception.StrategyRefused, self.snapshot)
        self.assertEqual([], self.steps)
        self.assertIn(str(error), self.stdlog.logger.output)

    def test_disk_is_released_before_the_image_is_deleted(self):
        self.stream.side_effect = self.cause
        self.assertRaises(exception.ServiceStopping, self.snapshot)
        self.assertEqual(['release', f'discard {base.IMAGE_ID}'],
                         self.steps[-2:])
        self.assertIn(f'Snapshot aborted: {self.cause}',
                      self.stdlog.logger.output)

    def test_deleted_image_is_not_deleted_again(self):
        self.stream.side_effect = nova_exception.ImageNotFound(image_id='i')
        self.assertRaises(nova_exception.ImageNotFound, self.snapshot)
        self.assertEqual('release', self.steps[-1])

    def test_image_that_can_not_be_deleted_is_reported(self):
        self.discard_failure = 'Glance is away'
        self.stream.side_effect = exception.ImageMismatch(
            image='i', reason='other bytes')
        error = self.assertRaises(exception.IncompleteImageLeft, self.snapshot)
        for part in ('other bytes', 'Glance is away'):
            self.assertIn(part, str(error))

    def test_error_that_nova_s_manager_expects_is_not_replaced(self):
        self.discard_failure = 'Glance is away'
        self.stream.side_effect = nova_exception.InstanceNotFound(
            instance_id='i')
        self.assertRaises(nova_exception.InstanceNotFound, self.snapshot)
        self.assertIn('Glance is away', self.stdlog.logger.output)


class GoOnTest(snapshot_base.SnapshotTestCase):
    """A strategy fails, and nothing was touched."""

    def setUp(self):
        super().setUp()
        for name in ('external', 'internal'):
            self.patch(self.driver.strategies[name], 'freeze', self.freeze)
            self.patch(self.driver.strategies[name], 'unsupported_reason',
                       mock.Mock(return_value=None))
        self.entries = []
        self.discard.side_effect = lambda *_args: self.step('discard')

    def fail(self, name, error=None):
        """Make a strategy fail to freeze."""
        @contextlib.contextmanager
        def freeze(_plan, entry):
            self.entries.append(entry)
            self.steps.append(f'fail {name}')
            raise error or exception.FreezeFailed(
                strategy=name, disk='vda', instance='i',
                reason='bind: Permission denied')
            yield

        self.patch(self.driver.strategies[name], 'freeze', freeze)

    def request(self, text):
        self.flags(strategy=text, group='snapext')

    def test_next_strategy_takes_the_snapshot(self):
        self.fail('backup')
        self.snapshot()
        self.assertEqual(
            [task_states.IMAGE_PENDING_UPLOAD, 'fail backup',
             task_states.IMAGE_PENDING_UPLOAD, 'freeze',
             task_states.IMAGE_UPLOADING, 'stream', 'release'], self.steps)
        [line] = [line for line in self.stdlog.logger.output.splitlines()
                  if 'by the strategy external, and not by' in line]
        self.assertIn('bind: Permission denied', line)

    def test_each_task_state_expects_the_one_before_it(self):
        self.fail('backup')
        self.snapshot()
        self.assertEqual(
            [mock.call(task_state=task_states.IMAGE_PENDING_UPLOAD),
             mock.call(task_state=task_states.IMAGE_PENDING_UPLOAD,
                       expected_state=task_states.IMAGE_PENDING_UPLOAD),
             mock.call(task_state=task_states.IMAGE_UPLOADING,
                       expected_state=task_states.IMAGE_PENDING_UPLOAD)],
            self.update_task_state.mock_calls)

    def test_auto_ends_with_the_snapshot_of_nova(self):
        # As on a host whose AppArmor denies our sockets.
        self.fail('backup')
        self.fail('external')
        self.snapshot()
        self.native.assert_called_once()
        self.assertNotIn('discard', self.steps)

    def test_own_snapshot_of_nova_waits_for_the_digest_of_its_image(self):
        hashed = self.patch(direct, 'wait_until_hashed')
        self.fail('backup')
        self.fail('external')
        self.snapshot()
        hashed.assert_not_called()
        # Only a disk in Ceph may be copied there.
        self.patch(native, 'may_be_direct', lambda _plan: True)
        self.snapshot()
        hashed.assert_called_once()

    def test_journal_has_the_strategy_of_each_attempt(self):
        names = []
        write = journal.JournalEntry.write
        self.patch(journal.JournalEntry, 'write', lambda entry, *args, **kw: (
            names.append(entry.strategy), write(entry, *args, **kw)))
        self.fail('backup')
        self.fail('external')
        self.snapshot()
        self.assertEqual('backup', names[0])
        self.assertEqual({'native'}, set(names[1:]))
        self.assertEqual([], os.listdir(self.journal))

    def test_properties_are_those_of_the_strategy_that_took_it(self):
        self.fail('backup')
        self.snapshot()
        self.assertEqual('external', self.set_metadata.call_args.args[1][
            'snapext_strategy_used'])

    def test_image_is_deleted_once_if_all_fail(self):
        self.request('backup,external')
        self.fail('backup')
        self.fail('external')
        error = self.assertRaises(exception.FreezeFailed, self.snapshot)
        self.assertEqual(1, self.steps.count('discard'))
        self.assertIn('Strategy external could not freeze', str(error))
        self.assertIn('backup: Strategy backup could not', str(error))
        self.assertEqual([], os.listdir(self.journal))

    def test_single_strategy_is_not_replaced(self):
        self.request('backup')
        self.fail('backup')
        error = self.assertRaises(exception.FreezeFailed, self.snapshot)
        self.assertNotIn('No other', str(error))
        self.assertNotIn('freeze', self.steps)

    def test_job_that_begins_in_the_last_moment_is_a_reason_to_go_on(self):
        self.fail('backup', exception.GuestBusy(
            guest='g', instance='i', job='dump'))
        self.snapshot()
        self.assertIn('freeze', self.steps)

    def test_space_that_vanishes_in_the_last_moment_is_a_reason_to_go_on(
            self):
        self.patch(checks.FreeSpaceCheck, 'raise_if_short', mock.Mock(
            side_effect=[exception.InsufficientSpace(
                instance='i', path='/w', free=1, shrinks=0, min_free=2),
                None]))
        self.snapshot()
        self.assertEqual(1, self.steps.count('freeze'))
        self.assertNotIn('discard', self.steps)

    def test_other_failures_end_the_snapshot(self):
        for error in (
                exception.FreezeFailedForGood(
                    strategy='s', disk='vda', instance='i', reason='r'),
                exception.ThawFailed(instance='i', guest='g', reason='r'),
                exception.ReleaseFailed(instance='i', reason='r'),
                exception.JournalFailed(path='/j', reason='r'),
                exception.ServiceStopping(instance='i'),
                nova_exception.InstanceQuiesceFailed(reason='r')):
            with self.subTest(type(error).__name__):
                self.steps.clear()
                self.fail('backup', error)
                self.assertRaises(type(error), self.snapshot)
                self.assertNotIn('freeze', self.steps)
                self.assertEqual(1, self.steps.count('discard'))

    def test_failure_that_leaves_something_ends_the_snapshot(self):
        @contextlib.contextmanager
        def freeze(_plan, entry):
            entry.records.append(journal.JournalRecord('work directory', {},
                                                       False))
            raise exception.FreezeFailed(
                strategy='backup', disk='vda', instance='i', reason='r')
            yield

        self.patch(self.driver.strategies['backup'], 'freeze', freeze)
        self.assertRaises(exception.FreezeFailed, self.snapshot)
        self.assertNotIn('freeze', self.steps)

    def test_failed_upload_is_not_repeated_by_another_strategy(self):
        for error in (exception.GuestBusy(guest='g', instance='i', job='j'),
                      exception.InsufficientSpace(
                          instance='i', path='/w', free=1, shrinks=0,
                          min_free=2)):
            self.steps.clear()
            self.stream.side_effect = error
            self.assertRaises(type(error), self.snapshot)
            self.assertEqual(1, self.steps.count('freeze'))

    def test_cancelled_snapshot_does_not_go_on(self):
        cause = exception.ServiceStopping(instance='i')

        @contextlib.contextmanager
        def freeze(_plan, _entry):
            self.token.cancel(cause)
            raise exception.FreezeFailed(
                strategy='backup', disk='vda', instance='i', reason='r')
            yield

        self.patch(self.driver.strategies['backup'], 'freeze', freeze)
        self.assertRaises(exception.ServiceStopping, self.snapshot)
        self.assertNotIn('freeze', self.steps)

    def test_guest_that_shuts_off_before_the_freeze_is_taken_as_it_is(self):
        self.driver.strategies['external'].unsupported_reason.side_effect = (
            lambda plan: None if plan.running else 'off')

        def shut_off(*_args):
            self.domain.isActive.return_value = 0
            raise exception.FreezeFailed(
                strategy='backup', disk='vda', instance='i', reason='r')

        self.patch(self.driver.strategies['backup'], 'freeze', shut_off)
        self.snapshot()
        self.assertFalse(self.stream.mock_calls[0].args[0].running)

    def test_guest_that_shuts_off_before_the_freeze_is_the_cause(self):
        self.request('backup')

        def shut_off(*_args):
            self.domain.isActive.return_value = 0
            raise exception.FreezeFailed(
                strategy='backup', disk='vda', instance='i', reason='r')

        self.patch(self.driver.strategies['backup'], 'freeze', shut_off)
        error = self.assertRaises(exception.GuestStopped, self.snapshot)
        self.assertIsInstance(error.__cause__, exception.FreezeFailed)


class WaitTest(snapshot_base.SnapshotTestCase):
    """Something happens while a snapshot waits for others."""

    def setUp(self):
        super().setUp()
        self.patch(job, 'MAX_WAIT', 0)
        self.taken = []
        self.entries = []
        for name, running in (
                ('backup', {True}), ('external', {True}),
                ('cold', {True, False})):
            strategy = self.driver.strategies[name]
            self.patch(strategy, 'freeze',
                       functools.partial(self.freeze_by, name))
            self.patch(strategy, 'unsupported_reason', functools.partial(
                self.reason, running))

    @contextlib.contextmanager
    def freeze_by(self, name, plan, entry):
        self.taken.append((name, plan.running))
        self.entries.append(entry)
        with self.freeze(plan, entry) as frozen:
            yield frozen

    def reason(self, running, plan):
        return None if plan.running in running else 'its state'

    def during_wait(self, action):
        """Call a function during the first wait."""
        left = [action]
        semaphore = mock.MagicMock(spec=['__enter__', '__exit__'])
        semaphore.__enter__.side_effect = lambda: left and left.pop()()
        semaphore.__exit__.return_value = None
        self.patch(compute_utils, 'disk_ops_semaphore', semaphore)

    def set_active(self, active):
        self.domain.isActive.return_value = active

    def test_guest_shut_off_during_the_wait_is_taken_as_it_is_now(self):
        self.during_wait(lambda: self.set_active(0))
        self.snapshot()
        self.assertEqual([('cold', False)], self.taken)

    def test_guest_started_during_the_wait_is_not_suspended(self):
        self.set_active(0)
        self.during_wait(lambda: self.set_active(1))
        self.snapshot()
        self.assertEqual([('backup', True)], self.taken)

    def test_request_that_would_suspend_a_guest_that_was_started_fails(self):
        self.flags(strategy='cold', group='snapext')
        self.set_active(0)
        self.during_wait(lambda: self.set_active(1))
        error = self.assertRaises(exception.FreezeFailed, self.snapshot)
        self.assertIn('it would stop the guest', str(error))
        self.assertEqual([], self.taken)

    def test_journal_has_the_root_disk_as_it_is_after_the_wait(self):
        def commit():
            xml = self.domain.XMLDesc.return_value
            self.domain.XMLDesc.return_value = xml.replace(
                '/i/disk', '/i/base')

        self.during_wait(commit)
        self.snapshot()
        self.assertEqual(['/i/base'], [
            entry.disk.path for entry in self.entries])

    def test_suspension_is_no_surprise_to_a_guest_that_ran_before(self):
        self.flags(strategy='cold', group='snapext')
        self.during_wait(lambda: None)
        self.snapshot()
        self.assertEqual([('cold', True)], self.taken)

    def test_libvirtd_that_restarted_during_the_wait_does_not_matter(self):
        def restart():
            for call in ('isActive', 'XMLDesc', 'state'):
                getattr(self.domain, call).side_effect = (
                    libvirt.libvirtError('client socket is closed'))
            self.patch(self.driver._host, 'get_guest',
                       lambda _instance: libvirt_guest.Guest(after))

        after = mock.MagicMock()
        after.XMLDesc.return_value = self.domain.XMLDesc.return_value
        after.isActive.return_value = 1
        self.during_wait(restart)
        self.snapshot()
        self.assertEqual([('backup', True)], self.taken)
        self.assertIs(after, self.stream.mock_calls[0].args[0].guest._domain)

    def test_plan_is_not_made_again_without_a_wait(self):
        self.patch(job, 'MAX_WAIT', 60)
        self.snapshot()
        self.driver._image_api.get.assert_called_once()


class StreamTest(snapshot_base.SnapshotTestCase):

    def setUp(self):
        super().setUp()
        self.open = self.patch(read, 'Disk')
        self.disk = self.open.return_value
        self.encoder = self.patch(encode, 'encoder').return_value
        self.encoder.__exit__.return_value = None
        self.disk.__exit__.return_value = None
        self.upload = self.patch(upload, 'upload')
        self.stream.side_effect = STREAM
        self.cause = exception.ServiceStopping(instance='i')

    def test_upload_sets_formats_and_what_was_unknown_before(self):
        self.snapshot()
        _context, image_id, metadata, *_ = self.upload.call_args.args
        self.assertEqual(base.IMAGE_ID, image_id)
        self.assertEqual({'disk_format': 'qcow2', 'container_format': 'bare'},
                         metadata.attributes)
        self.assertEqual(
            {'snapext_consistency': 'crash',
             'snapext_frozen_at': '2026-11-01T12:00:00.250Z'},
            metadata.informing)

    def test_upload_leaves_out_what_glance_has_refused(self):
        self.refused = frozenset({'snapext_frozen_at'})
        self.snapshot()
        self.assertEqual({'snapext_consistency': 'crash'},
                         self.upload.call_args.args[2].informing)

    def test_rate_limit_is_in_mib_per_second(self):
        self.flags(read_timeout=7, read_rate_limit_mbps=3, group='snapext')
        self.snapshot()
        self.open.assert_called_once_with(
            'nbd:', 7, 3 * units.Mi, None, mock.ANY)
        self.assertIsNone(self.open.call_args.args[4]())

    def test_cancellation_ends_the_search_for_extents_too(self):
        extents = mock.Mock()
        frozen = strategies.FrozenDisk(
            'nbd:', strategies.Consistency.CRASH, 0.03, extents=extents)
        token = cancel.CancelToken()
        STREAM(self.plan(), frozen, upload.Metadata({}, {}), token,
               mock.Mock())
        self.open.call_args.args[3]()
        extents.assert_called_once_with(token)

    def test_cancellation_aborts_disk_and_encoder(self):
        def cancel(*_args):
            self.token.cancel(self.cause)
            self.disk.abort.assert_called_once_with()
            self.encoder.abort.assert_called_once_with()
            raise exception.DiskReadError(disk='vda', reason='aborted')

        self.upload.side_effect = cancel
        self.assertRaises(exception.ServiceStopping, self.snapshot)

    def test_cancellation_after_the_upload_does_not_fail_the_snapshot(self):
        self.upload.side_effect = lambda *_args: self.token.cancel(self.cause)
        self.snapshot()
