# SPDX-License-Identifier: Apache-2.0

from unittest import mock

import glanceclient.exc
import libvirt
from nova.compute import power_state
from nova.compute import task_states
from nova import exception as nova_exception
from nova.virt.libvirt import imagebackend

from nova_snapext import exception
from nova_snapext.hypervisor import ceph
from nova_snapext import journal
from nova_snapext.snapshot import direct
from tests.unit import base
from tests.unit.snapshot import base as snapshot_base


AGENT = """<channel type='unix'>
  <target type='virtio' name='org.qemu.guest_agent.0' state='connected'/>
</channel>"""
GPU = """<hostdev mode='subsystem' type='pci'>
  <source><address domain='0' bus='1' slot='0' function='0'/></source>
  <alias name='hostdev0'/>
</hostdev>"""


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
            'snapext_trim': None,
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


class AgentTest(snapshot_base.SnapshotTestCase):
    """Nova freezes the guest's filesystems during its live snapshot."""

    def setUp(self):
        super().setUp()
        self.domain.XMLDesc.return_value = snapshot_base.DOMAIN.format(
            'ploop').replace('</devices>', f'{AGENT}</devices>')
        self.native.side_effect = self.take
        self.properties = {}
        self.error = None

    def instance(self):
        return super().instance(hw_qemu_guest_agent='yes', **self.properties)

    def take(self, driver, _context, instance, *_args):
        driver.quiesce(None, instance, instance.image_meta)
        self.domain.fsFreeze.assert_called_once()
        self.domain.fsThaw.assert_not_called()
        if self.error is not None:
            raise self.error
        driver.unquiesce(None, instance, instance.image_meta)

    def test_filesystems_are_thawed_once(self):
        self.snapshot()
        self.domain.fsThaw.assert_called_once()

    def test_error_of_nova_after_its_freeze_thaws(self):
        self.error = base.libvirt_error(1)
        self.assertRaises(libvirt.libvirtError, self.snapshot)
        self.domain.fsThaw.assert_called_once()

    def test_freeze_with_an_unknown_end_is_thawed_before_nova_goes_on(self):
        self.domain.fsFreeze.side_effect = base.libvirt_error(
            libvirt.VIR_ERR_AGENT_UNRESPONSIVE)
        self.domain.fsThaw.side_effect = [base.libvirt_error(
            libvirt.VIR_ERR_AGENT_UNRESPONSIVE), None]

        def take(driver, _context, instance, *_args):
            driver.quiesce(None, instance, instance.image_meta)
            driver.unquiesce(None, instance, instance.image_meta)
            self.assertEqual(2, self.domain.fsThaw.call_count)

        self.native.side_effect = take
        self.snapshot()
        self.assertEqual(2, self.domain.fsThaw.call_count)

    def test_freeze_that_fails_ends_a_snapshot_that_requires_it(self):
        self.properties = {'os_require_quiesce': 'yes'}
        for code in (libvirt.VIR_ERR_OPERATION_INVALID,
                     libvirt.VIR_ERR_AGENT_UNRESPONSIVE):
            self.domain.fsFreeze.side_effect = base.libvirt_error(code)
            self.assertRaises(exception.QuiesceFailed, self.snapshot)
            self.domain.fsFreeze.reset_mock()
        self.assertEqual(2, self.discard.call_count)

    def test_freeze_that_fails_does_not_fail_the_snapshot(self):
        self.domain.fsFreeze.side_effect = base.libvirt_error(
            libvirt.VIR_ERR_OPERATION_INVALID)
        self.native.side_effect = lambda driver, _context, instance, *_args: (
            self.assertRaises(
                nova_exception.InstanceQuiesceFailed, driver.quiesce, None,
                instance, instance.image_meta))
        self.snapshot()
        self.domain.fsThaw.assert_not_called()


