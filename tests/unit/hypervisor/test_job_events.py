# SPDX-License-Identifier: Apache-2.0

from unittest import mock

import libvirt
from nova import exception as nova_exception
from nova.virt.libvirt import host as libvirt_host
from oslo_utils.fixture import uuidsentinel as uuids

from nova_snapext import compat
from nova_snapext.hypervisor import job_events
from tests.unit import base


class JobEventsTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.host = mock.create_autospec(libvirt_host.Host, instance=True)
        self.host._event_handler = mock.Mock()
        self.queue = compat.event_queue(self.host)
        self.connection = self.host.get_connection.return_value
        self.events = job_events.JobEvents(self.host)
        self.domain = mock.Mock()
        self.domain.UUIDString.return_value = uuids.one

    def call(self, event, *arguments):
        """Call what is registered for an event, as libvirt does."""
        [(callback, opaque)] = [
            call.args[2:] for call
            in self.connection.domainEventRegisterAny.mock_calls
            if call.args[1] == event]
        callback(self.connection, self.domain, *arguments, opaque)

    def test_each_end_of_a_disk_s_job_is_an_event(self):
        self.events.register()
        for status in (libvirt.VIR_DOMAIN_BLOCK_JOB_COMPLETED,
                       libvirt.VIR_DOMAIN_BLOCK_JOB_FAILED,
                       libvirt.VIR_DOMAIN_BLOCK_JOB_CANCELED):
            self.queue.reset_mock()
            self.call(libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2, 'vda',
                      libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COPY, status)
            [(event,)] = [call.args for call in self.queue.mock_calls]
            self.assertIsInstance(event, job_events.ForeignJobEndedEvent)
            self.assertEqual(uuids.one, event.uuid)

    def test_end_of_a_commit_or_backup_may_be_that_of_ours(self):
        self.events.register()
        for job_type in (libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT,
                         libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COMMIT,
                         libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_BACKUP):
            self.call(libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2, 'vda',
                      job_type, libvirt.VIR_DOMAIN_BLOCK_JOB_CANCELED)
            self.assertIs(job_events.JobEndedEvent,
                          type(self.queue.call_args.args[0]))

    def test_job_that_is_ready_goes_on(self):
        self.events.register()
        self.call(libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2, 'vda',
                  libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COPY,
                  libvirt.VIR_DOMAIN_BLOCK_JOB_READY)
        self.queue.assert_not_called()

    def test_end_of_a_guest_s_job_is_an_event(self):
        self.events.register()
        self.call(libvirt.VIR_DOMAIN_EVENT_ID_JOB_COMPLETED, {})
        self.queue.assert_called_once()

    def test_each_connection_is_registered_once(self):
        for _ in range(2):
            self.events.register()
        self.assertEqual(
            2, self.connection.domainEventRegisterAny.call_count)
        self.connection = self.host.get_connection.return_value = mock.Mock()
        self.events.register()
        self.assertEqual(
            2, self.connection.domainEventRegisterAny.call_count)

    def test_libvirtd_that_goes_down_again_is_tried_when_it_is_back(self):
        self.host.get_connection.side_effect = (
            nova_exception.HypervisorUnavailable())
        with self.assertLogs(job_events.LOG.logger, 'WARNING') as logs:
            self.events.register()
        self.assertIn('periodic look', logs.output[0])
        self.host.get_connection.side_effect = None
        self.events.register()
        self.connection.domainEventRegisterAny.assert_called()
