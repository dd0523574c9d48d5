# SPDX-License-Identifier: Apache-2.0

import contextlib
from unittest import mock

import libvirt
from nova.compute import task_states
from nova.compute import utils as compute_utils
from nova import exception as nova_exception
from nova.virt import fake
from nova.virt.libvirt import driver as nova_driver
from nova.virt.libvirt import guest as libvirt_guest

from nova_snapext import driver
from nova_snapext import exception
from nova_snapext import freeze
from tests.unit import base

DOMAIN = """
<domain type='qemu'><os><type>hvm</type></os><devices>
  <disk type='file' device='disk'>
    <driver name='qemu' type='{}'/><source file='/i/disk'/>
    <target dev='vda' bus='virtio'/>
  </disk>
</devices></domain>
"""


class SnapshotTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.flags(virt_type='qemu', group='libvirt')
        self.driver = driver.SnapextDriver(fake.FakeVirtAPI(), read_only=True)
        self.domain = mock.MagicMock()
        self.domain.XMLDesc.return_value = DOMAIN.format('qcow2')
        self.domain.isActive.return_value = 1
        self.steps = []
        self.update_task_state = mock.Mock(
            side_effect=lambda task_state, **_expected:
                self.steps.append(task_state))
        self.image = {'id': base.IMAGE_ID, 'name': 'snap'}
        self.native = self.patch(nova_driver.LibvirtDriver, 'snapshot')
        self.patch(self.driver._host, 'get_guest',
                   lambda _instance: libvirt_guest.Guest(self.domain))
        self.patch(self.driver, '_image_api').get.return_value = self.image
        self.stream = self.patch(self.driver, '_stream')
        self.stream.side_effect = lambda *_: self.step('stream', (1, 2))
        for strategy in self.driver._strategies:
            self.patch(strategy, 'freeze', self.freeze)
        self.released = False

    def patch(self, target, name, *value):
        patch = mock.patch.object(target, name, *value)
        self.addCleanup(patch.stop)
        return patch.start()

    def step(self, name, result=None):
        self.steps.append(name)
        return result

    @contextlib.contextmanager
    def freeze(self, plan):
        self.steps.append('freeze')
        try:
            yield freeze.FrozenDisk('nbd:', freeze.Consistency.CRASH, 0.03)
        finally:
            self.steps.append('release')

    def snapshot(self):
        instance = self.instance()
        instance.save = mock.Mock()
        self.driver.snapshot(None, instance, base.IMAGE_ID,
                             self.update_task_state)

    def test_task_states_come_in_nova_s_order_around_freeze_and_stream(self):
        self.snapshot()
        self.assertEqual(
            [task_states.IMAGE_PENDING_UPLOAD, 'freeze',
             task_states.IMAGE_UPLOADING, 'stream', 'release'], self.steps)

    def test_the_first_task_state_expects_what_its_caller_does(self):
        # Backup, shelve and image create each have another one before it.
        self.snapshot()
        self.assertEqual(
            [mock.call(task_state=task_states.IMAGE_PENDING_UPLOAD),
             mock.call(task_state=task_states.IMAGE_UPLOADING,
                       expected_state=task_states.IMAGE_PENDING_UPLOAD)],
            self.update_task_state.mock_calls)

    def test_the_disk_waits_unfrozen_for_its_turn_at_disk_operations(self):
        semaphore = mock.MagicMock()
        semaphore.__enter__.side_effect = lambda: self.step('turn')
        self.patch(compute_utils, 'disk_ops_semaphore', semaphore)
        self.snapshot()
        self.assertLess(self.steps.index('turn'), self.steps.index('freeze'))

    def test_an_upload_that_fails_releases_the_disk(self):
        self.stream.side_effect = nova_exception.GlanceConnectionFailed(
            server='glance', reason='down')
        self.assertRaises(nova_exception.GlanceConnectionFailed,
                          self.snapshot)
        self.assertEqual('release', self.steps[-1])

    def test_metadata_is_nova_s_own(self):
        self.snapshot()
        plan = self.stream.mock_calls[0].args[0]
        self.assertEqual('snap', plan.metadata['name'])
        self.assertEqual('qcow2', plan.metadata['disk_format'])
        self.assertEqual('snapshot',
                         plan.metadata['properties']['image_location'])

    def test_what_is_not_served_goes_to_nova_untouched_and_says_why(self):
        self.domain.XMLDesc.return_value = DOMAIN.format('vdi')
        self.snapshot()
        self.native.assert_called_once_with(
            None, mock.ANY, base.IMAGE_ID, self.update_task_state)
        self.assertEqual([], self.steps)
        self.assertIn('its root disk has the format vdi',
                      self.stdlog.logger.output)

    def test_a_domain_that_is_not_there_is_an_instance_not_running(self):
        self.patch(self.driver._host, 'get_guest',
                   mock.Mock(side_effect=nova_exception.InstanceNotFound(
                       instance_id='i')))
        self.assertRaises(nova_exception.InstanceNotRunning, self.snapshot)

    def test_an_image_that_was_deleted_before_touches_nothing(self):
        self.driver._image_api.get.side_effect = (
            nova_exception.ImageNotFound(image_id='i'))
        self.assertRaises(nova_exception.ImageNotFound, self.snapshot)
        self.assertEqual([], self.steps)

    def test_what_failed_is_logged_with_its_cause(self):
        self.stream.side_effect = exception.ImageMismatch(
            image='i', reason='other bytes')
        self.assertRaises(exception.ImageMismatch, self.snapshot)
        self.assertIn('Snapshot of root disk vda into image',
                      self.stdlog.logger.output)
        self.assertIn('other bytes', self.stdlog.logger.output)

    def test_a_domain_that_vanishes_meanwhile_is_an_instance_not_found(self):
        error = libvirt.libvirtError('gone')
        error.err = (libvirt.VIR_ERR_NO_DOMAIN, 0, '', 0, None, None, None,
                     0, 0)
        self.stream.side_effect = error
        self.assertRaises(nova_exception.InstanceNotFound, self.snapshot)

    def test_a_read_error_is_one_unless_the_guest_has_vanished(self):
        self.stream.side_effect = exception.DiskReadError(
            disk='vda', reason='cut')
        exists = self.patch(self.driver, 'instance_exists')
        exists.return_value = True
        self.assertRaises(exception.DiskReadError, self.snapshot)
        exists.return_value = False
        self.assertRaises(nova_exception.InstanceNotFound, self.snapshot)
