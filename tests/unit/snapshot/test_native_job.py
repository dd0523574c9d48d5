# SPDX-License-Identifier: Apache-2.0

from unittest import mock

from nova.compute import power_state
from nova.compute import task_states

from nova_snapext import exception
from tests.unit import base
from tests.unit.snapshot import base as snapshot_base


class NativeJobTest(snapshot_base.SnapshotTestCase):
    """A disk in a format that only Nova's own snapshot supports."""

    def setUp(self):
        super().setUp()
        self.domain.XMLDesc.return_value = snapshot_base.DOMAIN.format('ploop')

    def test_unsupported_disk_is_left_to_nova_and_the_log_says_why(self):
        self.snapshot()
        self.native.assert_called_once_with(
            self.driver, None, mock.ANY, base.IMAGE_ID, mock.ANY)
        self.assertEqual([], self.steps)
        self.assertIn("backup: only Nova's own snapshot can create images of "
                      "the format ploop", self.stdlog.logger.output)

    def test_properties_are_set_and_stale_ones_removed_in_one_request(self):
        self.snapshot()
        self.set_metadata.assert_called_once_with(mock.ANY, {
            'snapext_strategy_used': 'native', 'snapext_strategy': None,
            'snapext_consistency': None, 'snapext_frozen_at': None})
        self.driver._image_api.update.assert_not_called()

    def test_metadata_of_nova_is_set_before_nova_begins(self):
        # Else ours could take the last place that Glance's quota leaves.
        self.set_metadata.side_effect = (
            lambda *_args: self.native.assert_not_called() or frozenset())
        self.snapshot()
        metadata, _informing = self.set_metadata.call_args.args
        self.assertEqual('snapshot', metadata['properties']['image_location'])
        self.assertEqual('ploop', metadata['disk_format'])
        self.native.assert_called_once()

    def test_refusal_of_what_informs_does_not_prevent_it(self):
        self.refused = frozenset({'snapext_strategy_used'})
        self.snapshot()
        self.native.assert_called_once()

    def test_refusal_of_nova_s_own_metadata_prevents_it(self):
        self.set_metadata.side_effect = exception.GlanceRefused(
            server='s', image='i', reason='quota (HTTP 413)')
        self.assertRaises(exception.GlanceRefused, self.snapshot)
        self.native.assert_not_called()

    def test_directory_of_a_live_snapshot_is_in_the_journal(self):
        def live_snapshot(driver, _context, instance, *_args):
            job = driver.native_jobs[instance.uuid]
            job.on_live_snapshot('/snapshots/tmp/disk')
            self.record = job._snapshot.record()

        self.native.side_effect = live_snapshot
        self.snapshot()
        self.assertEqual('/snapshots/tmp', self.record['directory'])

    def test_failed_snapshot_deletes_the_image(self):
        self.native.side_effect = ZeroDivisionError
        self.assertRaises(ZeroDivisionError, self.snapshot)
        self.discard.assert_called_once()
        self.assertEqual({}, self.driver.native_jobs)


class DirectSnapshotTest(snapshot_base.SnapshotTestCase):
    """An RBD disk, which Nova may snapshot inside Ceph."""

    def setUp(self):
        super().setUp()
        self.domain.XMLDesc.return_value = snapshot_base.RBD_DOMAIN
        self.flags(auto_strategies=['native', 'backup', 'external', 'cold'],
                   group='snapext')
        self.native.side_effect = self.refuse_direct_snapshot
        self.suspend = self.patch(self.driver, 'suspend')

    def refuse_direct_snapshot(self, _driver, _context, instance, _image_id,
                               update_task_state):
        """Do what Nova does when the direct snapshot is refused."""
        update_task_state(task_state=task_states.IMAGE_PENDING_UPLOAD)
        update_task_state(task_state=task_states.IMAGE_UPLOADING,
                          expected_state=task_states.IMAGE_PENDING_UPLOAD)
        update_task_state(task_state=task_states.IMAGE_PENDING_UPLOAD,
                          expected_state=task_states.IMAGE_UPLOADING)
        self.driver._suspend_guest_for_snapshot(
            None, False, power_state.RUNNING, instance)

    def test_direct_snapshot_is_nova_s_own(self):
        self.native.side_effect = None
        self.snapshot()
        self.native.assert_called_once()
        self.stream.assert_not_called()

    def test_guest_is_backed_up_instead_of_suspended(self):
        self.snapshot()
        self.suspend.assert_not_called()
        plan = self.stream.mock_calls[0].args[0]
        self.assertIn('can\'t make an image', plan.direct_refused)

    def test_image_is_described_again_for_the_other_strategy(self):
        self.snapshot()
        self.assertEqual(
            ['native', 'backup'],
            [call.args[1]['snapext_strategy_used']
             for call in self.set_metadata.mock_calls])

    def test_other_strategy_leaves_out_what_glance_has_refused(self):
        self.refused = frozenset({'snapext_strategy_used'})
        self.snapshot()
        self.assertNotIn('snapext_strategy_used',
                         self.set_metadata.call_args.args[1])

    def test_refused_direct_snapshot_keeps_the_image(self):
        self.snapshot()
        self.discard.assert_not_called()

    def test_each_task_state_expects_the_one_before_it(self):
        self.snapshot()
        state = None
        for call in self.update_task_state.mock_calls:
            if state is not None:
                self.assertEqual(state, call.kwargs['expected_state'])
            state = call.kwargs['task_state']
        self.assertEqual(task_states.IMAGE_UPLOADING, state)

    def test_requested_native_strategy_may_suspend(self):
        self.flags(strategy='native', group='snapext')
        self.snapshot()
        self.suspend.assert_called_once()
        self.stream.assert_not_called()

    def test_guest_that_is_shut_off_is_not_refused(self):
        self.domain.isActive.return_value = 0
        self.native.side_effect = (
            lambda driver, context, instance, *_args:
            driver._suspend_guest_for_snapshot(
                context, False, power_state.SHUTDOWN, instance))
        try:
            self.snapshot()
        except exception.DirectSnapshotRefused:
            self.fail('refused')
        self.suspend.assert_not_called()

    def test_suspend_after_the_snapshot_is_allowed(self):
        instance = self.snapshot()
        self.driver._suspend_guest_for_snapshot(
            None, False, power_state.RUNNING, instance)
        self.suspend.assert_called_once()
