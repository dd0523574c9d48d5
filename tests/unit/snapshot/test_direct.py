# SPDX-License-Identifier: Apache-2.0

from unittest import mock

import fixtures
from nova import context as nova_context
from nova import exception as nova_exception

from nova_snapext import cancel
from nova_snapext import exception
from nova_snapext.hypervisor import ceph
from nova_snapext.snapshot import direct
from tests.unit import base

SPEC = ceph.SnapSpec(ceph.ImageSpec('vms', 'uuid_disk'), 'snapext-1')


class MakeImageTest(base.TestCase):
    """The order of steps; the steps themselves need a real Ceph."""

    def setUp(self):
        super().setUp()
        self.steps = mock.Mock()
        self.useFixture(fixtures.MockPatchObject(
            ceph, 'size_of', return_value=1))
        self.image = self.useFixture(fixtures.MockPatchObject(
            direct, 'DirectImage', autospec=True)).mock.return_value
        glance = self.useFixture(fixtures.MockPatchObject(
            direct.upload, 'GlanceImage', autospec=True)).mock.return_value
        glance.__enter__.return_value = glance
        self.steps.attach_mock(self.image, 'image')
        self.steps.attach_mock(glance, 'glance')
        self.token = cancel.CancelToken()

    def make(self):
        return direct.make_image(
            mock.Mock(), mock.Mock(), SPEC, {'disk_format': 'raw'},
            {'snapext_consistency': 'filesystem'}, mock.Mock(), self.token,
            mock.Mock())

    def test_properties_are_set_before_glance_takes_the_image_over(self):
        self.assertTrue(self.make())
        names = [name for name, _, _ in self.steps.method_calls]
        self.assertEqual(
            ['image.check', 'glance.update_metadata', 'image.make'], names)

    def test_refusal_leaves_the_disk_to_be_streamed(self):
        for step in (self.image.check, self.image.make):
            step.side_effect = exception.DirectImageRefused(
                instance='i', reason='no rights')
            with self.assertLogs('nova_snapext.snapshot.direct',
                                 'INFO') as logs:
                self.assertFalse(self.make())
            self.assertIn('no rights', logs.output[0])

    def test_clone_that_is_left_fails_the_snapshot(self):
        self.image.make.side_effect = exception.ReleaseFailed(
            instance='i', reason='r')
        self.assertRaises(exception.ReleaseFailed, self.make)

    def test_cancellation_is_the_error(self):
        cause = nova_exception.ImageNotFound(image_id='i')
        self.token.cancel(cause)
        self.image.make.side_effect = exception.CephError(
            action='flatten', reason='cancelled')
        self.assertIs(cause, self.assertRaises(
            nova_exception.ImageNotFound, self.make))


class ReasonTest(base.TestCase):

    def test_only_raw_images_are_made_by_ceph(self):
        self.assertIsNone(
            direct.unsupported_reason(mock.Mock(image_format='raw')))
        self.assertIn('qcow2', direct.unsupported_reason(
            mock.Mock(image_format='qcow2')))

    def test_service_token_or_role_makes_a_service(self):
        user = nova_context.RequestContext(roles=['member'])
        self.assertFalse(direct._is_service(user))
        self.assertTrue(direct._is_service(
            nova_context.RequestContext(roles=['service'])))
        self.flags(send_service_user_token=True, group='service_user')
        self.assertTrue(direct._is_service(user))
