# SPDX-License-Identifier: Apache-2.0

from unittest import mock

import fixtures
import glanceclient.exc
from nova import context as nova_context
from nova import exception as nova_exception
from nova.image import glance as nova_glance

from nova_snapext import upload
from nova_snapext.upload import service_user
from tests.unit import base


class ImageDeletedCheckTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.server = mock.Mock()
        self.server.http_client.get.return_value = None, {}
        self.useFixture(fixtures.MockPatchObject(
            nova_glance.GlanceClientWrapper, '_create_onetime_client',
            return_value=self.server))
        self.user = nova_context.RequestContext('user', 'project')
        self.check = upload.ImageDeletedCheck(self.user, base.IMAGE_ID)

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

    def expire_token(self, *answers):
        """Refuse the user's token, and give these answers as Nova's user."""
        self.service = nova_context.RequestContext('nova', 'service')
        self.useFixture(fixtures.MockPatchObject(
            service_user, 'context', return_value=self.service))
        answers = iter(answers)
        self.contexts = []

        def create(_client, context, _version):
            server = mock.Mock()
            self.contexts.append(context)
            server.http_client.get.side_effect = [
                next(answers) if context is self.service else
                glanceclient.exc.HTTPUnauthorized()]
            return server

        self.useFixture(fixtures.MockPatchObject(
            nova_glance.GlanceClientWrapper, '_create_onetime_client',
            create))

    def test_expired_token_lets_service_user_find_the_deletion(self):
        self.expire_token((None, {}), glanceclient.exc.HTTPNotFound())
        check = upload.ImageDeletedCheck(self.user, base.IMAGE_ID, True)
        self.assertIsNone(check.run())
        self.assertIsInstance(check.run(), nova_exception.ImageNotFound)
        self.assertEqual([self.user, self.service, self.service],
                         self.contexts)

    def test_unknown_user_lets_service_user_find_the_deletion(self):
        self.expire_token((None, {}), glanceclient.exc.HTTPNotFound())
        check = upload.ImageDeletedCheck(None, base.IMAGE_ID)
        self.assertIsNone(check.run())
        self.assertIsInstance(check.run(), nova_exception.ImageNotFound)
        self.assertEqual([self.service] * 2, self.contexts)

    def test_image_that_service_user_may_not_see_is_no_deletion(self):
        self.expire_token(glanceclient.exc.HTTPNotFound())
        self.assertRaises(glanceclient.exc.HTTPUnauthorized, self.check.run)

    def test_image_that_service_user_sees_later_may_be_deleted(self):
        self.expire_token((None, {}), glanceclient.exc.HTTPNotFound())
        self.assertIsNone(self.check.run())
        self.assertIsInstance(self.check.run(), nova_exception.ImageNotFound)

    def test_missing_service_user_is_the_error_of_the_check(self):
        self.expire_token()
        service_user.context.side_effect = (
            nova_exception.InvalidConfiguration('no auth_type'))
        self.assertRaises(nova_exception.InvalidConfiguration,
                          self.check.run)

    def test_closed_check_stops_waiting(self):
        self.check.close()
        self.assertRaises(nova_exception.ImageNotFound,
                          self.check._client._token.raise_if_cancelled)
