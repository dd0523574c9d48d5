# SPDX-License-Identifier: Apache-2.0

import contextlib
import datetime
import functools
from unittest import mock

import libvirt
from nova.compute import power_state
from nova.compute import task_states
from nova.compute import utils as compute_utils
from nova.compute import vm_states
from nova import exception as nova_exception
from nova.image import glance
from nova import objects
from nova.virt import fake
from nova.virt.libvirt import driver as nova_driver
from nova.virt.libvirt import guest as libvirt_guest
import oslo_messaging

from nova_snapext import driver
from nova_snapext import encode
from nova_snapext import exception
from nova_snapext import freeze
from nova_snapext.freeze import jobs
from nova_snapext import monitor
from nova_snapext import progress
from nova_snapext import properties
from nova_snapext import read
from nova_snapext import report
from nova_snapext import upload
from nova_snapext.upload import glance as upload_glance
from tests.unit import base

DOMAIN = """
<domain type='qemu'><os><type>hvm</type></os><devices>
  <disk type='file' device='disk'>
    <driver name='qemu' type='{}'/><source file='/i/disk'/>
    <target dev='vda' bus='virtio'/>
  </disk>
</devices></domain>
"""


class SnapshotTestCase(base.TestCase):

    def setUp(self):
        super().setUp()
        self.flags(virt_type='qemu', group='libvirt')
        self.driver = driver.SnapextDriver(fake.FakeVirtAPI(), read_only=True)
        self.domain = mock.MagicMock()
        self.domain.XMLDesc.return_value = DOMAIN.format('qcow2')
        self.domain.isActive.return_value = 1
        self.domain.info.return_value = [libvirt.VIR_DOMAIN_RUNNING] * 5
        self.domain.jobStats.return_value = {
            'type': libvirt.VIR_DOMAIN_JOB_NONE}
        self.domain.blockJobInfo.return_value = {}
        self.steps = []
        self.update_task_state = mock.Mock(
            side_effect=lambda task_state, **_expected:
                self.steps.append(task_state))
        self.image = {'id': base.IMAGE_ID, 'name': 'snap', 'properties': {}}
        self.glance = self.patch(glance.GlanceClientWrapper, 'call')
        self.native = self.patch(nova_driver.LibvirtDriver, 'snapshot')
        self.patch(self.driver._host, 'get_guest',
                   lambda _instance: libvirt_guest.Guest(self.domain))
        self.patch(self.driver, '_image_api').get.return_value = self.image
        self.patch(upload_glance, 'discard').return_value = None
        self.stream = self.patch(self.driver, '_stream')
        self.stream.side_effect = lambda *_: self.step('stream', (1, 2))
        for name in ('backup', 'cold'):
            self.patch(self.driver._strategies[name], 'freeze', self.freeze)
        self.event = self.patch(objects, 'InstanceActionEvent')
        self.looks = []
        self.patch(monitor, 'watched', self.watched)
        self.released = False

    def patch(self, target, name, *value):
        patch = mock.patch.object(target, name, *value)
        self.addCleanup(patch.stop)
        return patch.start()

    def step(self, name, result=None):
        self.steps.append(name)
        return result

    @contextlib.contextmanager
    def watched(self, look, _interval, switch, _instance):
        self.switch = switch
        self.looks.append(look)
        yield

    @contextlib.contextmanager
    def freeze(self, plan, entry):
        self.steps.append('freeze')
        try:
            yield freeze.FrozenDisk(
                'nbd:', freeze.Consistency.CRASH, 0.03,
                datetime.datetime(2026, 11, 1, 12, 0, 0, 250000))
        finally:
            self.steps.append('release')

    def snapshot(self, vm_state=None, **extra_specs):
        instance = self.instance()
        instance.save = mock.Mock()
        instance.vm_state = vm_state
        instance.flavor.extra_specs = extra_specs
        self.driver.snapshot(None, instance, base.IMAGE_ID,
                             self.update_task_state)
        return instance


