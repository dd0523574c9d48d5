# SPDX-License-Identifier: Apache-2.0

import contextlib
from unittest import mock

import fixtures
import libvirt
from nova.compute import power_state
from nova import exception as nova_exception

from nova_snapext import cancel
from nova_snapext import exception
from nova_snapext.hypervisor import domain
from nova_snapext.hypervisor import thin_disk
from nova_snapext import plan as planning
from nova_snapext.snapshot import trim
from tests.unit import base

DOMAIN = """
<domain><devices><channel type='unix'>
  <target type='virtio' name='org.qemu.guest_agent.0' state='{state}'/>
</channel></devices></domain>
"""

SILENT = base.libvirt_error(libvirt.VIR_ERR_AGENT_UNRESPONSIVE, 'no answer')
REFUSED = base.libvirt_error(libvirt.VIR_ERR_INTERNAL_ERROR, 'not supported')
LOST = base.libvirt_error(libvirt.VIR_ERR_RPC, 'closed',
                          libvirt.VIR_FROM_RPC)
OFF = base.libvirt_error(libvirt.VIR_ERR_OPERATION_INVALID, 'not running')


class WantedTest(base.TestCase):

    def is_wanted(self, **properties):
        return trim.is_wanted(self.instance(), properties)

    def test_only_a_request_leads_to_it_by_default(self):
        self.assertFalse(self.is_wanted())
        self.assertTrue(self.is_wanted(snapext_trim='yes'))
        self.assertFalse(self.is_wanted(snapext_trim='no'))

    def test_option_may_want_it_always_unless_the_request_declines(self):
        self.flags(guest_trim='always', group='snapext')
        self.assertTrue(self.is_wanted())
        self.assertTrue(self.is_wanted(snapext_trim='True'))
        self.assertFalse(self.is_wanted(snapext_trim='false'))

    def test_option_may_forbid_it_and_the_log_says_so(self):
        self.flags(guest_trim='never', group='snapext')
        self.assertFalse(self.is_wanted())
        self.assertNotIn('guest_trim', self.stdlog.logger.output)
        self.assertFalse(self.is_wanted(snapext_trim='yes'))
        self.assertIn('[snapext]guest_trim is never',
                      self.stdlog.logger.output)

    def test_value_that_is_neither_yes_nor_no_is_ignored(self):
        self.assertFalse(self.is_wanted(snapext_trim='may\nbe'))
        self.assertIn('is may\\nbe, which', self.stdlog.logger.output)
        self.flags(guest_trim='always', group='snapext')
        self.assertTrue(self.is_wanted(snapext_trim=''))


class GuestTrimTestCase(base.TestCase):

    def setUp(self):
        super().setUp()
        self.useFixture(fixtures.MockPatchObject(trim, 'POLL_INTERVAL', 0))
        self.kept_reason = self.useFixture(fixtures.MockPatchObject(
            thin_disk, 'kept_reason', return_value=None)).mock
        self.allocated = self.useFixture(fixtures.MockPatchObject(
            thin_disk, 'allocated', side_effect=[5000, 2000])).mock
        self.get_guest = self.useFixture(fixtures.MockPatchObject(
            domain, 'get')).mock
        self.token = cancel.CancelToken()

    def trim(self, state='connected', **properties):
        properties = {'hw_qemu_guest_agent': 'yes'} | properties
        plan = self.plan(domain_xml=DOMAIN.format(state=state), **properties)
        self.guest = self.get_guest.return_value = plan.guest
        self.guest.get_power_state.return_value = power_state.RUNNING
        return trim.GuestTrim(mock.Mock(), plan, self.token)

    @property
    def log(self):
        """Return our lines in the log."""
        return '\n'.join(line for line in
                         self.stdlog.logger.output.splitlines()
                         if 'nova_snapext' in line)


