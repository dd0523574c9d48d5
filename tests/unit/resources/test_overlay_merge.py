# SPDX-License-Identifier: Apache-2.0

import dataclasses
import os
import pathlib
import shutil
import threading
from unittest import mock

import fixtures
import libvirt
from lxml import etree
from nova.compute import task_states
from nova import exception as nova_exception
from nova.virt.libvirt import host as libvirt_host
from oslo_concurrency import processutils
import tenacity

from nova_snapext import bounded
from nova_snapext import checks
from nova_snapext import exception
from nova_snapext.hypervisor import block_commit
from nova_snapext.hypervisor import confinement
from nova_snapext.hypervisor import domain
from nova_snapext.hypervisor import libvirt_files
from nova_snapext.hypervisor import qemu_img
from nova_snapext.hypervisor import write_limit
from nova_snapext import journal
from nova_snapext import plan as planning
from nova_snapext.resources import overlay_files
from nova_snapext.resources import overlay_merge
from tests.unit import base

Action = overlay_merge.Action
CommitState = block_commit.CommitState
GuestState = overlay_merge.GuestState
MergeState = overlay_files.MergeState

AWAY = nova_exception.HypervisorUnavailable()
GONE = nova_exception.InstanceNotFound(instance_id='gone')

CONNECTION_LOST = base.libvirt_error(
    libvirt.VIR_ERR_INTERNAL_ERROR, domain=libvirt.VIR_FROM_RPC)
NOT_RUNNING = base.libvirt_error(
    libvirt.VIR_ERR_OPERATION_INVALID, domain=libvirt.VIR_FROM_QEMU)

DEFINITION = """
<domain><devices><disk type='file'>
  <driver name='qemu' type='qcow2'/><source file='{path}'/>{below}
  <target dev='vda'/>
</disk></devices></domain>
"""


class MergeTestCase(base.TestCase):

    def setUp(self):
        super().setUp()
        directory = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self.disk = str(directory / 'disk')
        pathlib.Path(self.disk).touch()
        (directory / 'instance').mkdir()
        self.path = str(directory / 'instance' / 'disk.snapext')
        self.files = overlay_files.OverlayFiles(self.path)
        self.in_state(MergeState.OUTSTANDING)
        self.target = self.plan(disk=planning.RootDisk(
            target='vda', storage='file', path=self.disk, format='raw'))
        self.guest = self.target.guest
        self.host = mock.create_autospec(libvirt_host.Host, instance=True)
        self.find_guest = self.patch(domain, 'get')
        self.find_guest.side_effect = GONE
        self.save = mock.Mock()
        self.merge = overlay_merge.OverlayMerge(
            self.host, self.target, self.path, self.save)
        self.block_commit = self.patch(block_commit.ActiveCommit, 'run')
        self.commit = self.patch(qemu_img, 'commit')
        self.patch(qemu_img, 'check_overlay')
        self.holds_data = self.patch(qemu_img, 'holds_data')
        self.holds_same_data = self.patch(qemu_img, 'holds_same_data')
        self.identity = self.patch(overlay_merge, 'qemu_identity')
        self.sync_definition = self.patch(libvirt_files, 'sync_definition')
        self.sleep = self.patch(tenacity.nap.time, 'sleep')

    def patch(self, target, name):
        return self.useFixture(fixtures.MockPatchObject(target, name)).mock

    def in_state(self, state):
        """Create the overlay in a state."""
        pathlib.Path(self.path).write_text(
            '' if state in (MergeState.MERGED, MergeState.LOST) else 'qcow2')
        if state in (MergeState.OUTSTANDING, MergeState.LOST):
            self.files.mark_unmerged()
        else:
            self.files.unmark()

    def define(self, path, live=None, running=False, pulled=False):
        """Define the guest on an image, and let it be found.

        :param live: the image that the running guest uses
        :param pulled: nothing is below the overlay of the running guest
        """
        self.definition = DEFINITION.format(path=path, below='')
        live = live or path
        live_definition = DEFINITION.format(path=live, below=(
            f'<backingStore type="file"><source file="{self.disk}"/>'
            f'</backingStore>' if live == self.path and not pulled else ''))
        self.find_guest.side_effect = None
        self.find_guest.return_value = self.guest
        self.guest.is_active.return_value = running
        self.guest.get_xml_desc.side_effect = lambda dump_inactive=False: (
            live_definition if running and not dump_inactive
            else self.definition)

        def update(xml):
            self.definition = (
                f'<domain><devices>{xml}</devices></domain>')

        self.guest.update_persistent_device.side_effect = update

    def defined_on(self):
        """Return the path in the persistent definition."""
        return etree.fromstring(self.definition).find('.//source').get('file')

    def run_commit(self, *outcomes):
        """Let the guest run, and its block commit end in these outcomes."""
        self.define(self.path, live=self.disk, running=True)
        self.block_commit.side_effect = outcomes
        return self.block_commit

    def merge_fails(self):
        """Check that the merge fails and keeps the overlay.

        :returns: the error's text
        """
        error = self.assertRaises(exception.ReleaseFailed, self.merge.run)
        self.assertTrue(os.path.exists(self.path))
        return str(error)

    def assert_removed(self):
        self.assertFalse(os.path.exists(self.path))


