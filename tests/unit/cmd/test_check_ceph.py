# SPDX-License-Identifier: Apache-2.0

import errno
import subprocess
from unittest import mock

import fixtures
from oslo_concurrency import processutils

from nova_snapext.cmd import check_ceph
from nova_snapext import exception
from nova_snapext.hypervisor import ceph
from nova_snapext.recovery import rbd_leftovers
from nova_snapext.upload import location
from nova_snapext.upload import service_user
from tests.unit import base

UUID = '00000000-0000-4000-8000-000000000001'
SNAPSHOT = ceph.SnapSpec(ceph.ImageSpec('vms', f'{UUID}_disk'),
                         'snapext-0123456789abcdef0123456789abcdef')


class RadosError(Exception):

    errno = errno.EPERM


class CephFindingsTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.flags(images_type='rbd', images_rbd_pool='vms', rbd_user='nova',
                   group='libvirt')
        self.flags(rbd_image_pool='images', group='snapext')
        self.installed = self.patch(ceph, 'is_installed', True)
        self.forbidden = set()
        self.writable = self.patch(ceph, 'check_writable', None)
        self.writable.side_effect = self.check_writable
        self.parent_pool = self.patch(ceph, 'parent_pool', None)
        self.qemu = self.patch(processutils, 'execute',
                               ('', 'error connecting'))
        self.left = self.patch(rbd_leftovers, 'without_journal', [])
        self.service = self.patch(service_user, 'missing_reason', None)
        self.patch(service_user, 'context', None)
        self.image = self.patch(location, 'LocatedImage', mock.MagicMock()
                                ).return_value.__enter__.return_value
        self.image.needs_service.return_value = True
        self.image.stores.return_value = ['local', 'ceph']

    def patch(self, owner, name, value):
        return self.useFixture(fixtures.MockPatchObject(
            owner, name, return_value=value)).mock

    def check_writable(self, pool, user=None):
        if pool in self.forbidden or (pool, user) in self.forbidden:
            raise exception.CephError(
                action=f'write to {pool}', reason='no') from RadosError()

    def findings(self, local=(UUID,)):
        return list(check_ceph.ceph_findings(local))

    def failures(self, **kwargs):
        return [text for passed, text in self.findings(**kwargs)
                if not passed]

    def assert_fails(self, *texts, **kwargs):
        [failure] = self.failures(**kwargs)
        for text in texts:
            self.assertIn(text, failure)

    def test_host_without_ceph_has_no_findings(self):
        self.flags(images_type='qcow2', group='libvirt')
        self.assertEqual([], self.findings())

    def write_images(self, **options):
        """Have the disks of the host outside Ceph, and the images in it."""
        self.flags(images_type='qcow2', snapshot_image_format='raw',
                   group='libvirt')
        self.flags(**{'rbd_image_user': 'writer', **options}, group='snapext')

    def test_host_that_writes_images_into_ceph_is_checked_for_that(self):
        self.write_images()
        self.assertEqual([], self.failures())
        self.writable.assert_called_once_with('images', 'writer')
        texts = ' '.join(text for _, text in self.findings())
        for word in ('client.writer may write', 'service', 'locations'):
            self.assertIn(word, texts)
        self.assertNotIn('qemu-nbd', texts)

    def test_user_of_images_needs_the_right(self):
        self.write_images()
        self.forbidden.add(('images', 'writer'))
        self.assert_fails('client.writer may not write', 'pool=images')

    def test_user_of_images_needs_a_pool(self):
        self.write_images(rbd_image_pool=None)
        self.assert_fails('rbd_image_user', 'rbd_image_pool')

    def test_images_in_ceph_need_the_bindings(self):
        self.write_images()
        self.installed.return_value = False
        self.assert_fails('rbd_image_user', 'python3-rbd')

    def test_images_of_another_format_are_streamed(self):
        self.write_images()
        self.flags(snapshot_image_format='qcow2', group='libvirt')
        self.assertEqual([], self.failures())
        self.assertIn('only raw images', ' '.join(
            text for _, text in self.findings()))

    def test_host_that_has_all_passes(self):
        self.assertEqual([], self.failures())
        texts = ' '.join(text for _, text in self.findings())
        for word in ('vms', 'images', 'qemu-nbd', 'service', 'locations'):
            self.assertIn(word, texts)

    def test_missing_binding_ends_the_checks(self):
        self.installed.return_value = False
        self.assert_fails('python3-rbd')

    def test_missing_driver_of_qemu_is_named_with_its_package(self):
        for text in ("Unknown driver 'rbd'", 'Unknown protocol'):
            self.qemu.return_value = ('', f'qemu-nbd: {text}')
            self.assert_fails('qemu-block-extra')
        for error in (FileNotFoundError('qemu-nbd'),
                      subprocess.TimeoutExpired('qemu-nbd', 30)):
            self.qemu.side_effect = error
            self.assert_fails('qemu-nbd')

    def test_pool_without_the_right_is_named_with_the_capability(self):
        for pool in ('vms', 'images'):
            self.forbidden = {pool}
            self.assert_fails('client.nova', f'profile rbd pool={pool}')

    def test_client_without_a_key_is_not_told_to_change_its_rights(self):
        error = exception.CephError(
            action='write to the pool vms', reason='[errno 13] RADOS '
            'permission denied (error connecting to the cluster)')
        error.__cause__ = RadosError()
        self.writable.side_effect = error
        [failure] = self.failures()
        self.assertIn('does not let client.nova in', failure)
        self.assertNotIn('profile rbd', failure)

    def test_cluster_that_does_not_respond_ends_the_checks(self):
        self.writable.side_effect = exception.CephTimeout(
            action='write', seconds='60')
        self.assert_fails('60 seconds')
        self.service.assert_not_called()

    def test_pool_that_does_not_exist_is_told_by_ceph(self):
        self.writable.side_effect = exception.CephError(
            action='write to the pool vms', reason="error opening pool b'vms'")
        self.assert_fails('error opening pool')

    def test_unknown_pool_is_no_failure(self):
        self.flags(rbd_image_pool=None, group='snapext')
        self.assertEqual([], self.failures())
        self.assertIn('[snapext]rbd_image_pool', str(self.findings()))

    def test_pool_of_the_image_of_a_disk_is_checked_without_the_option(self):
        self.flags(rbd_image_pool=None, group='snapext')
        self.parent_pool.return_value = 'images'
        self.assertEqual([], self.failures())
        self.parent_pool.assert_called_with(SNAPSHOT.image)
        self.forbidden = {'images'}
        self.assert_fails('client.nova', 'profile rbd pool=images')

    def test_missing_service_token_fails_if_a_disk_is_a_clone(self):
        self.flags(rbd_image_pool=None, group='snapext')
        self.service.return_value = 'Nova sends no service token'
        self.assertEqual([], self.failures())
        self.parent_pool.return_value = 'images'
        self.assert_fails('no service token', 'streamed')

    def test_disk_whose_parent_is_not_known_is_a_failure(self):
        self.parent_pool.side_effect = exception.CephTimeout(
            action='tell the parent', seconds='60')
        self.assert_fails('tell the parent')

    def test_other_format_makes_the_direct_way_needless(self):
        self.flags(snapshot_image_format='qcow2', group='libvirt')
        self.forbidden = {'images'}
        self.assertEqual([], self.failures())
        self.assertIn('qcow2', str(self.findings()))

    def test_missing_service_token_fails_with_the_consequence(self):
        self.service.return_value = 'Nova sends no service token'
        self.assert_fails('no service token', 'streamed')

    def test_glance_that_does_not_answer_is_a_failure(self):
        self.image.needs_service.side_effect = OSError('refused')
        self.assert_fails('refused')

    def test_old_glance_is_not_known(self):
        self.image.needs_service.return_value = False
        self.assertEqual([], self.failures())
        self.assertIn('show_multiple_locations', str(self.findings()))

    def test_store_that_glance_does_not_have_is_a_failure(self):
        self.flags(rbd_image_store='fast', group='snapext')
        self.assert_fails('fast', 'local, ceph')

    def test_snapshot_without_a_journal_is_listed_with_the_command(self):
        self.left.return_value = [SNAPSHOT]
        self.assert_fails(str(SNAPSHOT), 'nova-snapext recover')

    def test_snapshot_of_a_guest_elsewhere_is_no_failure(self):
        self.left.return_value = [SNAPSHOT]
        for local in ((), None):
            self.assertEqual([], self.failures(local=local))
            self.assertIn(str(SNAPSHOT), str(self.findings(local=local)))

    def test_pool_that_can_not_be_listed_is_a_failure(self):
        self.left.side_effect = exception.CephError(action='list', reason='x')
        self.assert_fails('what is left in Ceph')
