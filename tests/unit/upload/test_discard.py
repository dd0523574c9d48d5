# SPDX-License-Identifier: Apache-2.0

import fixtures
import glanceclient.exc
from nova import context as nova_context
from nova import exception as nova_exception

from nova_snapext import upload
from nova_snapext.upload import location
from nova_snapext.upload import service_user
from tests.unit import base
from tests.unit.upload import fake_glance
from tests.unit.upload import test_connection

NOT_FOUND = glanceclient.exc.HTTPNotFound()
FORBIDDEN = glanceclient.exc.HTTPForbidden('403 Forbidden')


class DiscardTestCase(base.TestCase):

    def setUp(self):
        super().setUp()
        self.user = nova_context.RequestContext(
            'user', 'project', auth_token='token')
        self.service = nova_context.RequestContext('nova', 'service')
        self.service_user = self.useFixture(fixtures.MockPatchObject(
            service_user, 'context', return_value=self.service)).mock
        self.server = fake_glance.FakeGlance()
        self.enterContext(self.server.installed())

    def discard(self, *results, context='user', seen_by_nova=False):
        self.server.deletions = iter(results)
        return upload.discard(
            self.user if context == 'user' else context,
            base.IMAGE_ID, seen_by_nova)


class DiscardTest(DiscardTestCase):

    def test_image_is_deleted_as_its_owner(self):
        self.assertIsNone(self.discard(None))
        self.assertEqual([self.user], self.server.deleted_as)
        self.server.http_client.delete.assert_called_once_with(
            f'/v2/images/{base.IMAGE_ID}')

    def test_deleted_image_counts_as_discarded(self):
        self.assertIsNone(self.discard(NOT_FOUND))

    def test_expired_token_deletes_image_as_service_user(self):
        for refusal in (glanceclient.exc.HTTPUnauthorized(), FORBIDDEN):
            self.assertIsNone(self.discard(refusal, None))
            self.assertIs(self.service, self.server.deleted_as[-1])

    def test_unknown_user_deletes_image_as_service_user(self):
        for context in (None, nova_context.get_admin_context()):
            self.assertIsNone(self.discard(None, context=context))
            self.assertIs(self.service, self.server.deleted_as[-1])

    def test_image_hidden_from_service_user_is_not_discarded(self):
        self.assertIn(base.IMAGE_ID, self.discard(
            glanceclient.exc.HTTPUnauthorized(), NOT_FOUND))
        self.assertIn(base.IMAGE_ID, self.discard(NOT_FOUND, context=None))

    def test_image_that_service_user_has_seen_is_gone(self):
        self.assertIsNone(self.discard(
            glanceclient.exc.HTTPUnauthorized(), NOT_FOUND,
            seen_by_nova=True))
        self.assertIsNone(self.discard(
            NOT_FOUND, context=None, seen_by_nova=True))

    def test_protected_image_is_told_with_its_remedy(self):
        self.server.stored['protected'] = True
        for results, context in (([FORBIDDEN], 'user'), ([FORBIDDEN], None)):
            reason = self.discard(*results, context=context)
            self.assertIn('it is protected', reason)
            self.assertIn(
                f'openstack image set --unprotected {base.IMAGE_ID}', reason)

    def test_image_that_can_not_be_asked_about_is_only_forbidden(self):
        self.server.on_get = self.server.http_client.get
        self.server.on_get.side_effect = glanceclient.exc.HTTPUnauthorized()
        reason = self.discard(FORBIDDEN, FORBIDDEN)
        self.assertIn('403 Forbidden', reason)

    def test_failed_deletion_returns_reason(self):
        self.assertIn('in use', self.discard(
            glanceclient.exc.HTTPConflict('409 Conflict: in use')))
        self.assertIn('401', self.discard(
            glanceclient.exc.HTTPUnauthorized(),
            glanceclient.exc.HTTPUnauthorized('401')))

    def test_missing_service_user_is_returned_as_reason(self):
        self.service_user.side_effect = nova_exception.InvalidConfiguration(
            'no [service_user]')
        self.assertIn('service_user', self.discard(
            glanceclient.exc.HTTPUnauthorized()))


class HangingGlanceTest(base.TestCase):

    def test_discard_ends_when_the_time_for_an_answer_is_over(self):
        # Nova's attempts together, not each of them.
        self.flags(upload_stall_timeout=1, group='snapext')
        server = self.enterContext(test_connection.Server(10))
        self.flags(api_servers=[server.url], num_retries=9, group='glance')
        context = nova_context.RequestContext(
            'user', 'project', auth_token='token')
        reason = upload.discard(context, base.IMAGE_ID)
        self.assertIn('no answer within 1 second', reason)
        self.assertGreater(5, server.connections)


class HashedImageTest(DiscardTestCase):
    """An image that Glance reads for its digest."""

    def setUp(self):
        super().setUp()
        self.is_hashed = self.useFixture(fixtures.MockPatchObject(
            location, 'is_hashed_now', return_value=True)).mock

    def test_image_is_not_deleted_before_the_end_of_it(self):
        for context in ('user', None):
            self.assertIn('digest', self.discard(None, context=context))
        self.assertEqual([], self.server.deleted_as)
        self.is_hashed.return_value = False
        self.assertIsNone(self.discard(None))

    def test_glance_that_does_not_tell_prevents_no_deletion(self):
        for error in (glanceclient.exc.HTTPNotFound(), KeyError(),
                      glanceclient.exc.CommunicationError()):
            self.is_hashed.side_effect = error
            self.assertIsNone(self.discard(None))


class SeenByNovaTest(DiscardTestCase):

    def setUp(self):
        super().setUp()
        self.flags(auth_type='password', group='service_user')

    def test_nobody_is_asked_without_a_service_user(self):
        self.flags(auth_type=None, group='service_user')
        self.assertFalse(upload.is_seen_by_nova(base.IMAGE_ID))
        self.assertEqual([], self.server.requests)

    def test_image_is_seen_as_service_user_and_not_as_its_owner(self):
        # Nova's own image API hides a private image from this context.
        self.assertTrue(upload.is_seen_by_nova(base.IMAGE_ID))
        self.assertIs(self.service, self.server.context)
        self.assertEqual(['GET'], self.server.requests)

    def test_image_is_not_seen_after_any_error(self):
        get = self.server.http_client.get
        for error in (glanceclient.exc.HTTPNotFound(),
                      glanceclient.exc.HTTPForbidden(),
                      glanceclient.exc.CommunicationError()):
            get.side_effect = error
            self.assertFalse(upload.is_seen_by_nova(base.IMAGE_ID))
        self.service_user.side_effect = nova_exception.InvalidConfiguration(
            'no [service_user]')
        self.assertFalse(upload.is_seen_by_nova(base.IMAGE_ID))