class TableTest(MergeTestCase):
    """Each cell of the table."""

    def run_in_states(self, act):
        """Run a function for each state, each time with an overlay.

        A lost one has tests of its own.
        """
        for state in set(MergeState) - {MergeState.LOST}:
            with self.subTest(state.name):
                self.in_state(state)
                self.commit.reset_mock()
                act(state)

    def test_table_has_action_for_each_guest_and_each_state(self):
        self.assertEqual(set(GuestState), set(overlay_merge.ACTIONS))
        for actions in overlay_merge.ACTIONS.values():
            self.assertEqual(set(MergeState), set(actions))

    def test_each_action_of_the_table_is_used(self):
        used = {action for actions in overlay_merge.ACTIONS.values()
                for action in actions.values()}
        self.assertEqual(set(Action), used)

    def test_foreign_overlay_is_not_touched_and_libvirt_not_called(self):
        self.merge.foreign = True
        self.merge.run()
        self.assertTrue(os.path.exists(self.path))
        self.host.get_connection.assert_not_called()
        self.find_guest.assert_not_called()

    def test_guest_that_left_the_overlay_is_defined_on_its_disk(self):
        def left(_state):
            self.run_commit(CommitState.MERGED)
            self.merge.run()
            self.assertEqual(self.disk, self.defined_on())
            self.assert_removed()

        self.run_in_states(left)

    def test_overlay_is_removed_before_the_definition_is_put_back(self):
        # A loss of power can undo the definition, and must not make the
        # overlay the guest's again.
        self.run_commit(CommitState.MERGED)
        update = self.guest.update_persistent_device.side_effect
        self.guest.update_persistent_device.side_effect = lambda xml: (
            self.assert_removed(), update(xml))
        self.merge.run()
        self.assertEqual(self.disk, self.defined_on())

    def test_guest_continues_when_the_overlay_is_removed(self):
        self.run_commit(CommitState.MERGED)
        limit = self.patch(block_commit.ActiveCommit, 'remove_limit')
        limit.side_effect = lambda _guest: self.assert_removed()
        self.guest.update_persistent_device.side_effect = (
            lambda _xml: limit.assert_called_once_with(self.guest))
        self.assertRaises(exception.ReleaseFailed, self.merge.run)

    def test_guest_continues_even_if_the_overlay_can_not_be_removed(self):
        self.run_commit(CommitState.MERGED)
        self.patch(overlay_files.OverlayFiles,
                   'remove_overlay').side_effect = OSError('EIO')
        limit = self.patch(block_commit.ActiveCommit, 'remove_limit')
        self.assertRaises(exception.ReleaseFailed, self.merge.run)
        limit.assert_called_once_with(self.guest)

    def test_guest_that_can_not_be_resumed_is_not_done(self):
        self.run_commit(CommitState.MERGED)
        self.patch(write_limit.WriteLimit,
                   'remove').side_effect = base.libvirt_error(
                       libvirt.VIR_ERR_OPERATION_FAILED)
        self.assertRaises(exception.ReleaseFailed, self.merge.run)

    def test_fence_stays_until_the_definition_is_synced(self):
        self.merge.files._fence.create()
        self.run_commit(CommitState.MERGED)
        self.sync_definition.side_effect = OSError('EIO')
        self.assertRaises(exception.ReleaseFailed, self.merge.run)
        self.assertTrue(self.files.exist())
        self.sync_definition.side_effect = None
        self.run_commit(CommitState.NOT_THERE)
        self.merge.run()
        self.assertFalse(self.files.exist())

    def test_running_guest_on_disk_keeps_overlay_with_data_unless_merged(self):
        self.holds_data.return_value = True
        self.identity.return_value = 'another QEMU'

        def on_disk(state):
            self.run_commit(CommitState.NOT_THERE)
            self.define(self.disk, running=True)
            if state is MergeState.MERGED:
                self.merge.run()
                self.assert_removed()
            else:
                error = self.merge_fails()
                self.assertIn('has written to it', error)
                self.assertIn('Do not commit it', error)

        self.run_in_states(on_disk)

    def test_empty_overlay_of_running_guest_is_removed(self):
        self.holds_data.return_value = False
        self.identity.return_value = 'another QEMU'

        def on_disk(_state):
            self.run_commit(CommitState.NOT_THERE)
            self.define(self.disk, running=True)
            self.merge.run()
            self.assert_removed()

        self.run_in_states(on_disk)

    def test_guest_of_the_same_qemu_has_left_the_overlay(self):
        self.identity.return_value = 'this QEMU'
        for state in (MergeState.OUTSTANDING, MergeState.PIVOTING):
            self.in_state(state)
            self.run_commit(CommitState.NOT_THERE)
            self.merge.restore({**self.merge.record(), 'qemu': 'this QEMU'})
            self.merge.run()
            self.holds_data.assert_not_called()
            self.assert_removed()

    def test_qemu_that_was_not_seen_on_the_overlay_has_not_left_it(self):
        # libvirtd that died during the switch may call the disk the guest's.
        self.define(self.disk, running=True)
        self.merge.capture_state(self.guest)
        self.run_commit(CommitState.NOT_THERE)
        self.holds_data.side_effect = processutils.ProcessExecutionError(
            stderr='Failed to get "write" lock')
        self.assertIn('lock', self.merge_fails())
        self.assertIs(MergeState.OUTSTANDING, self.files.state)

    def test_guest_that_runs_on_its_disk_makes_it_unknown_which_is_newer(self):
        self.holds_data.return_value = True
        self.identity.return_value = 'another QEMU'
        self.run_commit(CommitState.NOT_THERE)
        self.merge_fails()
        self.assertIs(MergeState.PIVOTING, self.files.state)

    def test_guest_that_left_unseen_continues_when_overlay_is_removed(self):
        self.identity.return_value = 'this QEMU'
        self.run_commit(CommitState.NOT_THERE)
        self.merge.restore({**self.merge.record(), 'qemu': 'this QEMU'})
        limit = self.patch(block_commit.ActiveCommit, 'remove_limit')
        limit.side_effect = lambda _guest: self.assert_removed()
        self.merge.run()
        limit.assert_called_with(self.guest)

    def test_guest_continues_if_the_state_can_not_be_read_after_pivot(self):
        self.run_commit(CommitState.MERGED)
        limit = self.patch(block_commit.ActiveCommit, 'remove_limit')
        states = [MergeState.OUTSTANDING, *[OSError('ESTALE')] * 2]
        with mock.patch.object(
                overlay_files.OverlayFiles, 'state',
                new_callable=mock.PropertyMock, side_effect=states):
            self.assertRaises(exception.ReleaseFailed, self.merge.run)
        limit.assert_called_once_with(self.guest)

    def test_qemu_that_will_leave_the_overlay_is_in_the_journal(self):
        # After a suspend it is another QEMU than when the snapshot began.
        self.identity.return_value = 'resumed QEMU'
        self.run_commit(CommitState.MERGED)
        self.define(self.path, running=True)
        self.save.side_effect = lambda: self.assertEqual(
            'resumed QEMU', self.merge.record()['qemu'])
        self.merge.run()
        self.save.assert_called_once_with()

    def test_shut_off_guest_on_overlay_is_committed_unless_merged(self):
        self.holds_same_data.return_value = True

        def on_overlay(state):
            self.define(self.path)
            self.merge.run()
            self.assertEqual(state is MergeState.OUTSTANDING,
                             self.commit.called)
            self.assertEqual(self.disk, self.defined_on())
            self.assert_removed()

        self.run_in_states(on_overlay)

    def test_overlay_that_may_be_older_is_not_committed_if_it_differs(self):
        self.holds_same_data.return_value = False
        self.patch(qemu_img, 'backing_chain').return_value = [
            '/i/other', self.path, self.disk]
        for path in (self.path, self.disk, '/i/other', None):
            self.in_state(MergeState.PIVOTING)
            if path:
                self.define(path)
            else:
                self.find_guest.side_effect = GONE
            error = self.merge_fails()
            self.assertIn('unknown which of them is newer', error)
            self.commit.assert_not_called()
            if path:
                self.assertEqual(path, self.defined_on())
                self.assertIn('First make copies', error)

    def test_shut_off_guest_on_disk_keeps_overlay_with_other_data(self):
        def on_disk(state):
            for same in (False, True):
                self.holds_same_data.return_value = same
                self.define(self.disk)
                if same or state is MergeState.MERGED:
                    self.merge.run()
                    self.assert_removed()
                    return
                self.assertIn('First make copies', self.merge_fails())
                self.commit.assert_not_called()

        self.run_in_states(on_disk)

    def test_overlay_below_another_is_committed_and_leaves_the_chain(self):
        self.holds_same_data.return_value = True
        self.patch(qemu_img, 'backing_chain').return_value = [
            '/i/other', self.path, self.disk]
        change = self.patch(qemu_img, 'change_backing_file')

        def on_other(_state):
            self.define('/i/other')
            self.merge.run()
            self.commit.assert_called_once()
            change.assert_called_with('/i/other', self.target.disk)
            self.assert_removed()

        self.run_in_states(on_other)

    def test_undefined_guest_is_committed_compared_or_only_removed(self):
        self.holds_same_data.return_value = True

        def undefined(state):
            self.merge.run()
            self.assert_removed()
            self.assertEqual(state is MergeState.OUTSTANDING,
                             self.commit.called)

        self.run_in_states(undefined)

    def test_companions_of_a_removed_overlay_are_removed(self):
        self.files.remove_overlay()
        self.merge.files._fence.create()
        self.merge.run()
        self.commit.assert_not_called()
        self.assertFalse(self.files.exist())

    def test_overlay_of_a_deleted_directory_needs_nothing(self):
        shutil.rmtree(os.path.dirname(self.path))
        self.merge.run()