class SnapshotTest(SnapshotTestCase):

    def test_task_states_come_in_nova_s_order_around_freeze_and_stream(self):
        self.snapshot()
        self.assertEqual(
            [task_states.IMAGE_PENDING_UPLOAD, 'freeze',
             task_states.IMAGE_UPLOADING, 'stream', 'release'], self.steps)

    def test_the_first_task_state_expects_what_its_caller_does(self):
        # Backup, shelve and image create each have another one before it.
        self.snapshot()
        self.assertEqual(
            [mock.call(task_state=task_states.IMAGE_PENDING_UPLOAD),
             mock.call(task_state=task_states.IMAGE_UPLOADING,
                       expected_state=task_states.IMAGE_PENDING_UPLOAD)],
            self.update_task_state.mock_calls)

    def test_the_disk_waits_unfrozen_for_its_turn_at_disk_operations(self):
        semaphore = mock.MagicMock()
        semaphore.__enter__.side_effect = lambda: self.step('turn')
        self.patch(compute_utils, 'disk_ops_semaphore', semaphore)
        self.snapshot()
        self.assertLess(self.steps.index('turn'), self.steps.index('freeze'))

    def test_an_upload_that_fails_releases_the_disk(self):
        self.stream.side_effect = nova_exception.GlanceConnectionFailed(
            server='glance', reason='down')
        self.assertRaises(nova_exception.GlanceConnectionFailed,
                          self.snapshot)
        self.assertEqual('release', self.steps[-1])

    def test_metadata_is_nova_s_own(self):
        self.snapshot()
        plan = self.stream.mock_calls[0].args[0]
        self.assertEqual('snap', plan.metadata['name'])
        self.assertEqual('qcow2', plan.metadata['disk_format'])
        self.assertEqual('snapshot',
                         plan.metadata['properties']['image_location'])

    def test_the_image_tells_how_it_was_made(self):
        instance = self.snapshot()
        plan, strategy, frozen, *_ = self.stream.mock_calls[0].args
        self.assertEqual(
            {'snapshot_strategy': 'backup', 'snapshot_consistency': 'crash',
             'snapshot_instant': '2026-11-01T12:00:00.250Z',
             'instance_uuid': instance.uuid},
            properties.of_snapshot(strategy.name, plan.instance.uuid, frozen))

    def test_what_tells_of_another_is_taken_off_before_nova_s_own(self):
        self.flags(requestable=['native'], group='snapext')
        self.image['properties'] = {
            'snapext_strategy': 'native', 'snapshot_consistency': 'offline',
            'os_type': 'linux'}
        self.snapshot()
        self.native.assert_called_once()
        self.glance.assert_called_once_with(
            None, 2, 'update', args=(base.IMAGE_ID,), kwargs={
                'remove_props': ['snapext_strategy', 'snapshot_consistency']})

    def test_with_nothing_to_take_off_glance_is_not_asked_to(self):
        self.domain.XMLDesc.return_value = DOMAIN.format('ploop')
        self.snapshot()
        self.native.assert_called_once()
        self.glance.assert_not_called()

    def test_what_is_not_served_goes_to_nova_and_says_why(self):
        self.domain.XMLDesc.return_value = DOMAIN.format('ploop')
        self.snapshot()
        self.native.assert_called_once_with(
            None, mock.ANY, base.IMAGE_ID, mock.ANY)
        self.assertEqual([], self.steps)
        self.assertIn("backup: images of the format ploop are Nova's to make",
                      self.stdlog.logger.output)
        self.driver._image_api.update.assert_called_once_with(
            None, base.IMAGE_ID,
            {'properties': {'snapshot_strategy': 'native'}},
            purge_props=False)

    def test_what_is_refused_touches_nothing_and_the_user_sees_why(self):
        self.image['properties'] = {'snapext_strategy': 'native'}
        error = self.assertRaises(exception.StrategyRefused, self.snapshot)
        self.assertEqual([], self.steps)
        self.native.assert_not_called()
        self.glance.assert_not_called()
        self.driver._image_api.update.assert_not_called()
        for call, name in zip(
                self.event.event_finish_with_failure.mock_calls,
                (str(error)[:255], report.EVENT), strict=True):
            self.assertEqual(name, call.args[2])
            self.assertEqual(error, call.kwargs['exc_val'])
        self.assertIn(str(error), self.stdlog.logger.output)

    def test_a_flavor_s_wish_is_followed(self):
        self.snapshot(**{'snapext:strategy': 'native'})
        self.native.assert_called_once()

    def test_the_event_of_a_snapshot_ends_with_it(self):
        self.snapshot()
        instance = mock.ANY
        self.event.event_start.assert_called_once_with(
            None, instance, report.EVENT, want_result=False,
            host=self.CONF.host)
        finish = self.event.event_finish_with_failure
        self.assertIsNone(finish.mock_calls[0].kwargs['exc_val'])

    def test_a_request_without_an_action_is_served_all_the_same(self):
        # As Nova's periodic tasks and its resize between cells make.
        self.event.event_start.side_effect = (
            nova_exception.InstanceActionNotFound(
                request_id='r', instance_uuid='i'))
        self.snapshot()
        self.assertEqual('release', self.steps[-1])

    def test_task_states_that_are_not_tracked_do_not_matter(self):
        # Nova's resize between cells gives a function that does nothing.
        self.update_task_state = lambda *_args, **_kwargs: None
        self.snapshot()
        self.assertEqual(['freeze', 'stream', 'release'], self.steps)

    def test_a_rescued_guest_s_first_disk_is_not_its_root_disk(self):
        self.assertRaises(nova_exception.InstanceInvalidState,
                          self.snapshot, vm_states.RESCUED)
        self.assertEqual([], self.steps)

    def test_a_domain_that_is_not_there_is_an_instance_not_running(self):
        self.patch(self.driver._host, 'get_guest',
                   mock.Mock(side_effect=nova_exception.InstanceNotFound(
                       instance_id='i')))
        self.assertRaises(nova_exception.InstanceNotRunning, self.snapshot)

    def test_an_image_that_was_deleted_before_touches_nothing(self):
        self.driver._image_api.get.side_effect = (
            nova_exception.ImageNotFound(image_id='i'))
        self.assertRaises(nova_exception.ImageNotFound, self.snapshot)
        self.assertEqual([], self.steps)

    def test_what_failed_is_logged_with_its_cause(self):
        self.stream.side_effect = exception.ImageMismatch(
            image='i', reason='other bytes')
        self.assertRaises(exception.ImageMismatch, self.snapshot)
        self.assertIn('Snapshot into image',
                      self.stdlog.logger.output)
        self.assertIn('other bytes', self.stdlog.logger.output)

    def test_a_domain_that_vanishes_meanwhile_is_an_instance_not_found(self):
        error = libvirt.libvirtError('gone')
        error.err = (libvirt.VIR_ERR_NO_DOMAIN, 0, '', 0, None, None, None,
                     0, 0)
        self.stream.side_effect = error
        self.assertRaises(nova_exception.InstanceNotFound, self.snapshot)

    def test_a_read_error_is_one_unless_the_guest_has_vanished(self):
        self.stream.side_effect = exception.DiskReadError(
            disk='vda', reason='cut')
        exists = self.patch(self.driver, 'instance_exists')
        exists.return_value = True
        self.assertRaises(exception.DiskReadError, self.snapshot)
        exists.return_value = False
        self.assertRaises(nova_exception.InstanceNotFound, self.snapshot)