class DevicesTest(snapshot_base.SnapshotTestCase):
    """Nova takes the guest's devices away, and suspends it."""

    def setUp(self):
        super().setUp()
        self.flags(disable_libvirt_livesnapshot=True, group='workarounds')
        self.domain.XMLDesc.side_effect = self.definition
        self.devices = GPU
        self.attached = self.domain.attachDeviceFlags
        self.attached.side_effect = self.attach
        self.patch(self.driver, 'suspend').side_effect = self.suspend
        self.error = None

    def definition(self, flags):
        devices = (GPU if flags & libvirt.VIR_DOMAIN_XML_INACTIVE
                   else self.devices)
        return snapshot_base.DOMAIN.format('ploop').replace(
            '<domain', "<domain id='1'").replace(
                '</devices>', f'{devices}</devices>')

    def attach(self, _xml, flags):
        self.devices = GPU

    def suspend(self, _context, _instance):
        self.devices = ''
        if self.error is not None:
            raise self.error

    def take(self, driver, context, instance, *_args):
        driver._suspend_guest_for_snapshot(
            context, False, power_state.RUNNING, instance)

    def test_guest_has_the_devices_again_that_nova_did_not_give_back(self):
        self.native.side_effect = self.take
        self.snapshot()
        self.attached.assert_called_once()

    def test_guest_that_is_not_suspended_has_its_devices_again(self):
        self.native.side_effect = self.take
        self.error = nova_exception.PciDeviceDetachFailed(
            reason='busy', dev='gpu')
        self.assertRaises(nova_exception.PciDeviceDetachFailed, self.snapshot)
        self.attached.assert_called_once()

    def test_device_that_may_still_leave_the_guest_is_attached_then(self):
        self.native.side_effect = self.take
        self.driver.suspend.side_effect = (
            nova_exception.PciDeviceDetachFailed(reason='slow', dev='gpu'))
        self.assertRaises(nova_exception.PciDeviceDetachFailed, self.snapshot)
        self.attached.assert_not_called()
        [expected] = self.driver.pending_unplugs._expected.values()
        self.assertEqual(['hostdev0'], list(expected))


