# SPDX-License-Identifier: Apache-2.0

from unittest import mock

import fixtures
import libvirt
from nova import exception as nova_exception
from nova.virt.libvirt import host as libvirt_host

from nova_snapext import exception
from nova_snapext.freeze import backup_job
from nova_snapext.freeze import jobs
from nova_snapext.freeze import libvirtd
from tests.unit import base

JOB = "<domainbackup mode='pull'><server socket='/s/nbd'/></domainbackup>"

OTHER = JOB.replace('/s/', '/other/')


def libvirt_error(code, domain=0):
    error = libvirt.libvirtError('libvirt says no')
    error.err = (code, domain, 'libvirt says no', 0, None, None, None, 0, 0)
    return error


class EndTest(base.TestCase):
    """A guest that Nova deletes while its job is ended."""

    def setUp(self):
        super().setUp()
        plan = self.plan()
        self.guest = plan.guest
        self.instance = plan.instance
        self.guest._domain.backupGetXMLDesc.return_value = JOB
        self.host = mock.create_autospec(libvirt_host.Host, instance=True)
        self.host.get_guest.return_value = self.guest
        self.job = backup_job.BackupJob(
            self.host, plan, mock.Mock(socket='/s/nbd', path='/s'))
        awaited = self.useFixture(fixtures.MockPatchObject(
            jobs, 'event_awaited')).mock.return_value
        awaited.__exit__.return_value = None
        self.await_job_end = awaited.__enter__.return_value

    def test_a_job_that_has_ended_just_now_is_over(self):
        self.guest.abort_job.side_effect = libvirt_error(
            libvirt.VIR_ERR_OPERATION_INVALID)
        self.job.end()
        self.await_job_end.assert_not_called()

    def test_a_guest_that_is_gone_just_now_has_no_job(self):
        self.guest.abort_job.side_effect = libvirt_error(
            libvirt.VIR_ERR_NO_DOMAIN)
        self.guest._domain.state.side_effect = libvirt_error(
            libvirt.VIR_ERR_NO_DOMAIN)
        self.job.end()

    def test_a_libvirtd_that_goes_meanwhile_is_waited_for(self):
        away = nova_exception.HypervisorUnavailable()
        lost = libvirt_error(
            libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_FROM_RPC)
        self.host.get_connection.side_effect = [None, away, None, None]
        self.host.get_guest.side_effect = [away, self.guest, self.guest]
        self.guest.abort_job.side_effect = [lost, None]
        self.guest._domain.backupGetXMLDesc.side_effect = [
            JOB, JOB, JOB, JOB, OTHER]
        self.useFixture(fixtures.MockPatchObject(libvirtd, 'PAUSE', 0))
        self.job.end()
        self.await_job_end.assert_called_once()

    def test_one_that_libvirt_is_just_beginning_is_waited_for(self):
        # In the words of qemuDomainGetJobStats: it has begun, and then says
        # what.
        self.useFixture(fixtures.MockPatchObject(jobs, 'LOOK', 0))
        none = libvirt_error(libvirt.VIR_ERR_NO_DOMAIN_BACKUP)
        self.guest._domain.backupGetXMLDesc.side_effect = [
            none, none, JOB, JOB, none]
        self.guest._domain.jobStats.side_effect = [
            {'operation': libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP},
            libvirt_error(libvirt.VIR_ERR_INTERNAL_ERROR,
                          libvirt.VIR_FROM_QEMU)]
        self.job.end()
        self.guest.abort_job.assert_called_once_with()

    def test_one_that_never_begins_is_an_error(self):
        self.useFixture(fixtures.MockPatchObject(jobs, 'LOOK', 0.1))
        self.flags(job_timeout=1, group='snapext')
        self.guest._domain.backupGetXMLDesc.side_effect = libvirt_error(
            libvirt.VIR_ERR_NO_DOMAIN_BACKUP)
        self.guest._domain.jobStats.return_value = {
            'operation': libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP}
        error = self.assertRaises(exception.ReleaseFailed, self.job.end)
        self.assertIn('virsh domjobabort', str(error))

    def test_what_else_libvirt_says_is_an_error(self):
        self.guest.abort_job.side_effect = libvirt_error(
            libvirt.VIR_ERR_OPERATION_TIMEOUT)
        error = self.assertRaises(exception.ReleaseFailed, self.job.end)
        self.assertIn('libvirt says no', str(error))
        self.assertIn(self.instance.uuid, str(error))

    def test_a_libvirtd_that_does_not_come_back_is_an_error(self):
        self.flags(job_timeout=1, group='snapext')
        self.host.get_connection.side_effect = (
            nova_exception.HypervisorUnavailable())
        error = self.assertRaises(exception.ReleaseFailed, self.job.end)
        self.assertIn(self.instance.uuid, str(error))
