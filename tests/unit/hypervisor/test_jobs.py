# SPDX-License-Identifier: Apache-2.0

from unittest import mock

import fixtures
import libvirt
from nova.virt.libvirt import guest as libvirt_guest

from nova_snapext import exception
from nova_snapext.hypervisor import jobs
from tests.unit import base

NO_JOB = {'type': libvirt.VIR_DOMAIN_JOB_NONE}
BACKUP = {'type': libvirt.VIR_DOMAIN_JOB_UNBOUNDED,
          'operation': libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP}


class JobsTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.useFixture(fixtures.MockPatchObject(jobs, 'POLL_INTERVAL', 0))
        self.guest = base.fake_guest()
        self.stats = self.guest.job_stats

    def test_guest_without_job_passes(self):
        jobs.check_no_job(self.guest, self.instance())

    def test_guest_with_job_is_refused_with_its_name(self):
        self.stats.return_value = BACKUP
        self.assertIn('\'backup\'', str(self.assertRaises(
            exception.GuestBusy, jobs.check_no_job, self.guest,
            self.instance())))

    def test_guest_with_job_of_unknown_kind_is_refused(self):
        self.stats.return_value = {**BACKUP, 'operation': 4711}
        self.assertIn('\'unknown\'', str(self.assertRaises(
            exception.GuestBusy, jobs.check_no_job, self.guest,
            self.instance())))

    def fail_with(self, code):
        error = libvirt.libvirtError('')
        error.err = (code, libvirt.VIR_FROM_QEMU, 'domain is not running')
        self.stats.side_effect = error

    def test_guest_that_has_just_ended_has_no_job(self):
        self.fail_with(libvirt.VIR_ERR_OPERATION_INVALID)
        self.guest.is_active.return_value = False
        jobs.check_no_job(self.guest, self.instance())
        jobs.wait_for_no_job(self.guest, self.instance())

    def test_guest_that_runs_and_tells_no_job_is_an_error(self):
        for code in (libvirt.VIR_ERR_OPERATION_INVALID,
                     libvirt.VIR_ERR_INTERNAL_ERROR):
            self.fail_with(code)
            self.guest.is_active.return_value = (
                code == libvirt.VIR_ERR_OPERATION_INVALID)
            self.assertRaises(libvirt.libvirtError, jobs.wait_for_no_job,
                              self.guest, self.instance())

    def check_disk(self, job):
        device = self.guest.get_block_device.return_value
        device.get_job_info.return_value = job
        jobs.check_no_disk_job('vda', self.guest, self.instance())
        self.guest.get_block_device.assert_called_once_with('vda')

    def test_disk_without_job_passes(self):
        self.check_disk(None)

    def test_disk_with_job_is_refused_with_its_name(self):
        job = mock.create_autospec(libvirt_guest.BlockDeviceJobInfo)
        job.job = libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COPY
        error = self.assertRaises(exception.DiskBusy, self.check_disk, job)
        self.assertIn('\'copy\'', str(error))
        self.assertIn('vda', str(error))

    def test_job_that_makes_progress_is_waited_for(self):
        self.flags(operation_timeout=1, group='snapext')
        self.stats.side_effect = [
            {**BACKUP, 'data_processed': 1}, {**BACKUP, 'data_processed': 2},
            NO_JOB, NO_JOB]
        jobs.wait_for_no_job(self.guest, self.instance())

    def test_stalled_job_is_refused(self):
        self.flags(operation_timeout=1, group='snapext')
        self.useFixture(fixtures.MockPatchObject(jobs, 'POLL_INTERVAL', 0.2))
        self.stats.return_value = {**BACKUP, 'data_processed': 1}
        self.assertRaises(exception.GuestBusy, jobs.wait_for_no_job,
                          self.guest, self.instance())


class StallTimerTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.now = self.useFixture(fixtures.MockPatch(
            'oslo_utils.timeutils.now', return_value=100)).mock
        self.timer = jobs.StallTimer(10)

    def test_progress_restarts_timer(self):
        self.timer.progress(1)
        self.now.return_value = 109
        self.timer.progress(2)
        self.now.return_value = 118
        self.assertFalse(self.timer.expired)

    def test_unchanged_progress_lets_timer_expire(self):
        self.timer.progress(1)
        self.now.return_value = 109
        self.timer.progress(1)
        self.now.return_value = 111
        self.assertTrue(self.timer.expired)