class GiveUpTest(SnapshotTestCase):

    def setUp(self):
        super().setUp()
        self.patch(upload_glance, 'discard', self.discard)
        self.left = None
        self.cause = exception.ServiceStopping(instance='i')

    def discard(self, _context, _image_api, image_id):
        self.steps.append(f'discard {image_id}')
        return self.left

    def trip(self, *_args):
        self.switch.trip(self.cause)

    def test_all_that_may_end_it_is_looked_at(self):
        self.snapshot()
        self.assertEqual(
            {monitor.ServiceLook, monitor.InstanceLook, monitor.SpaceLook,
             upload.ImageLook, progress.Progress},
            {type(look) for look in self.looks})

    def test_before_the_freeze_it_is_not_begun(self):
        self.update_task_state.side_effect = None
        semaphore = mock.MagicMock()
        semaphore.__enter__.side_effect = self.trip
        self.patch(compute_utils, 'disk_ops_semaphore', semaphore)
        self.assertRaises(exception.ServiceStopping, self.snapshot)
        self.assertEqual([f'discard {base.IMAGE_ID}'], self.steps)

    def test_without_space_it_is_not_begun(self):
        self.flags(space_headroom=10 ** 9, group='snapext')
        error = self.assertRaises(exception.NoSpaceLeft, self.snapshot)
        self.assertNotIn('freeze', self.steps)
        self.assertIn(str(error), self.stdlog.logger.output)

    def test_the_disk_is_released_before_the_image_is_deleted(self):
        self.stream.side_effect = self.cause
        self.assertRaises(exception.ServiceStopping, self.snapshot)
        self.assertEqual(['release', f'discard {base.IMAGE_ID}'],
                         self.steps[-2:])
        self.assertIn(f'Snapshot given up: {self.cause}',
                      self.stdlog.logger.output)

    def test_an_image_that_was_deleted_is_not_deleted_again(self):
        self.stream.side_effect = nova_exception.ImageNotFound(image_id='i')
        self.assertRaises(nova_exception.ImageNotFound, self.snapshot)
        self.assertEqual('release', self.steps[-1])

    def test_an_image_that_can_not_be_deleted_is_told_of(self):
        self.left = 'Glance is away'
        self.stream.side_effect = exception.ImageMismatch(
            image='i', reason='other bytes')
        error = self.assertRaises(exception.ImageLeft, self.snapshot)
        for part in ('other bytes', 'Glance is away', 'must not be used'):
            self.assertIn(part, str(error))

    def test_what_nova_s_manager_waits_for_stays_what_it_is(self):
        self.left = 'Glance is away'
        self.stream.side_effect = nova_exception.InstanceNotFound(
            instance_id='i')
        self.assertRaises(nova_exception.InstanceNotFound, self.snapshot)
        self.assertIn('must not be used', self.stdlog.logger.output)


