# SPDX-License-Identifier: Apache-2.0

import datetime
from unittest import mock

import fixtures
from keystoneauth1 import access
from keystoneauth1 import exceptions as ks_exceptions
from keystoneauth1 import fixture as ks_fixture
from keystoneauth1 import identity
from keystoneauth1 import session as ks_session
from keystoneauth1 import token_endpoint
from oslo_utils import timeutils

from nova_snapext.upload import service_login
from tests.unit import base

GLANCE = 'http://glance'


class ServiceLoginTest(base.TestCase):
    """Plugins of several clients, which log in to a Keystone."""

    def setUp(self):
        super().setUp()
        self.lifetime = datetime.timedelta(hours=1)
        self.logins = 0
        self.load = self.useFixture(fixtures.MockPatchObject(
            service_login.loading, 'load_auth_from_conf_options',
            side_effect=lambda *_args: self.plugin())).mock

    def plugin(self):
        found = identity.V3Password(
            'http://keystone/v3', username='nova', password='secret',
            user_domain_id='default')
        found.get_auth_ref = self.log_in
        return found

    def log_in(self, _session):
        token = ks_fixture.V3Token(
            expires=timeutils.utcnow() + self.lifetime)
        token.add_service('image').add_standard_endpoints(public=GLANCE)
        self.logins += 1
        return access.create(body=token, auth_token=f'token-{self.logins}')

    def token(self, login):
        return login.get_token(ks_session.Session())

    def test_clients_log_in_once_together(self):
        self.assertEqual(['token-1'] * 3, [
            self.token(service_login.load()) for _client in range(3)])
        self.assertEqual(1, self.logins)

    def test_each_client_has_a_plugin_and_a_lock_of_its_own(self):
        one, other = service_login.load(), service_login.load()
        self.token(one), self.token(other)
        self.assertIsNot(one._auth, other._auth)
        self.assertIsNot(one._auth._lock, other._auth._lock)

    def test_endpoint_is_that_of_the_catalog_of_the_shared_token(self):
        self.token(service_login.load())
        self.assertEqual(GLANCE, service_login.load().get_endpoint(
            ks_session.Session(), service_type='image', interface='public',
            skip_discovery=True))
        self.assertEqual(1, self.logins)

    def test_token_that_expires_soon_is_not_taken_over(self):
        self.lifetime = datetime.timedelta(seconds=60)
        self.token(service_login.load())
        self.assertEqual('token-2', self.token(service_login.load()))

    def test_refused_token_is_dropped_for_all(self):
        first, second = service_login.load(), service_login.load()
        self.token(first), self.token(second)
        self.assertTrue(first.invalidate())
        self.assertEqual('token-2', self.token(service_login.load()))
        self.assertEqual('token-2', self.token(first))

    def test_refused_token_does_not_drop_a_later_one(self):
        first, second = service_login.load(), service_login.load()
        self.token(first), self.token(second)
        first.invalidate()
        self.token(first)
        second.invalidate()
        self.assertEqual('token-2', self.token(service_login.load()))
        self.assertEqual('token-2', self.token(second))

    def test_older_token_that_is_used_again_does_not_replace_a_later_one(self):
        first, second = service_login.load(), service_login.load()
        self.token(first), self.token(second)
        first.invalidate()
        self.token(first)
        self.assertEqual('token-1', self.token(second))
        self.assertEqual('token-2', self.token(service_login.load()))

    def test_failed_login_leaves_nothing_to_share(self):
        login = service_login.load()
        login._auth.get_auth_ref = mock.Mock(
            side_effect=ks_exceptions.ServiceUnavailable)
        self.assertRaises(
            ks_exceptions.ServiceUnavailable, self.token, login)
        self.assertIsNone(service_login._shared.state)

    def test_plugin_without_a_state_is_used_as_it_is(self):
        self.load.side_effect = lambda *_args: token_endpoint.Token(
            GLANCE, 'fixed')
        login = service_login.load()
        self.assertEqual('fixed', self.token(login))
        self.assertEqual(GLANCE, login.get_endpoint(ks_session.Session()))
        self.assertFalse(login.invalidate())

    def test_missing_credentials_are_no_login(self):
        self.load.side_effect = None
        self.load.return_value = None
        self.assertIsNone(service_login.load())
