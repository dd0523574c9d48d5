# SPDX-License-Identifier: Apache-2.0

from unittest import mock

import fixtures
import libvirt
from nova import exception as nova_exception

from nova_snapext import exception
from nova_snapext.hypervisor import domain
from nova_snapext import plan as planning
from nova_snapext.resources import guest_filesystems
from tests.unit import base

CRASH = planning.Consistency.CRASH
FILESYSTEM = planning.Consistency.FILESYSTEM

DOMAIN = """
<domain><devices><channel type='unix'>
  <target type='virtio' name='org.qemu.guest_agent.0' state='{state}'/>
</channel></devices></domain>
"""


LOST = base.libvirt_error(
    libvirt.VIR_ERR_RPC, domain=libvirt.VIR_FROM_RPC)
REFUSED = ("internal error: unable to execute QEMU agent command "
           "'guest-fsfreeze-freeze': Command guest-fsfreeze-freeze has been "
           "disabled: the agent is in frozen state")


class FilesystemsTestCase(base.TestCase):

    def setUp(self):
        super().setUp()
        self.get_guest = self.useFixture(fixtures.MockPatchObject(
            domain, 'get')).mock
        self.driver = mock.Mock()

    def agent_plan(self, state='connected', **properties):
        plan = self.plan(domain_xml=DOMAIN.format(state=state),
                         hw_qemu_guest_agent='yes', **properties)
        self.get_guest.return_value = plan.guest
        return plan

    def filesystems(self, plan):
        return guest_filesystems.GuestFilesystems(self.driver._host, plan)