class LostTest(MergeTestCase):
    """The overlay is gone, and its marker is not."""

    def setUp(self):
        super().setUp()
        self.merge.files._fence.create()
        self.patch(qemu_img, 'backing_chain').return_value = [
            '/i/other', self.disk]

    def lose(self):
        """Return the names of what is left, as it must stay."""
        self.files.mark_unmerged()
        pathlib.Path(self.path).unlink(missing_ok=True)
        return set(os.listdir(os.path.dirname(self.path)))

    def merge_fails(self):
        left = self.lose()
        error = str(self.assertRaises(
            exception.ReleaseFailed, self.merge.run))
        self.assertEqual(left, set(os.listdir(os.path.dirname(self.path))))
        self.commit.assert_not_called()
        self.guest.update_persistent_device.assert_not_called()
        return error

    def test_guest_that_is_off_is_not_touched_and_the_error_says_why(self):
        for path in (self.path, self.disk, '/i/other', None):
            if path:
                self.define(path)
            else:
                self.find_guest.side_effect = GONE
            error = self.merge_fails()
            for text in (f'{self.path} is missing', 'put it back',
                         f'remove {self.path}.unmerged'):
                self.assertIn(text, error)
            for text in ('qemu-img commit', 'All data is in'):
                self.assertNotIn(text, error)

    def test_guest_that_runs_on_its_disk_is_left_to_the_operator(self):
        self.run_commit(CommitState.NOT_THERE)
        self.define(self.disk, running=True)
        self.merge.restore({**self.merge.record(), 'qemu': 'this QEMU'})
        error = self.merge_fails()
        self.assertIn(f'remove {self.path}.unmerged', error)
        self.assertNotIn('put it back', error)

    def test_guest_that_is_off_starts_when_the_overlay_is_back(self):
        self.define(self.path)
        self.merge_fails()
        self.in_state(MergeState.OUTSTANDING)
        self.merge.run()
        self.commit.assert_called_once()
        self.assertFalse(self.files.exist())

    def test_guest_that_is_off_starts_when_its_loss_is_accepted(self):
        self.define(self.path)
        self.merge_fails()
        os.unlink(f'{self.path}.unmerged')
        self.merge.run()
        self.assertEqual(self.disk, self.defined_on())
        self.assertFalse(self.files.exist())

    def test_running_guest_that_still_has_it_open_is_merged(self):
        self.run_commit(CommitState.MERGED)
        self.lose()
        self.merge.run()
        self.assertEqual(self.disk, self.defined_on())
        self.assertFalse(self.files.exist())

    def test_running_guest_that_can_not_be_merged_must_not_be_stopped(self):
        self.run_commit(exception.CommitFailed(
            disk='vda', guest='g', reason='it is not'))
        self.define(self.path, running=True)
        self.assertIn('Do not stop it', self.merge_fails())

    def test_overlay_of_an_instance_that_nova_deletes_is_not_missed(self):
        self.lose()
        self.patch(checks, 'find_deletion').return_value = GONE
        self.merge.run()


