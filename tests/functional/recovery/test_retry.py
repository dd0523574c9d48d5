# SPDX-License-Identifier: Apache-2.0
"""What a snapshot has left is cleaned up by itself, without a restart."""

import contextlib
import os
from unittest import mock

import libvirt
from nova.compute import task_states
from nova.compute import vm_states
from nova import exception as nova_exception
from nova.virt.libvirt import driver as nova_driver
from oslo_utils.fixture import uuidsentinel as uuids

from nova_snapext import conf
from nova_snapext import exception
from nova_snapext import journal
from nova_snapext.recovery import recover
from nova_snapext.recovery import schedule
from nova_snapext.recovery import state
from nova_snapext.resources import image as image_resource
from nova_snapext.snapshot import action_event
from nova_snapext.snapshot import direct
from nova_snapext.snapshot import job
from nova_snapext.snapshot import progress
from nova_snapext import upload
from tests.functional.recovery import test_background
from tests.functional.recovery import test_recover

BEFORE, AFTER, LIMIT = (
    test_recover.BEFORE, test_recover.AFTER, test_background.LIMIT)


class RetryTestCase(test_background.BackgroundTestCase):

    def setUp(self):
        super().setUp()
        # Nothing but an event is a reason to try again.
        conf.CONF.set_override('recovery_interval', 3600, 'snapext')
        self.addCleanup(
            conf.CONF.clear_override, 'recovery_interval', 'snapext')
        self.patch(schedule, 'OWN_EVENTS', 0)
        self.start()
        self.driver._job_events.register()
        self.deleted = mock.Mock()
        self.fake_services()

    def fake_services(self):
        """Replace Glance and Nova's database."""
        self.patch(self.driver, '_image_api', mock.Mock())
        self.driver._image_api.get.return_value = {
            'id': uuids.image, 'name': 'snap', 'properties': {}}
        self.patch(self.driver, '_create_snapshot_metadata',
                   lambda *_args: {'properties': {}, 'disk_format': 'qcow2',
                                   'container_format': 'bare'})
        glance_image = mock.MagicMock()
        glance_image.__enter__.return_value.set_metadata.return_value = (
            frozenset())
        glance_image.__exit__.return_value = None
        self.patch(upload, 'GlanceImage', lambda *_args: glance_image)
        self.patch(image_resource, 'delete', self.deleted)
        check = mock.Mock()
        check.return_value.run.return_value = None
        self.patch(upload, 'ImageDeletedCheck', check)
        self.patch(progress, 'UploadProgress', check)
        self.patch(action_event, 'report',
                   lambda *_args: contextlib.nullcontext())

    def running(self):
        disk = self.qcow2()
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        plan.instance.task_state = task_states.IMAGE_SNAPSHOT
        plan.instance.vm_state = vm_states.ACTIVE
        plan.instance.flavor = mock.Mock(extra_specs={})
        plan.instance.save = mock.Mock()
        self.get.return_value = plan.instance
        return plan

    def snapshot(self, plan, during_upload):
        """Take a snapshot by the driver, with the strategy external.

        :param during_upload: called while the disk is frozen
        """
        def stream(*_args):
            self.write_as_guest(plan, AFTER)
            during_upload()
            return direct.Stored(1, 2)

        conf.CONF.set_override('strategy', 'external', 'snapext')
        self.addCleanup(conf.CONF.clear_override, 'strategy', 'snapext')
        with mock.patch.object(job, 'stream', stream):
            self.driver.snapshot(None, plan.instance, uuids.image,
                                 lambda **_states: None)

    def copy(self, plan):
        """Start somebody's copy of the root disk, which never ends."""
        plan.guest._domain.blockCopy(
            'vda', f'<disk><source file="{self.images / "copy"}"/>'
                   f'<driver type="qcow2"/></disk>', {},
            libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB)

    def left_by_a_job(self):
        """Take a snapshot, and leave its overlay because of a job."""
        plan = self.running()
        self.before = self.definitions(plan)
        self.snapshot(plan, lambda: self.copy(plan))
        self.assertEqual(str(self.overlay_of(plan)), self.live_chain(plan)[0])
        return plan

    def assert_recovered_by_itself(self, plan):
        self.assertTrue(self.recovered.wait(LIMIT))
        self.assertEqual([], self.driver.gate.wait(LIMIT))
        self.assert_merged(plan)


