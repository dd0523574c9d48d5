# SPDX-License-Identifier: Apache-2.0

from unittest import mock

import fixtures
import glanceclient.exc
from nova import context as nova_context
from nova import exception as nova_exception
from nova.image import glance as nova_glance

from nova_snapext import upload
from tests.unit import base


class ImageDeletedCheckTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.server = mock.Mock()
        self.server.http_client.get.return_value = None, {}
        self.useFixture(fixtures.MockPatchObject(
            nova_glance.GlanceClientWrapper, '_create_onetime_client',
            return_value=self.server))
        self.check = upload.ImageDeletedCheck(
            nova_context.RequestContext('user', 'project'), base.IMAGE_ID)

    def test_existing_image_is_no_cause(self):
        self.assertIsNone(self.check.run())
        self.server.http_client.get.assert_called_once_with(
            f'/v2/images/{base.IMAGE_ID}')

    def test_deleted_image_returns_error_that_nova_manager_expects(self):
        self.server.http_client.get.side_effect = (
            glanceclient.exc.HTTPNotFound())
        self.assertIsInstance(self.check.run(), nova_exception.ImageNotFound)

    def test_unreachable_glance_raises_without_retry(self):
        self.server.http_client.get.side_effect = (
            glanceclient.exc.CommunicationError())
        self.assertRaises(glanceclient.exc.CommunicationError, self.check.run)
        self.server.http_client.get.assert_called_once()

    def test_closed_check_stops_waiting(self):
        self.check.close()
        self.assertRaises(nova_exception.ImageNotFound,
                          self.check._client._token.raise_if_cancelled)