class LostDiskTest(SnapshotTestCase):

    def setUp(self):
        super().setUp()
        self.stream.side_effect = exception.DiskReadError(
            disk='vda', reason='cut')
        self.found = self.patch(objects.Instance, 'get_by_uuid')
        self.found.return_value.task_state = task_states.IMAGE_UPLOADING
        self.patch(self.driver, 'instance_exists').return_value = True
        self.awaited = self.patch(jobs, 'event_awaited').return_value
        self.await_end = self.awaited.__enter__.return_value

    def test_of_a_guest_that_was_shut_off_says_so(self):
        self.stream.side_effect = self.shut_off
        self.assertRaises(exception.GuestStopped, self.snapshot)

    def shut_off(self, *_args):
        self.domain.isActive.return_value = 0
        raise exception.DiskReadError(disk='vda', reason='cut')

    def test_of_one_that_libvirt_has_not_missed_yet_says_so(self):
        self.await_end.side_effect = lambda _timeout: (
            self.domain.isActive.configure_mock(return_value=0))
        self.assertRaises(exception.GuestStopped, self.snapshot)

    def test_of_one_that_is_being_deleted_is_no_error(self):
        self.found.return_value.task_state = task_states.DELETING
        self.assertRaises(nova_exception.UnexpectedDeletingTaskStateError,
                          self.snapshot)

    def test_of_one_that_runs_on_stays_what_it_is(self):
        self.assertRaises(exception.DiskReadError, self.snapshot)

    def test_stays_what_it_is_where_the_guest_can_not_be_looked_at(self):
        self.found.side_effect = oslo_messaging.MessagingTimeout()
        self.assertRaises(exception.DiskReadError, self.snapshot)