class ForeignJobTest(RetryTestCase):

    def test_image_stays_and_overlay_is_merged_when_the_job_ends(self):
        plan = self.left_by_a_job()
        self.deleted.assert_not_called()
        self.assertEqual([], journal.images())
        self.assertEqual(['overlay'], [
            record.kind for record
            in journal.find(plan.instance.uuid).records])
        self.assertFalse(self.recovered.is_set())
        plan.guest._domain.blockJobAbort('vda')
        self.assert_recovered_by_itself(plan)

    def test_job_that_ends_before_the_snapshot_is_merged_after_it(self):
        plan = self.running()
        keep = job.completion.keep_complete_image

        @contextlib.contextmanager
        def keep_and_end_job(*args):
            with keep(*args) as completed:
                yield completed
            plan.guest._domain.blockJobAbort('vda')

        self.patch(job.completion, 'keep_complete_image', keep_and_end_job)
        self.snapshot(plan, lambda: self.copy(plan))
        self.assert_recovered_by_itself(plan)

    def test_job_that_fails_is_an_end_too(self):
        plan = self.left_by_a_job()
        plan.guest._domain.blockJobAbort(
            'vda', libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_ASYNC)
        self.assert_recovered_by_itself(plan)

    def test_stop_of_the_guest_merges_offline(self):
        plan = self.left_by_a_job()
        # Nova's Host reports it after 15 seconds.
        self.driver.power_off(plan.instance)
        self.assert_recovered_by_itself(plan)

    def test_next_snapshot_merges_it_first(self):
        plan = self.left_by_a_job()
        self.driver.gate.stop_retries()
        plan.guest._domain.blockJobAbort('vda')
        self.snapshot(plan, lambda: None)
        self.assert_merged(plan)


class PeriodicTest(RetryTestCase):

    def test_what_has_no_event_is_merged_by_the_periodic_look(self):
        plan = self.running()
        directory = self.images / plan.instance.uuid
        away = directory.with_suffix('.away')

        self.snapshot(plan, lambda: os.rename(directory, away))
        self.assertTrue(journal.find(plan.instance.uuid))
        self.deleted.assert_not_called()
        os.rename(away, directory)
        self.driver.gate.stop_retries()
        conf.CONF.set_override('recovery_interval', 1, 'snapext')
        self.driver.gate.start_retries()
        self.assertTrue(self.recovered.wait(LIMIT))
        self.assertEqual([], self.driver.gate.wait(LIMIT))
        self.assert_merged(plan)

    def test_retries_do_not_fill_the_log(self):
        plan = self.left_by_a_job()
        for number in range(3):
            with self.assertLogs(recover.LOG.logger, 'DEBUG') as logs:
                self.assertFalse(recover.recover_instance(
                    self.driver, plan.instance.uuid))
            self.assertEqual(
                number == 0,
                'ERROR' in {record.levelname for record in logs.records})
        plan.guest._domain.blockJobAbort('vda')
        self.assert_recovered_by_itself(plan)


class RefusedFirstTest(RetryTestCase):
    """Operations that would lose the guest or its disk before a refusal."""

    def setUp(self):
        super().setUp()
        self.put_back = mock.Mock()
        self.patch(state, 'put_back', self.put_back)

    def assert_untouched(self, plan):
        self.assertEqual(libvirt.VIR_DOMAIN_RUNNING,
                         plan.guest._domain.state()[0])
        self.assertEqual(str(self.overlay_of(plan)), self.live_chain(plan)[0])

    def finish(self, plan):
        self.recovered.clear()
        plan.guest._domain.blockJobAbort('vda')
        self.assert_recovered_by_itself(plan)

    def test_rescue_and_shelve_are_refused_while_the_guest_runs(self):
        plan = self.left_by_a_job()
        for task_state in (task_states.RESCUING, task_states.SHELVING):
            plan.instance.task_state = task_state
            self.assertRaises(exception.OperationRefused,
                              self.driver.power_off, plan.instance, 60, 10)
            self.assert_untouched(plan)
        self.put_back.assert_called_once_with(
            plan.instance.uuid, vm_states.ACTIVE)
        self.finish(plan)

    def test_rebuild_is_refused_while_the_guest_runs(self):
        plan = self.left_by_a_job()
        arguments = dict.fromkeys((
            'context', 'image_meta', 'injected_files', 'admin_password',
            'allocations', 'bdms', 'detach_block_devices',
            'attach_block_devices')) | {'instance': plan.instance}
        error = self.assertRaises(nova_exception.InstanceFaultRollback,
                                  self.driver.rebuild, **arguments)
        self.assertIsInstance(error.inner_exception,
                              exception.OperationRefused)
        self.assert_untouched(plan)
        self.finish(plan)
        # Nova's manager rebuilds it then.
        self.assertRaises(NotImplementedError, self.driver.rebuild,
                          **arguments)

    def test_stop_is_not_refused(self):
        plan = self.left_by_a_job()
        plan.instance.task_state = task_states.POWERING_OFF
        self.driver.power_off(plan.instance)
        self.assertFalse(plan.guest.is_active())
        self.driver.gate.recover_in_background(plan.instance.uuid)
        self.assert_recovered_by_itself(plan)

    def test_rescue_goes_on_when_the_instance_can_be_recovered(self):
        plan = self.left()
        plan.instance.task_state = task_states.RESCUING
        with mock.patch.object(nova_driver.LibvirtDriver,
                               'power_off') as power_off:
            self.driver.power_off(plan.instance, 60, 10)
        power_off.assert_called_once_with(plan.instance, 60, 10)
        self.assert_merged(plan)
