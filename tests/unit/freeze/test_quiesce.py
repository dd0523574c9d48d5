# SPDX-License-Identifier: Apache-2.0

from unittest import mock

import libvirt
from nova import exception as nova_exception

from nova_snapext import exception
from nova_snapext.freeze import base as freeze_base
from nova_snapext.freeze import quiesce
from tests.unit import base

CRASH = freeze_base.Consistency.CRASH
FILESYSTEM = freeze_base.Consistency.FILESYSTEM

DOMAIN = """
<domain><devices><channel type='unix'>
  <target type='virtio' name='org.qemu.guest_agent.0' state='{state}'/>
</channel></devices></domain>
"""


def libvirt_error(code):
    error = libvirt.libvirtError('error')
    error.err = (code, 0, 'the agent says no', 0, None, None, None, 0, 0)
    return error


class QuiescedTest(base.TestCase):

    def agent_plan(self, state='connected', **properties):
        return self.plan(domain_xml=DOMAIN.format(state=state),
                         hw_qemu_guest_agent='yes', **properties)

    def consistency(self, plan):
        with quiesce.Filesystems(plan).quiesced() as consistency:
            return consistency

    def test_filesystems_are_frozen_inside_and_thawed_after(self):
        plan = self.agent_plan()
        with quiesce.Filesystems(plan).quiesced() as consistency:
            self.assertEqual(FILESYSTEM, consistency)
            plan.guest.freeze_filesystems.assert_called_once_with()
            plan.guest.thaw_filesystems.assert_not_called()
        plan.guest.thaw_filesystems.assert_called_once_with()

    def test_they_are_thawed_when_the_freeze_of_the_disk_fails(self):
        plan = self.agent_plan()

        def fail():
            with quiesce.Filesystems(plan).quiesced():
                raise ZeroDivisionError()

        self.assertRaises(ZeroDivisionError, fail)
        plan.guest.thaw_filesystems.assert_called_once_with()

    def test_the_agent_s_time_is_bounded_and_given_back(self):
        self.flags(agent_timeout=7, group='snapext')
        plan = self.agent_plan()
        set_timeout = plan.guest._domain.agentSetResponseTimeout
        bound = [mock.call(7, 0), mock.call(
            libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK, 0)]
        with quiesce.Filesystems(plan).quiesced():
            self.assertEqual(bound, set_timeout.mock_calls)
        self.assertEqual(2 * bound, set_timeout.mock_calls)

    def test_without_the_image_property_nothing_is_frozen(self):
        plan = self.plan()
        self.assertEqual(CRASH, self.consistency(plan))
        plan.guest.freeze_filesystems.assert_not_called()

    def test_an_agent_that_is_not_connected_is_not_asked(self):
        plan = self.agent_plan(state='disconnected')
        self.assertEqual(CRASH, self.consistency(plan))
        plan.guest.freeze_filesystems.assert_not_called()

    def test_a_required_quiesce_that_is_not_possible_fails(self):
        for plan in (self.plan(os_require_quiesce='yes'),
                     self.agent_plan('disconnected',
                                     os_require_quiesce='yes')):
            self.assertRaises(nova_exception.InstanceQuiesceFailed,
                              self.consistency, plan)

    def test_an_agent_that_refuses_leaves_it_crash_consistent_and_thawed(self):
        plan = self.agent_plan()
        plan.guest.freeze_filesystems.side_effect = libvirt_error(
            libvirt.VIR_ERR_INTERNAL_ERROR)
        self.assertEqual(CRASH, self.consistency(plan))
        plan.guest.thaw_filesystems.assert_called_once_with()

    def test_a_paused_guest_s_agent_is_not_told_to_thaw(self):
        plan = self.agent_plan()
        plan.guest.freeze_filesystems.side_effect = libvirt_error(
            libvirt.VIR_ERR_OPERATION_INVALID)
        self.assertEqual(CRASH, self.consistency(plan))
        plan.guest.thaw_filesystems.assert_not_called()

    def test_an_agent_that_never_answers_gives_the_snapshot_up(self):
        plan = self.agent_plan()
        error = libvirt_error(libvirt.VIR_ERR_AGENT_UNRESPONSIVE)
        plan.guest.freeze_filesystems.side_effect = error
        plan.guest.thaw_filesystems.side_effect = error
        failed = self.assertRaises(exception.ThawFailed,
                                   self.consistency, plan)
        self.assertIn('virsh domfsthaw', str(failed))

    def test_a_thaw_that_fails_gives_the_snapshot_up(self):
        plan = self.agent_plan()
        plan.guest.thaw_filesystems.side_effect = libvirt_error(
            libvirt.VIR_ERR_AGENT_UNRESPONSIVE)
        self.assertRaises(exception.ThawFailed, self.consistency, plan)

    def test_a_thaw_that_failed_is_tried_once_more_when_asked(self):
        plan = self.agent_plan()
        filesystems = quiesce.Filesystems(plan)
        plan.guest.thaw_filesystems.side_effect = [
            libvirt_error(libvirt.VIR_ERR_OPERATION_INVALID), None]

        def fail():
            with filesystems.quiesced():
                pass

        self.assertRaises(exception.ThawFailed, fail)
        filesystems.thaw()
        filesystems.thaw()
        self.assertEqual(2, plan.guest.thaw_filesystems.call_count)

    def test_a_guest_that_powered_off_has_nothing_to_thaw(self):
        plan = self.agent_plan()
        plan.guest.thaw_filesystems.side_effect = libvirt_error(
            libvirt.VIR_ERR_OPERATION_INVALID)
        plan.guest.is_active.return_value = False
        self.assertEqual(FILESYSTEM, self.consistency(plan))