class PossibleTest(GuestTrimTestCase):

    def assert_impossible(self, guest_trim, reason):
        self.assertFalse(guest_trim.is_possible())
        self.assertIn(f'for the snapshot: {reason}', self.log)

    def test_running_guest_with_agent_and_thin_disk_can_trim(self):
        self.assertTrue(self.trim().is_possible())
        self.assertEqual('', self.log)

    def test_guest_that_does_not_run_can_not(self):
        for state in (power_state.PAUSED, power_state.SUSPENDED,
                      power_state.SHUTDOWN):
            guest_trim = self.trim()
            self.guest.get_power_state.return_value = state
            self.assert_impossible(guest_trim, 'it does not run')

    def test_guest_without_agent_can_not(self):
        self.assert_impossible(
            self.trim(hw_qemu_guest_agent='no'),
            'its image does not have the property hw_qemu_guest_agent')

    def test_guest_whose_agent_does_not_run_can_not(self):
        self.assert_impossible(self.trim('disconnected'),
                               'its guest agent is not connected')

    def test_disk_that_would_free_nothing_is_not_trimmed(self):
        self.kept_reason.return_value = 'the space is preallocated'
        self.assert_impossible(self.trim(), 'the space is preallocated')

    def test_disk_that_can_not_be_examined_is_not_trimmed(self):
        self.kept_reason.side_effect = PermissionError(13, 'denied')
        self.assert_impossible(self.trim(), 'it could not be found out')

    def test_outstanding_overlay_is_not_trimmed(self):
        guest_trim = self.trim()
        guest_trim._plan = mock.Mock(
            wraps=guest_trim._plan, guest=self.guest,
            disk=planning.RootDisk('vda', 'file', '/i/disk.snapext', 'qcow2'))
        self.assert_impossible(guest_trim, 'it is on the overlay of an')

    def test_backup_of_somebody_else_does_not_grow_by_discards(self):
        guest_trim = self.trim()
        self.guest.job_stats.return_value = {
            'type': libvirt.VIR_DOMAIN_JOB_UNBOUNDED,
            'operation': libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP}
        self.assert_impossible(guest_trim, 'Guest ')
        self.assertIn("runs the job 'backup'", self.log)

    def test_guest_that_is_gone_is_an_error(self):
        self.kept_reason.side_effect = base.libvirt_error(
            libvirt.VIR_ERR_NO_DOMAIN)
        self.assertRaises(libvirt.libvirtError, self.trim().is_possible)