class MergeTest(MergeTestCase):
    """Faults that can't be caused at will with real guests."""

    def test_overlay_of_undefined_guest_is_committed_then_removed(self):
        self.commit.side_effect = lambda *_args: self.assertTrue(
            os.path.exists(self.path))
        self.merge.run()
        self.commit.assert_called_once()
        self.assert_removed()

    def test_overlay_that_nova_deletes_during_commit_is_no_error(self):
        def delete(*_args):
            shutil.rmtree(os.path.dirname(self.path))
            raise processutils.ProcessExecutionError()

        self.commit.side_effect = delete
        self.merge.run()

    def delete_during_commit(self, **result):
        """Delete the files of a guest that is still defined.

        :param result: result of the check whether the instance is deleted
        """
        self.patch(checks, 'find_deletion').configure_mock(**result)
        self.define(self.path)

        def commit(path, _disk, _base_chain):
            shutil.rmtree(os.path.dirname(path))
            raise processutils.ProcessExecutionError('could not open')

        self.commit.side_effect = commit

    def fails_without_overlay(self):
        return str(self.assertRaises(exception.ReleaseFailed, self.merge.run))

    def test_overlay_deleted_with_its_instance_is_no_error(self):
        self.delete_during_commit(return_value=GONE)
        self.merge.run()

    def test_overlay_deleted_without_its_instance_is_an_error(self):
        self.delete_during_commit(return_value=None)
        self.assertIn('could not open', self.fails_without_overlay())

    def test_overlay_deleted_while_nova_is_unreachable_is_an_error(self):
        self.delete_during_commit(side_effect=AWAY)
        self.assertIn('could not open', self.fails_without_overlay())

    def on_volume(self):
        self.target = dataclasses.replace(
            self.target, disk=dataclasses.replace(
                self.target.disk, storage='block'))
        self.merge = overlay_merge.OverlayMerge(
            self.host, self.target, self.path, self.save)
        self.define(self.path)
        return self.patch(checks, 'find_deletion')

    def test_nobody_waits_for_a_guest_that_is_off(self):
        self.useFixture(fixtures.MockPatchObject(
            write_limit, 'PAUSES', write_limit.Pauses()))
        self.merge.restore({**self.merge.record(), 'write_limit': {
            'original': {}, 'limits': [], 'paused': True}})
        self.define(self.path)
        self.merge.run()
        self.assertEqual([], write_limit.PAUSES.stop(0))

    def test_guest_does_not_wait_for_a_nova_that_does_not_answer(self):
        answered = threading.Event()
        self.addCleanup(answered.set)
        self.on_volume().side_effect = lambda *_: answered.wait()
        with mock.patch.object(bounded, 'NOVA_TIMEOUT', 0):
            self.merge.run()
        self.commit.assert_called_once()

    def test_nothing_is_merged_into_a_volume_that_nova_clears(self):
        find_deletion = self.on_volume()
        find_deletion.return_value = GONE
        self.merge.run()
        self.commit.assert_not_called()
        # A soft-deleted instance can be restored, with all of its data.
        find_deletion.assert_called_once_with(
            self.target.context, self.target.instance.uuid,
            (task_states.DELETING,))
        find_deletion.return_value = None
        self.merge.run()
        self.commit.assert_called_once()

    def test_overlay_that_is_removed_already_has_no_remedy_for_data(self):
        run = self.run_commit(CommitState.MERGED)
        self.guest.update_persistent_device.side_effect = NOT_RUNNING
        error = str(self.assertRaises(
            exception.ReleaseFailed, self.merge.run))
        run.assert_called_once()
        self.assertIn(f'All data is in {self.disk}', error)
        self.assertIn('virsh resume', error)
        self.assertNotIn('move', error)

    def test_guest_that_runs_on_a_copy_is_to_be_moved_back(self):
        self.block_commit.side_effect = exception.CommitFailed(
            disk='vda', guest='g', reason='it is elsewhere')
        self.define('/i/copy', running=True)
        for state, left in (
                (MergeState.MERGED, self.path),
                (MergeState.OUTSTANDING, f'{self.path}.unmerged and '
                                         f'{self.path}')):
            self.in_state(state)
            error = self.merge_fails()
            for text in ('/i/copy', f'move {left} to another directory',
                         f'"virsh blockcopy {self.target.instance.name} vda '
                         f'{self.disk} --format raw --reuse-external '
                         f'--transient-job --wait --pivot"'):
                self.assertIn(text, error)
            for text in ('All data is in', 'does not see', 'commit'):
                self.assertNotIn(text, error)

    def test_guest_that_is_off_on_a_copy_is_to_be_moved_back(self):
        self.patch(qemu_img, 'backing_chain').return_value = ['/i/copy']
        self.define('/i/copy')
        for state in (MergeState.MERGED, MergeState.OUTSTANDING):
            self.in_state(state)
            error = self.merge_fails()
            for text in (f'first make a copy of {self.disk}', 'virsh edit',
                         f'-O raw /i/copy {self.disk}"'):
                self.assertIn(text, error)
            for text in ('All data is in', 'qemu-img commit'):
                self.assertNotIn(text, error)

    def test_running_guest_with_a_pulled_overlay_is_to_be_moved_back(self):
        self.run_commit(exception.CommitFailed(
            disk='vda', guest='g', reason='it is pulled'))
        self.define(self.path, running=True, pulled=True)
        error = self.merge_fails()
        self.assertIn('is the whole disk now', error)
        self.assertIn('virsh blockcopy', error)
        self.assertNotIn('merges the overlay by itself', error)

    def test_pulled_overlay_of_a_guest_that_is_off_is_to_be_copied(self):
        self.patch(qemu_img, 'backing_chain').return_value = [self.path]
        self.patch(qemu_img, 'backing_file').side_effect = (
            exception.UnexpectedState(reason='no backing file'))
        self.commit.side_effect = exception.UnexpectedState(reason='none')
        for defined in (True, False):
            if defined:
                self.define(self.path)
            else:
                self.find_guest.side_effect = GONE
            error = self.merge_fails()
            for text in ('is the whole disk now', 'First make copies',
                         f'"qemu-img convert -n -f qcow2 -O raw {self.path} '
                         f'{self.disk}"'):
                self.assertIn(text, error)
            self.assertNotIn('qemu-img commit', error)

    def test_overlay_that_is_to_be_moved_away_is_moved_after_its_marker(self):
        self.holds_same_data.return_value = False
        self.define(self.disk)
        self.assertIn(f'move {self.path}.unmerged and {self.path} to',
                      self.merge_fails())
        self.files.unmark()
        self.assertIn(f'move {self.path} to', self.merge_fails())

    def test_overlay_without_a_guest_has_the_remedy_of_two_histories(self):
        self.in_state(MergeState.PIVOTING)
        self.holds_same_data.return_value = False
        error = self.merge_fails()
        self.assertIn('No guest of the instance is defined on this host',
                      error)
        self.assertIn('find out which is newer', error)

    def test_overlay_that_can_not_be_committed_is_kept(self):
        self.commit.side_effect = processutils.ProcessExecutionError(
            stderr='no space')
        error = self.merge_fails()
        for part in ('no space', self.path, self.disk):
            self.assertIn(part, error)

    def test_overlay_without_its_disk_is_kept(self):
        os.unlink(self.disk)
        self.merge_fails()

    def test_unreachable_libvirtd_is_waited_for(self):
        self.host.get_connection.side_effect = [AWAY, AWAY, mock.DEFAULT]
        self.merge.run()
        self.assertEqual(2, self.sleep.call_count)

    def test_libvirtd_that_stays_unreachable_is_reported(self):
        self.host.get_connection.side_effect = AWAY
        self.find_guest.side_effect = AWAY
        self.flags(operation_timeout=1, group='snapext')
        self.sleep.side_effect = lambda _seconds: (
            threading.Event().wait(0.3))
        error = self.merge_fails()
        self.assertIn('is unknown', error)
        self.assertIn(f'Do not start it from {self.disk}', error)

    def test_lost_connection_is_opened_again(self):
        run = self.run_commit(CONNECTION_LOST, CommitState.MERGED)
        self.merge.run()
        self.assertEqual(2, run.call_count)
        self.assertEqual(2, self.host.get_connection.call_count)

    def test_error_of_guest_that_ended_is_no_error(self):
        def end(_guest):
            self.find_guest.side_effect = GONE
            raise NOT_RUNNING

        self.run_commit().side_effect = end
        self.merge.run()
        self.commit.assert_called_once()

    def test_error_of_guest_that_still_runs_is_reported(self):
        self.run_commit(NOT_RUNNING)
        self.assertIn('libvirt refuses', self.merge_fails())

    def test_guest_that_ended_in_the_block_commit_is_checked_again(self):
        run = self.run_commit(CommitState.ENDED, CommitState.MERGED)
        self.merge.run()
        self.assertEqual(2, run.call_count)
        self.assert_removed()

    def test_guest_started_during_offline_commit_is_merged_again(self):
        self.define(self.path)
        self.guest.is_active.side_effect = [False, True, False]
        self.holds_data.return_value = False
        self.merge.run()
        self.assertEqual(3, self.guest.is_active.call_count)
        self.assert_removed()

    def test_merge_continues_if_journal_can_not_be_written(self):
        for error in (OSError('no space'), exception.JournalFailed(
                path='/j', reason='no space')):
            self.in_state(MergeState.OUTSTANDING)
            self.save.side_effect = error
            self.run_commit(CommitState.MERGED)
            self.define(self.path, running=True)
            self.merge.run()
            self.assert_removed()

    def test_marker_is_removed_before_the_pivot_and_back_if_it_failed(self):
        self.merge._before_pivot()
        self.assertIs(MergeState.PIVOTING, self.files.state)
        self.merge._pivot_failed()
        self.assertIs(MergeState.OUTSTANDING, self.files.state)

    def test_no_pivot_is_requested_if_the_marker_can_not_be_removed(self):
        with mock.patch.object(os, 'unlink', side_effect=OSError('EROFS')):
            self.assertRaises(OSError, self.merge._before_pivot)

    def test_marker_that_can_not_be_put_back_is_no_error(self):
        self.merge._before_pivot()
        with mock.patch.object(os, 'open', side_effect=OSError('ENOSPC')):
            self.merge._pivot_failed()
        self.assertIs(MergeState.PIVOTING, self.files.state)


