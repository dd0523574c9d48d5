# SPDX-License-Identifier: Apache-2.0

from unittest import mock

import fixtures
from keystoneauth1 import exceptions as ks_exceptions
from nova import exception as nova_exception

from nova_snapext import cancel
from nova_snapext.upload import service_user
from tests.unit import base


class ContextTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.auth = self.useFixture(fixtures.MockPatchObject(
            service_user.loading, 'load_auth_from_conf_options'
        )).mock.return_value
        self.session = self.useFixture(fixtures.MockPatchObject(
            service_user.connection, 'cancellable_session')).mock
        self.token = cancel.CancelToken()

    def plugin(self):
        return service_user.context(self.token).get_auth_plugin()

    def test_context_without_credentials_is_nova_s_error(self):
        service_user.loading.load_auth_from_conf_options.return_value = None
        self.assertRaises(nova_exception.InvalidConfiguration,
                          service_user.context, self.token)

    def test_context_makes_no_request(self):
        self.plugin()
        self.assertEqual([], self.auth.mock_calls)

    def test_requests_do_not_use_the_session_of_nova(self):
        # It has no timeout, and no token closes its connections.
        plugin, session = self.plugin(), mock.Mock()
        self.assertIs(self.auth.get_token.return_value,
                      plugin.get_token(session))
        self.assertIs(self.auth.get_endpoint.return_value,
                      plugin.get_endpoint(session, min_version='2.0'))
        own = self.session.return_value
        self.auth.get_token.assert_called_once_with(own)
        self.auth.get_endpoint.assert_called_once_with(
            own, min_version='2.0', skip_discovery=True)
        self.assertEqual([], session.mock_calls)
        self.session.assert_called_with(self.token, 'service_user')
        self.assertEqual(2, own.session.close.call_count)

    def test_refused_token_is_requested_again(self):
        self.assertTrue(self.plugin().invalidate())
        self.auth.invalidate.assert_called_once_with()


class MissingReasonTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.flags(send_service_user_token=True, group='service_user')
        self.load = self.useFixture(fixtures.MockPatchObject(
            service_user.loading, 'load_auth_from_conf_options')).mock
        self.access = self.load.return_value.get_access

    def reason(self, *roles):
        self.access.return_value.role_names = list(roles)
        return service_user.missing_reason()

    def test_service_is_no_reason(self):
        self.assertIsNone(self.reason('admin', 'service'))

    def test_missing_token_is_told_with_its_option(self):
        self.flags(send_service_user_token=False, group='service_user')
        self.assertIn('send_service_user_token', self.reason())
        self.load.assert_not_called()

    def test_missing_role_is_told_with_the_roles(self):
        text = self.reason('reader', 'admin')
        self.assertIn('admin, reader', text)
        self.assertIn('"service"', text)

    def test_what_keystone_does_not_tell_is_no_reason(self):
        self.access.side_effect = ks_exceptions.ConnectFailure()
        self.assertIsNone(self.reason())

    def test_cancellation_is_the_error(self):
        token = cancel.CancelToken()
        cause = nova_exception.ImageNotFound(image_id='i')
        token.cancel(cause)
        self.access.side_effect = ks_exceptions.ConnectFailure()
        self.assertIs(cause, self.assertRaises(
            nova_exception.ImageNotFound, service_user.missing_reason, token))

    def test_requests_are_made_by_a_session_of_their_own(self):
        # The lock of Nova's plugin is for green threads under eventlet.
        with mock.patch.object(
                service_user.connection, 'cancellable_session') as session:
            self.reason('service')
        self.access.assert_called_once_with(session.return_value)
        session.return_value.session.close.assert_called_once_with()
