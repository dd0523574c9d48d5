# SPDX-License-Identifier: Apache-2.0

from unittest import mock

import fixtures
import libvirt
from nova import exception as nova_exception
from nova.virt.libvirt import host as libvirt_host

from nova_snapext import exception
from nova_snapext.hypervisor import connection
from nova_snapext.hypervisor import domain
from nova_snapext.hypervisor import jobs
from nova_snapext.resources import backup_job
from tests.unit import base

JOB = "<domainbackup mode='pull'><server socket='/s/nbd'/></domainbackup>"

OTHER = JOB.replace('/s/', '/other/')


class EndTest(base.TestCase):
    """The end of a backup job, while Nova may delete its guest."""

    def setUp(self):
        super().setUp()
        plan = self.plan()
        self.guest = plan.guest
        self.instance = plan.instance
        self.guest.backup_xml.return_value = JOB
        self.host = mock.create_autospec(libvirt_host.Host, instance=True)
        self.get_guest = self.useFixture(fixtures.MockPatchObject(
            domain, 'get', return_value=self.guest)).mock
        self.job = backup_job.BackupJob(
            self.host, plan, mock.Mock(qemu_socket='/s/nbd', path='/s'))
        self.wait_for_end = (
            self.guest.watch_event.return_value.__enter__.return_value)

    def test_job_that_has_just_ended_is_over(self):
        self.guest.abort_job.side_effect = base.libvirt_error(
            libvirt.VIR_ERR_OPERATION_INVALID)
        self.job.end()
        self.wait_for_end.assert_not_called()

    def test_guest_that_has_just_gone_has_no_job(self):
        gone = base.libvirt_error(libvirt.VIR_ERR_NO_DOMAIN)
        self.guest.abort_job.side_effect = gone
        self.guest.state.side_effect = gone
        self.job.end()

    def test_job_is_ended_after_restart_of_libvirtd(self):
        away = nova_exception.HypervisorUnavailable()
        lost = base.libvirt_error(
            libvirt.VIR_ERR_INTERNAL_ERROR, domain=libvirt.VIR_FROM_RPC)
        self.host.get_connection.side_effect = [None, away, None, None]
        self.get_guest.side_effect = [away, self.guest, self.guest]
        self.guest.abort_job.side_effect = [lost, None]
        self.guest.backup_xml.side_effect = [JOB, JOB, JOB, JOB, OTHER]
        self.useFixture(fixtures.MockPatchObject(
            connection, 'RETRY_INTERVAL', 0))
        self.job.end()
        self.wait_for_end.assert_called_once()

    def test_job_that_is_just_beginning_is_awaited_and_ended(self):
        # As qemuDomainGetJobStats reports it: first that a job has begun,
        # then which one.
        self.useFixture(fixtures.MockPatchObject(jobs, 'POLL_INTERVAL', 0))
        none = base.libvirt_error(libvirt.VIR_ERR_NO_DOMAIN_BACKUP)
        self.guest.backup_xml.side_effect = [none, none, JOB, JOB, none]
        self.guest.job_stats.side_effect = [
            {'operation': libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP},
            base.libvirt_error(libvirt.VIR_ERR_INTERNAL_ERROR,
                               domain=libvirt.VIR_FROM_QEMU)]
        self.job.end()
        self.guest.abort_job.assert_called_once_with()

    def test_job_that_never_begins_is_an_error(self):
        self.useFixture(fixtures.MockPatchObject(jobs, 'POLL_INTERVAL', 0.1))
        self.flags(operation_timeout=1, group='snapext')
        self.guest.backup_xml.side_effect = base.libvirt_error(
            libvirt.VIR_ERR_NO_DOMAIN_BACKUP)
        self.guest.job_stats.return_value = {
            'operation': libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP}
        error = self.assertRaises(exception.ReleaseFailed, self.job.end)
        self.assertIn('virsh domjobabort', str(error))

    def test_other_libvirt_error_is_an_error(self):
        self.guest.abort_job.side_effect = base.libvirt_error(
            libvirt.VIR_ERR_OPERATION_TIMEOUT)
        error = self.assertRaises(exception.ReleaseFailed, self.job.end)
        self.assertIn('libvirt refuses', str(error))
        self.assertIn(self.instance.uuid, str(error))

    def test_libvirtd_that_does_not_come_back_is_an_error(self):
        self.flags(operation_timeout=1, group='snapext')
        self.host.get_connection.side_effect = (
            nova_exception.HypervisorUnavailable())
        error = self.assertRaises(exception.ReleaseFailed, self.job.end)
        self.assertIn(self.instance.uuid, str(error))