class StreamTest(SnapshotTestCase):

    def setUp(self):
        super().setUp()
        self.disk = self.patch(read, 'Disk').return_value
        self.encoder = self.patch(encode, 'encoder').return_value
        self.encoder.__exit__.return_value = None
        self.disk.__exit__.return_value = None
        self.upload = self.patch(upload, 'upload')
        self.stream.side_effect = functools.partial(
            driver.SnapextDriver._stream, self.driver)
        self.cause = exception.ServiceStopping(instance='i')

    def test_what_asked_for_it_is_taken_off_with_the_metadata(self):
        self.snapshot()
        _context, image, metadata, removed, *_ = self.upload.call_args.args
        self.assertEqual(base.IMAGE_ID, image)
        self.assertEqual('backup',
                         metadata['properties']['snapshot_strategy'])
        self.assertEqual(('snapext_strategy',), tuple(removed))

    def test_what_reads_and_encodes_is_ended_with_the_rest(self):
        def trip(*_args):
            self.switch.trip(self.cause)
            self.disk.abort.assert_called_once_with()
            self.encoder.abort.assert_called_once_with()
            raise exception.DiskReadError(disk='vda', reason='aborted')

        self.upload.side_effect = trip
        self.assertRaises(exception.ServiceStopping, self.snapshot)

    def test_an_upload_that_was_through_already_is_not_given_up(self):
        self.upload.side_effect = lambda *_args: self.switch.trip(self.cause)
        self.snapshot()


class LostConnectionTest(SnapshotTestCase):
    """libvirt calls back in the thread that finds its connection lost."""

    def test_whoever_finds_it_lost_gets_a_new_one(self):
        host = self.driver._host
        host._wrapped_conn = lost = mock.Mock()
        new = self.patch(host, '_get_new_connection')

        def break_off():
            host._close_callback(lost, 1, None)
            error = libvirt.libvirtError('Connection reset by peer')
            error.err = (libvirt.VIR_ERR_INTERNAL_ERROR,
                         libvirt.VIR_FROM_RPC, *[None] * 7)
            raise error

        lost.getLibVersion.side_effect = break_off
        self.assertIs(new.return_value, host._get_connection())


class DirectSnapshotTest(SnapshotTestCase):
    """An RBD disk, which Nova may snapshot within Ceph."""

    def setUp(self):
        super().setUp()
        self.domain.XMLDesc.return_value = DOMAIN.format('raw').replace(
            "type='file'", "type='network'").replace(
            "<source file='/i/disk'/>",
            "<source protocol='rbd' name='vms/i_disk'/>")
        self.native.side_effect = self.nova_s_own
        self.suspend = self.patch(self.driver, 'suspend')

    def nova_s_own(self, _context, instance, _image_id, update_task_state):
        """What it does when the direct snapshot is refused."""
        update_task_state(task_state=task_states.IMAGE_PENDING_UPLOAD)
        update_task_state(task_state=task_states.IMAGE_UPLOADING,
                          expected_state=task_states.IMAGE_PENDING_UPLOAD)
        update_task_state(task_state=task_states.IMAGE_PENDING_UPLOAD,
                          expected_state=task_states.IMAGE_UPLOADING)
        self.driver._suspend_guest_for_snapshot(
            None, False, power_state.RUNNING, instance)

    def test_a_direct_snapshot_is_nova_s_own(self):
        self.native.side_effect = None
        self.snapshot()
        self.native.assert_called_once()
        self.stream.assert_not_called()

    def test_instead_of_suspending_the_guest_it_is_backed_up(self):
        self.snapshot()
        self.suspend.assert_not_called()
        strategy = self.stream.mock_calls[0].args[1]
        self.assertEqual('backup', strategy.name)

    def test_each_task_state_expects_the_one_before_it(self):
        self.snapshot()
        state = None
        for call in self.update_task_state.mock_calls:
            if state is not None:
                self.assertEqual(state, call.kwargs['expected_state'])
            state = call.kwargs['task_state']
        self.assertEqual(task_states.IMAGE_UPLOADING, state)

    def test_where_nova_s_own_is_asked_for_it_may_suspend(self):
        self.flags(strategy='native', group='snapext')
        self.snapshot()
        self.suspend.assert_called_once()
        self.stream.assert_not_called()

    def test_the_next_suspend_of_the_instance_is_allowed_again(self):
        instance = self.snapshot()
        self.driver._suspend_guest_for_snapshot(
            None, False, power_state.RUNNING, instance)
        self.suspend.assert_called_once()