class FrozenTest(FilesystemsTestCase):

    def consistency(self, plan):
        with self.filesystems(plan).frozen() as consistency:
            return consistency

    def test_filesystems_are_frozen_inside_context_and_thawed_after(self):
        plan = self.agent_plan()
        with self.filesystems(plan).frozen() as consistency:
            self.assertEqual(FILESYSTEM, consistency)
            plan.guest.freeze_filesystems.assert_called_once_with()
            plan.guest.thaw_filesystems.assert_not_called()
        plan.guest.thaw_filesystems.assert_called_once_with()

    def test_failure_inside_context_thaws_filesystems(self):
        plan = self.agent_plan()

        def fail():
            with self.filesystems(plan).frozen():
                raise ZeroDivisionError()

        self.assertRaises(ZeroDivisionError, fail)
        plan.guest.thaw_filesystems.assert_called_once_with()

    def test_agent_has_a_time_limit_for_freeze_and_for_thaw(self):
        self.flags(agent_timeout=7, group='snapext')
        plan = self.agent_plan()
        limit = plan.guest.agent_timeout
        calls = []
        limit.return_value.__enter__.side_effect = (
            lambda: calls.append('limited'))
        limit.return_value.__exit__.side_effect = (
            lambda *_: calls.append('unlimited'))
        for method in ('ping_agent', 'freeze_filesystems',
                       'thaw_filesystems'):
            getattr(plan.guest, method).side_effect = (
                lambda method=method: calls.append(method))
        with self.filesystems(plan).frozen():
            self.assertEqual(
                ['limited', 'ping_agent', 'unlimited',
                 'limited', 'freeze_filesystems', 'unlimited'], calls)
        self.assertEqual(['limited', 'thaw_filesystems', 'unlimited'],
                         calls[6:])
        for call in limit.call_args_list:
            self.assertEqual((7,), call.args)

    def test_image_without_agent_property_freezes_nothing(self):
        plan = self.plan()
        self.assertEqual(CRASH, self.consistency(plan))
        plan.guest.freeze_filesystems.assert_not_called()

    def test_disconnected_agent_gets_no_command(self):
        plan = self.agent_plan(state='disconnected')
        self.assertEqual(CRASH, self.consistency(plan))
        plan.guest.freeze_filesystems.assert_not_called()

    def test_required_quiesce_that_is_not_possible_is_an_error(self):
        for plan in (self.plan(os_require_quiesce='yes'),
                     self.agent_plan('disconnected',
                                     os_require_quiesce='yes')):
            self.assertRaises(nova_exception.InstanceQuiesceFailed,
                              self.consistency, plan)

    def test_agent_that_refuses_leaves_the_freeze_of_others_alone(self):
        plan = self.agent_plan()
        plan.guest.freeze_filesystems.side_effect = base.libvirt_error(
            libvirt.VIR_ERR_INTERNAL_ERROR, REFUSED)
        self.assertEqual(CRASH, self.consistency(plan))
        plan.guest.thaw_filesystems.assert_not_called()

    def test_freeze_with_an_unknown_end_is_thawed(self):
        for error in (LOST, *(base.libvirt_error(
                libvirt.VIR_ERR_INTERNAL_ERROR, text) for text in (
                    'Missing agent reply object',
                    REFUSED.partition(': Command')[0] +
                    ': fsfreeze hook has failed with status 1'))):
            plan = self.agent_plan()
            plan.guest.freeze_filesystems.side_effect = error
            self.assertEqual(CRASH, self.consistency(plan))
            plan.guest.thaw_filesystems.assert_called_once_with()

    def test_freeze_with_an_unknown_end_stays_on_record_until_a_thaw(self):
        for code in (libvirt.VIR_ERR_AGENT_UNRESPONSIVE,
                     libvirt.VIR_ERR_INTERNAL_ERROR):
            plan = self.agent_plan()
            filesystems = self.filesystems(plan)
            plan.guest.freeze_filesystems.side_effect = LOST
            plan.guest.thaw_filesystems.side_effect = base.libvirt_error(code)
            self.assertRaises(exception.ThawFailed,
                              filesystems.frozen().__enter__)
            self.assertRaises(exception.ThawFailed, filesystems.release)
            plan.guest.thaw_filesystems.side_effect = None
            filesystems.release()
            self.assertEqual(3, plan.guest.thaw_filesystems.call_count)

    def test_agent_of_paused_guest_gets_no_thaw_command(self):
        plan = self.agent_plan()
        plan.guest.freeze_filesystems.side_effect = base.libvirt_error(
            libvirt.VIR_ERR_OPERATION_INVALID)
        self.assertEqual(CRASH, self.consistency(plan))
        plan.guest.thaw_filesystems.assert_not_called()

    def test_silent_agent_is_not_told_to_freeze(self):
        # It hangs, or trims, and would freeze later.
        plan = self.agent_plan()
        plan.guest.ping_agent.side_effect = base.libvirt_error(
            libvirt.VIR_ERR_AGENT_UNRESPONSIVE)
        self.assertEqual(CRASH, self.consistency(plan))
        plan.guest.freeze_filesystems.assert_not_called()
        plan.guest.thaw_filesystems.assert_not_called()

    def test_silent_agent_is_an_error_if_quiesce_is_required(self):
        plan = self.agent_plan(os_require_quiesce='yes')
        plan.guest.ping_agent.side_effect = base.libvirt_error(
            libvirt.VIR_ERR_AGENT_UNSYNCED)
        error = self.assertRaises(exception.QuiesceFailed,
                                  self.consistency, plan)
        self.assertIn('does not answer', error.format_message())
        plan.guest.freeze_filesystems.assert_not_called()

    def test_agent_that_refuses_the_question_is_told_to_freeze(self):
        plan = self.agent_plan()
        plan.guest.ping_agent.side_effect = base.libvirt_error(
            libvirt.VIR_ERR_INTERNAL_ERROR)
        self.assertEqual(FILESYSTEM, self.consistency(plan))

    def test_connection_that_is_lost_is_no_answer(self):
        plan = self.agent_plan()
        plan.guest.ping_agent.side_effect = base.libvirt_error(
            libvirt.VIR_ERR_RPC, domain=libvirt.VIR_FROM_RPC)
        self.assertRaises(libvirt.libvirtError, self.consistency, plan)
        plan.guest.freeze_filesystems.assert_not_called()

    def test_agent_that_hangs_in_the_freeze_is_an_error(self):
        # It may freeze later. libvirt 11.2 and newer has the second code.
        for code in (libvirt.VIR_ERR_AGENT_UNRESPONSIVE, 112):
            plan = self.agent_plan()
            plan.guest.freeze_filesystems.side_effect = (
                base.libvirt_error(code))
            plan.guest.thaw_filesystems.side_effect = base.libvirt_error(
                libvirt.VIR_ERR_AGENT_UNRESPONSIVE)
            failed = self.assertRaises(exception.ThawFailed,
                                       self.consistency, plan)
            self.assertIn('virsh domfsthaw', str(failed))

    def test_silence_has_another_code_since_libvirt_11_2(self):
        plan = self.agent_plan()
        plan.guest.ping_agent.side_effect = base.libvirt_error(112)
        self.assertEqual(CRASH, self.consistency(plan))
        plan.guest.freeze_filesystems.assert_not_called()

    def test_failed_thaw_is_an_error(self):
        plan = self.agent_plan()
        plan.guest.thaw_filesystems.side_effect = base.libvirt_error(
            libvirt.VIR_ERR_AGENT_UNRESPONSIVE)
        self.assertRaises(exception.ThawFailed, self.consistency, plan)

    def test_failed_thaw_can_be_repeated_once(self):
        plan = self.agent_plan()
        filesystems = self.filesystems(plan)
        plan.guest.thaw_filesystems.side_effect = [
            base.libvirt_error(libvirt.VIR_ERR_OPERATION_INVALID), None]

        def fail():
            with filesystems.frozen():
                pass

        self.assertRaises(exception.ThawFailed, fail)
        filesystems.thaw()
        filesystems.thaw()
        self.assertEqual(2, plan.guest.thaw_filesystems.call_count)

    def test_guest_that_was_powered_off_needs_no_thaw(self):
        plan = self.agent_plan()
        plan.guest.thaw_filesystems.side_effect = base.libvirt_error(
            libvirt.VIR_ERR_OPERATION_INVALID)
        plan.guest.is_active.return_value = False
        self.assertEqual(FILESYSTEM, self.consistency(plan))

    def test_guest_that_is_gone_needs_no_thaw(self):
        plan = self.agent_plan()
        with self.filesystems(plan).frozen():
            self.get_guest.side_effect = nova_exception.InstanceNotFound(
                instance_id=plan.instance.uuid)
        plan.guest.thaw_filesystems.assert_not_called()

    def test_libvirtd_that_stays_away_is_a_thaw_error(self):
        self.flags(operation_timeout=1, group='snapext')
        plan = self.agent_plan()

        def freeze():
            with self.filesystems(plan).frozen():
                self.get_guest.side_effect = (
                    nova_exception.HypervisorUnavailable())

        error = self.assertRaises(exception.ThawFailed, freeze)
        self.assertIn('virsh domfsthaw', str(error))


class RestoreTest(FilesystemsTestCase):

    def release(self, plan, later=None):
        """Release what is restored.

        :param later: number of the guest's QEMU, if it is another one then
        """
        plan.guest.id = 1
        record = self.filesystems(plan).record()
        plan.guest.id = later or 1
        restored = guest_filesystems.GuestFilesystems.restore(
            self.driver, plan, record)
        self.assertEqual(record, restored.record())
        restored.release()
        return plan.guest.thaw_filesystems

    def test_restored_filesystems_are_thawed(self):
        for later in (None, 2):
            self.release(self.agent_plan(), later).assert_called_once_with()

    def test_guest_without_agent_is_not_thawed(self):
        self.release(self.plan()).assert_not_called()

    def test_frozen_guest_waits_for_its_agent(self):
        plan = self.agent_plan('disconnected')
        plan.guest.thaw_filesystems.side_effect = base.libvirt_error(
            libvirt.VIR_ERR_AGENT_UNRESPONSIVE)
        self.assertRaises(exception.ThawFailed, self.release, plan)

    def test_guest_in_another_qemu_does_not_wait_for_its_agent(self):
        self.release(self.agent_plan('disconnected'), 2).assert_not_called()
        self.assertIn('reboot it', self.stdlog.logger.output)