class Leftover(journal.Resource):
    """A resource whose release is a merge."""

    kind = 'overlay'

    def __init__(self, merge):
        self._merge = merge

    def record(self):
        return self._merge.record()

    @classmethod
    def restore(cls, driver, target, record):
        raise NotImplementedError()

    def release(self):
        self._merge.run()


class ForbiddenTest(MergeTestCase):
    """AppArmor forbids the guest to write to its disk."""

    def merge_of(self, running, rules):
        apparmor = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self.useFixture(fixtures.MockPatchObject(
            confinement, 'APPARMOR', apparmor))
        (apparmor / 'libvirt').mkdir()
        (apparmor / 'libvirt' / 'libvirt-1.files').write_text(rules)
        self.define(self.path, running=running)
        definition = self.guest.get_xml_desc.side_effect
        self.guest.get_xml_desc.side_effect = lambda **options: (
            definition(**options).replace(
                '</domain>', '<seclabel type="dynamic" model="apparmor">'
                '<label>libvirt-1</label></seclabel></domain>'))
        self.block_commit.side_effect = self.commit.side_effect = (
            base.libvirt_error(libvirt.VIR_ERR_INTERNAL_ERROR))
        return self.merge_fails(), str(apparmor / 'libvirt' / 'libvirt-1')

    def test_error_names_the_line_to_remove_and_how_to_load_the_profile(self):
        error, profile = self.merge_of(True, f'  deny "{self.disk}" w,\n')
        for text in ('nothing is lost', 'merged when the guest is shut off',
                     f'"deny" and names {self.disk} from {profile}.files',
                     f'"apparmor_parser -r {profile}"'):
            self.assertIn(text, error)

    def test_other_errors_do_not_blame_apparmor(self):
        for running, rules in ((True, f'  "{self.disk}" rwk,\n'),
                               (False, f'  deny "{self.disk}" w,\n')):
            error, _profile = self.merge_of(running, rules)
            self.assertNotIn('AppArmor', error)


class UnexpectedErrorTest(MergeTestCase):
    """Bugs of ours, which are not reported as a problem of the merge."""

    def test_unexpected_error_propagates_and_keeps_the_overlay(self):
        for error in (ValueError, KeyError, ZeroDivisionError):
            self.commit.side_effect = error
            self.assertRaises(error, self.merge.run)
            self.assertTrue(os.path.exists(self.path))

    def test_unexpected_error_leaves_the_journal_entry(self):
        self.commit.side_effect = ValueError

        def snapshot():
            with journal.new_entry(self.target, 'external') as entry, \
                    journal.ReleaseStack(entry) as stack:
                stack.add(Leftover(self.merge))

        self.assertRaises(ValueError, snapshot)
        [record] = journal.find(self.target.instance.uuid).records
        self.assertEqual('overlay', record.kind)