class InsideCephTest(snapshot_base.SnapshotTestCase):
    """What Nova's direct snapshot creates, and what is left of it."""

    NAME = '0123456789abcdef0123456789abcdef'
    POOL = 'images'

    def setUp(self):
        super().setUp()
        self.domain.XMLDesc.return_value = snapshot_base.RBD_DOMAIN
        self.flags(strategy='native', group='snapext')
        self.native.side_effect = self.take
        self.disk = mock.create_autospec(imagebackend.Rbd, instance=True)
        self.nova_direct = self.disk.direct_snapshot
        self.nova_direct.return_value = 'rbd://fsid/images/id/snap'
        self.nova_cleanup = self.disk.cleanup_direct_snapshot
        self.patch(self.driver, '_nova_root_disk').return_value = self.disk
        self.parent_pool = self.patch(ceph, 'parent_pool')
        self.parent_pool.return_value = self.POOL
        self.patch(ceph, 'id_of').return_value = '1a'
        self.removed_image = self.patch(ceph, 'remove_image')
        self.removed_snapshot = self.patch(ceph, 'remove_snapshot')
        self.taken_over = self.patch(direct, 'may_be_taken_over')
        self.taken_over.return_value = False
        self.location_error = None
        self.image_format = 'raw'
        self.recorded = []

    def take(self, driver, context, instance, image_id, update_task_state):
        """Do what LibvirtDriver.snapshot does with its image backend."""
        disk = driver.image_backend.by_libvirt_path(
            instance, 'rbd:vms/i_disk', image_type='rbd')
        url = None
        try:
            url = disk.direct_snapshot(
                context, self.NAME, self.image_format, image_id, 'base')
            if self.location_error is not None:
                raise self.location_error
        except (nova_exception.ImageUnacceptable,
                nova_exception.Forbidden):
            self.clean_up(disk, url)
            self.recorded.append('converted')
        except Exception:
            self.clean_up(disk, url)
            raise

    @staticmethod
    def clean_up(disk, url):
        disk.cleanup_direct_snapshot(
            {'url': url} if url else None, also_destroy_volume=True,
            ignore_errors=True)

    def fails(self, error):
        return self.assertRaises(error, self.snapshot)

    def record(self, *_args):
        [entry] = journal.entries()
        self.recorded += [
            (record.kind, record.data) for record in entry.records
            if 'RBD' in record.kind]
        return 'rbd://fsid/images/id/snap'

    def test_snapshot_and_clone_are_recorded_before_nova_creates_them(self):
        self.nova_direct.side_effect = self.record
        self.snapshot()
        self.assertEqual([
            ('native RBD snapshot', {
                'pool': 'vms', 'image': 'i_disk', 'snapshot': self.NAME}),
            ('RBD clone', {
                'pool': 'images', 'image': base.IMAGE_ID, 'user': None,
                'offered': True, 'seen_by_nova': False, 'rbd_id': None,
            })], self.recorded)

    def test_image_that_glance_has_is_kept(self):
        self.snapshot()
        self.removed_image.assert_not_called()
        self.discard.assert_not_called()
        self.removed_snapshot.assert_called_once()
        self.assertEqual([], journal.entries())

    def test_failed_copy_leaves_neither_clone_nor_snapshot(self):
        # Nova hides the cause, and can't unprotect a snapshot with a clone.
        self.nova_direct.side_effect = ZeroDivisionError
        steps = mock.Mock()
        steps.attach_mock(self.removed_image, 'image')
        steps.attach_mock(self.removed_snapshot, 'snapshot')
        self.fails(ZeroDivisionError)
        self.assertEqual(
            [mock.call.image(ceph.ImageSpec('images', base.IMAGE_ID), '1a'),
             mock.call.snapshot(ceph.SnapSpec(
                 ceph.ImageSpec('vms', 'i_disk'), self.NAME))],
            steps.mock_calls)

    def test_failed_registration_leaves_no_data(self):
        self.location_error = glanceclient.exc.HTTPConflict()
        self.fails(glanceclient.exc.HTTPConflict)
        self.nova_cleanup.assert_called_once()
        self.removed_image.assert_called_once()

    def test_image_that_glance_may_have_is_deleted_before_its_data(self):
        self.taken_over.return_value = True
        for self.location_error in (glanceclient.exc.CommunicationError(),
                                    nova_exception.Forbidden()):
            steps = mock.Mock()
            steps.attach_mock(self.discard, 'discard')
            steps.attach_mock(self.removed_image, 'remove')
            self.fails(exception.ImageNotVerified)
            self.nova_cleanup.assert_not_called()
            self.assertEqual([], self.recorded)
            self.assertEqual(['discard', 'remove'],
                             [name for name, _, _ in steps.mock_calls][:2])

    def test_image_that_nova_fills_in_another_way_is_kept(self):
        self.location_error = nova_exception.Forbidden()
        self.snapshot()
        self.assertEqual(['converted'], self.recorded)
        self.discard.assert_not_called()
        # What Nova may have left of its clone.
        self.removed_image.assert_called_once()

    def test_image_of_another_format_is_converted(self):
        self.flags(snapshot_image_format='qcow2', group='libvirt')
        self.image_format = 'qcow2'
        self.snapshot()
        self.assertEqual(['converted'], self.recorded)
        self.nova_direct.assert_not_called()
        self.assertEqual([], journal.entries())

    def test_pool_that_is_unknown_has_no_clone(self):
        self.parent_pool.return_value = None
        self.patch(direct, 'pool_of_base_image').return_value = None
        self.nova_direct.side_effect = (
            nova_exception.ImageUnacceptable(image_id='i', reason='pool'))
        self.snapshot()
        self.removed_image.assert_not_called()

    def test_ceph_that_does_not_respond_ends_the_snapshot_before_nova_waits(
            self):
        self.parent_pool.side_effect = exception.CephTimeout(
            action='tell', seconds='1')
        self.fails(exception.CephTimeout)
        self.nova_direct.assert_not_called()


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