class RunTest(GuestTrimTestCase):

    def setUp(self):
        super().setUp()
        self.flags(guest_trim_timeout=60, agent_timeout=30, group='snapext')
        self.now = 0.0
        self.useFixture(fixtures.MockPatch(
            'oslo_utils.timeutils.now', side_effect=lambda: self.now))

    def answers(self, *answers):
        """Let each question to the agent take ten seconds.

        :param answers: errors, or None; the last one is repeated
        """
        pending = list(answers)

        def ping():
            self.now += 10
            answer = pending.pop(0) if len(pending) > 1 else pending[0]
            if answer is not None:
                raise answer

        self.guest.ping_agent.side_effect = ping

    def run_trim(self, *answers, trimmed=None, **properties):
        """Run a trim.

        :param answers: to questions, see answers()
        :param trimmed: the error of the trim itself
        """
        guest_trim = self.trim(**properties)
        self.answers(*answers)
        self.guest.trim_filesystems.side_effect = trimmed
        guest_trim.run()

    def assert_no_warning(self):
        self.assertNotIn('WARNING', self.log)

    def test_gain_is_logged(self):
        self.run_trim(None)
        self.guest.trim_filesystems.assert_called_once_with()
        self.assertIn('before=5000 after=2000 freed=3000 seconds=0.0',
                      self.log)
        self.assertEqual(1, self.guest.ping_agent.call_count)

    def test_storage_that_does_not_tell_is_logged(self):
        self.allocated.side_effect = [None, None]
        self.run_trim(None)
        self.assertIn('the storage does not tell', self.log)

    def test_no_call_waits_for_long(self):
        # No other call reaches the agent during that time.
        waiting = []
        guest_trim = self.trim()

        @contextlib.contextmanager
        def agent_timeout(seconds):
            waiting.append(seconds)
            yield

        self.guest.agent_timeout.side_effect = agent_timeout
        self.guest.trim_filesystems.side_effect = SILENT
        self.answers(None, SILENT, None)
        guest_trim.run()
        self.assertEqual([trim.ANSWER_TIMEOUT] * 4, waiting)

    def test_trim_that_takes_longer_is_waited_for(self):
        self.run_trim(None, SILENT, SILENT, None, trimmed=SILENT)
        self.assertEqual(4, self.guest.ping_agent.call_count)
        self.assertIn('freed=3000 seconds=30.0', self.log)

    def test_trim_is_waited_for_with_libvirt_11_2_too(self):
        self.run_trim(None, SILENT, None, trimmed=base.libvirt_error(112))
        self.assertIn('freed=3000 seconds=20.0', self.log)

    def test_agent_that_refuses_a_question_has_ended_its_trim(self):
        self.run_trim(None, SILENT, REFUSED, trimmed=SILENT)
        self.assertIn('freed=3000', self.log)

    def test_trim_without_end_is_left_alone(self):
        self.run_trim(None, SILENT, trimmed=SILENT)
        self.assertLess(self.now, 100)
        self.assertIn('guest_trim_timeout, 60 seconds', self.log)
        self.assertIn('does not wait. Its image is crash-consistent', self.log)
        self.assertNotIn('freed', self.log)

    def test_required_quiesce_waits_for_the_end_of_the_trim(self):
        self.run_trim(None, *[SILENT] * 10, None, trimmed=SILENT,
                      os_require_quiesce='yes')
        self.assertEqual(12, self.guest.ping_agent.call_count)
        self.assertEqual(1, self.log.count('guest_trim_timeout, 60 seconds'))
        self.assertIn('waits until its agent can freeze', self.log)

    def test_required_quiesce_does_not_wait_for_ever(self):
        self.run_trim(None, SILENT, trimmed=SILENT, os_require_quiesce='yes')
        self.assertGreater(self.now, 120)
        self.assertLess(self.now, 160)

    def test_refusal_of_the_agent_is_one_line(self):
        self.run_trim(None, trimmed=REFUSED)
        self.assertIn('could not trim its file systems: not supported. The '
                      'snapshot goes on', self.log)
        self.assertEqual(1, len(self.log.splitlines()))

    def test_silent_agent_is_not_told_to_trim(self):
        self.run_trim(SILENT)
        self.guest.trim_filesystems.assert_not_called()
        self.assertIn('not answered for 30 seconds', self.log)
        self.assertEqual(1, len(self.log.splitlines()))

    def test_trim_of_an_earlier_snapshot_is_waited_for(self):
        self.run_trim(SILENT, SILENT, None, os_require_quiesce='yes')
        self.assertIn('freed=3000', self.log)
        self.assert_no_warning()

    def test_guest_that_ends_during_a_trim_is_not_waited_for(self):
        self.run_trim(None, SILENT, OFF, trimmed=SILENT,
                      os_require_quiesce='yes')
        self.assertEqual(3, self.guest.ping_agent.call_count)

    def test_agent_that_ends_during_a_trim_is_not_waited_for(self):
        guest_trim = self.trim(os_require_quiesce='yes')
        self.answers(None, SILENT)
        self.guest.trim_filesystems.side_effect = SILENT
        connected = DOMAIN.format(state='connected')
        self.guest.get_xml_desc.side_effect = [
            connected, connected, DOMAIN.format(state='disconnected')]
        guest_trim.run()
        self.assertEqual(2, self.guest.ping_agent.call_count)

    def test_libvirtd_that_restarts_does_not_end_the_wait(self):
        self.run_trim(None, SILENT, LOST, SILENT, None, trimmed=LOST)
        self.assertEqual(5, self.guest.ping_agent.call_count)
        self.assertIn('freed=3000', self.log)

    def test_libvirtd_that_stays_away_is_one_line(self):
        self.flags(operation_timeout=1, group='snapext')
        guest_trim = self.trim()
        self.get_guest.side_effect = nova_exception.HypervisorUnavailable()
        guest_trim.run()
        self.assertIn('could not trim', self.log)

    def test_guest_that_is_gone_is_an_error(self):
        guest_trim = self.trim()
        for error in (base.libvirt_error(libvirt.VIR_ERR_NO_DOMAIN),
                      nova_exception.InstanceNotFound(instance_id='i')):
            self.get_guest.side_effect = error
            self.assertRaises(type(error), guest_trim.run)

    def test_cancellation_ends_the_wait_with_its_cause(self):
        cause = exception.ServiceStopping(instance='i')
        guest_trim = self.trim(os_require_quiesce='yes')
        self.answers(None, SILENT)

        def trim_filesystems():
            self.token.cancel(cause)
            raise SILENT

        self.guest.trim_filesystems.side_effect = trim_filesystems
        self.assertIs(cause, self.assertRaises(
            exception.ServiceStopping, guest_trim.run))
        self.assertEqual(2, self.guest.ping_agent.call_count)

    def test_size_that_is_out_of_reach_is_one_line(self):
        self.allocated.side_effect = FileNotFoundError(2, 'gone')
        self.run_trim(None)
        self.assertIn('could not trim', self.log)
