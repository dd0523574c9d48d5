# SPDX-License-Identifier: Apache-2.0

import hashlib
import itertools
import json
from unittest import mock

import fixtures
import glanceclient.exc
from nova import context as nova_context
from nova import exception as nova_exception
from nova.image import glance as nova_glance

from nova_snapext import abort
from nova_snapext import exception
from nova_snapext import upload
from nova_snapext.upload import glance
from tests.unit import base

CONTENT = bytes(range(256)) * 2000


class FakeEncoder:
    """An image; it counts how often it was begun."""

    size = expected_size = len(CONTENT)

    def __init__(self):
        self.begun = 0
        self.closed = 0

    def stream(self):
        self.begun += 1
        try:
            for begin in range(0, len(CONTENT), 100_000):
                yield CONTENT[begin:begin + 100_000]
        finally:
            self.closed += 1


class FakeGlance:
    """A client of python-glanceclient, and the server behind it.

    :param failures: for each upload, how many bytes arrive before the
        connection breaks, or what Glance answers to it; None: all, and no
        break
    """

    def __init__(self, *failures, statuses=(), **stored):
        self.failures = iter(failures)
        self.statuses = iter(statuses)
        self.received = []
        self.sizes = []
        self.stored = stored
        self.images = self
        self.http_client = mock.Mock()
        self.http_client.get.side_effect = lambda url: (
            None, self.get(url.rpartition('/')[2]))
        self.http_client.patch.side_effect = self.patch
        self.patches = []
        self.status = 'queued'

    def upload(self, image_id, image_data, image_size=None):
        self.sizes.append(image_size)
        limit = next(self.failures, None)
        if isinstance(limit, Exception):
            self.received.append(b'')
            raise limit
        content = b''
        while piece := image_data.read(1024 * 1024):
            content += piece
            if limit is not None and len(content) >= limit:
                self.received.append(content)
                raise glanceclient.exc.CommunicationError(message='broke off')
        self.received.append(content)
        self.status = 'active'

    def get(self, image_id):
        content = self.received[-1] if self.received else b''
        self.status = next(self.statuses, self.status)
        return {'id': image_id, 'status': self.status, 'size': len(content),
                'os_hash_algo': 'sha512',
                'os_hash_value': hashlib.sha512(content).hexdigest(),
                **self.stored}

    def patch(self, url, headers, data):
        self.patches.append(json.loads(data))
        self.sent_before = len(self.received)


class UploadTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.encoder = FakeEncoder()
        self.flags(num_retries=2, group='glance')
        # What Nova does with an answer is not what is tested here, and
        # pauses between attempts are nothing to wait for.
        self.patch(nova_glance, '_translate_from_glance',
                   lambda image: image)
        self.sleeps = []
        self.switch = abort.Switch()
        self.patch(self.switch, 'pause', self.sleeps.append)

    def patch(self, target, name, value):
        patch = mock.patch.object(target, name, value)
        patch.start()
        self.addCleanup(patch.stop)

    def upload(self, server, on_sent=lambda sent, size: None,
               metadata=None, removed=()):
        context = nova_context.RequestContext('user', 'project')

        def client(wrapper, context, _version):
            server.context = context
            wrapper.api_server = 'http://glance'
            return server

        with mock.patch.object(nova_glance.GlanceClientWrapper,
                               '_create_onetime_client', client):
            upload.upload(
                context, base.IMAGE_ID, metadata or {'name': 'snap'}, removed,
                self.encoder, self.switch, on_sent)

    def test_an_image_is_sent_once_and_its_size_announced(self):
        server = FakeGlance()
        self.upload(server)
        self.assertEqual([CONTENT], server.received)
        self.assertEqual([len(CONTENT)], server.sizes)

    def test_metadata_is_sent_before_the_bytes(self):
        server = FakeGlance()
        self.upload(server)
        self.assertEqual(
            [[{'op': 'add', 'path': '/name', 'value': 'snap'}]],
            server.patches)
        self.assertEqual(0, server.sent_before)

    def test_metadata_is_what_differs_and_what_is_to_go(self):
        # Glance may forbid to set what is there, and can't remove what isn't.
        server = FakeGlance(name='snap', os_type='linux', asked='backup')
        self.upload(server, removed=('asked', 'gone'), metadata={
            'name': 'snap', 'properties': {'os_type': None, 'a/b~c': 'd'}})
        [patch] = server.patches
        self.assertEqual(
            [{'op': 'add', 'path': '/os_type', 'value': None},
             {'op': 'add', 'path': '/a~1b~0c', 'value': 'd'},
             {'op': 'remove', 'path': '/asked'}], patch)

    def test_a_glance_that_was_away_is_told_metadata_again(self):
        server = FakeGlance()
        server.http_client.get.side_effect = [
            glanceclient.exc.CommunicationError(), (None, {})]
        with mock.patch('time.sleep'):
            self.upload(server)
        self.assertEqual(1, len(server.patches))
        self.assertEqual([CONTENT], server.received)

    def test_an_old_client_is_not_told_the_size(self):
        server = FakeGlance()
        server.upload = lambda image_id, image_data: FakeGlance.upload(
            server, image_id, image_data)
        self.upload(server)
        self.assertEqual([None], server.sizes)
        self.assertEqual([CONTENT], server.received)

    def test_every_attempt_begins_at_the_first_byte(self):
        server = FakeGlance(300_000, 10)
        self.upload(server)
        self.assertEqual(CONTENT, server.received[-1])
        self.assertEqual(3, self.encoder.begun)
        for part in server.received:
            self.assertTrue(CONTENT.startswith(part))

    def test_an_attempt_that_broke_off_lets_go_of_the_disk(self):
        self.upload(FakeGlance(300_000))
        self.assertEqual(self.encoder.begun, self.encoder.closed)

    def test_it_gives_up_after_as_many_retries_as_nova_would(self):
        server = FakeGlance(*itertools.repeat(5, 10))
        self.assertRaises(nova_exception.GlanceConnectionFailed,
                          self.upload, server)
        self.assertEqual(3, self.encoder.begun)

    def test_pauses_between_attempts_grow(self):
        self.upload(FakeGlance(5, 5))
        self.assertEqual(sorted(self.sleeps), self.sleeps)
        self.assertGreater(self.sleeps[-1], self.sleeps[0])

    def test_the_next_attempt_waits_until_glance_knows_of_the_break(self):
        server = FakeGlance(
            5, statuses=['queued', 'saving', 'saving', 'queued', 'active'])
        self.upload(server)
        self.assertEqual(CONTENT, server.received[-1])

    def test_an_image_that_stays_saving_is_given_up(self):
        self.flags(glance_settle_timeout=1, group='snapext')
        server = FakeGlance(5, statuses=itertools.repeat('saving'))
        with mock.patch.object(glance.tenacity.stop_after_delay, '__call__',
                               lambda *_args: True):
            error = self.assertRaises(nova_exception.ImageUnacceptable,
                                      self.upload, server)
        self.assertIn('saving', str(error))

    def test_an_answer_that_was_lost_is_not_sent_for_again(self):
        server = FakeGlance(len(CONTENT))
        server.statuses = iter(['queued', 'active', 'active'])
        self.upload(server)
        self.assertEqual(1, len(server.received))

    def test_an_error_of_the_disk_is_not_tried_again(self):
        def stream():
            yield CONTENT[:1000]
            raise exception.DiskReadError(disk='vda', reason='gone')

        self.encoder.stream = stream
        server = FakeGlance()
        self.assertRaises(exception.DiskReadError, self.upload, server)
        self.assertEqual(1, len(server.sizes))

    def test_other_bytes_in_glance_fail(self):
        server = FakeGlance(os_hash_value='0' * 128)
        error = self.assertRaises(exception.ImageMismatch,
                                  self.upload, server)
        self.assertIn('sha512', str(error))

    def test_another_size_in_glance_fails(self):
        error = self.assertRaises(exception.ImageMismatch,
                                  self.upload, FakeGlance(size=12))
        self.assertIn('12 bytes', str(error))

    def test_another_digest_algorithm_is_computed_from_the_same_disk(self):
        self.upload(FakeGlance(
            os_hash_algo='sha256',
            os_hash_value=hashlib.sha256(CONTENT).hexdigest()))
        self.assertEqual(2, self.encoder.begun)

    def test_an_old_glance_s_checksum_serves_where_it_has_no_digest(self):
        checksum = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
        self.upload(FakeGlance(os_hash_algo=None, os_hash_value=None,
                               checksum=checksum))

    def test_an_image_without_any_digest_is_not_trusted(self):
        self.assertRaises(
            exception.ImageMismatch, self.upload,
            FakeGlance(os_hash_algo=None, os_hash_value=None, checksum=None))

    def test_a_refusal_is_not_tried_again_and_says_what_glance_said(self):
        for refusal in (glanceclient.exc.HTTPOverLimit,
                        glanceclient.exc.HTTPForbidden,
                        glanceclient.exc.HTTPConflict,
                        glanceclient.exc.HTTPUnauthorized):
            server = FakeGlance(refusal('what Glance said'))
            error = self.assertRaises(exception.GlanceRefused,
                                      self.upload, server)
            self.assertIn('what Glance said', str(error))
            self.assertIn(base.IMAGE_ID, str(error))
            self.assertEqual(1, len(server.received))

    def test_a_refusal_because_the_image_is_gone_is_that(self):
        # As Glance's 410, which python-glanceclient has no class for.
        for refusal in (glanceclient.exc.HTTPException('410 Gone'),
                        glanceclient.exc.HTTPNotFound('404')):
            server = FakeGlance(refusal)
            server.get = mock.Mock(
                side_effect=glanceclient.exc.HTTPNotFound())
            server.update = mock.Mock()
            self.assertRaises(nova_exception.ImageNotFound,
                              self.upload, server)

    def test_a_proxy_whose_glance_is_away_is_tried_again(self):
        server = FakeGlance(glanceclient.exc.HTTPBadGateway('502'))
        self.upload(server)
        self.assertEqual(CONTENT, server.received[-1])

    def test_a_glance_that_is_away_between_attempts_is_tried_again(self):
        self.patch(nova_glance.time, 'sleep', lambda _seconds: None)
        away = [glanceclient.exc.CommunicationError('away')] * 3
        server = FakeGlance(5)

        def get(image_id):
            if server.received and away:
                raise away.pop()
            return FakeGlance.get(server, image_id)

        server.get = get
        self.upload(server)
        self.assertEqual(CONTENT, server.received[-1])
        self.assertEqual([], away)

    def test_between_attempts_it_ends_with_the_cause(self):
        cause = exception.ServiceStopping(instance='i')
        server = FakeGlance(5, 5)

        def pause(_seconds):
            self.switch.trip(cause)
            self.switch.check()

        self.patch(self.switch, 'pause', pause)
        self.assertIs(cause, self.assertRaises(
            exception.ServiceStopping, self.upload, server))
        self.assertEqual(1, self.encoder.begun)

    def test_once_given_up_no_attempt_is_begun(self):
        self.switch.trip(exception.ServiceStopping(instance='i'))
        self.assertRaises(exception.ServiceStopping, self.upload,
                          FakeGlance())
        self.assertEqual(0, self.encoder.begun)

    def revoke_after_upload(self, server):
        """Have Glance refuse the user's token once it has the image."""
        server.refused = []

        def get(image_id):
            if server.received and server.context.user_id == 'user':
                server.refused.append(image_id)
                raise glanceclient.exc.HTTPUnauthorized('401')
            return FakeGlance.get(server, image_id)

        server.get = get

    def service_user(self, **error):
        self.patch(nova_context, 'get_nova_service_user_context', mock.Mock(
            return_value=nova_context.RequestContext('nova', 'service'),
            **error))

    def test_with_a_token_expired_meanwhile_nova_itself_looks(self):
        self.service_user()
        server = FakeGlance()
        self.revoke_after_upload(server)
        self.upload(server)
        self.assertEqual([base.IMAGE_ID], server.refused)

    def test_nova_itself_sees_a_mismatch_too(self):
        self.service_user()
        server = FakeGlance(os_hash_value='0' * 128)
        self.revoke_after_upload(server)
        self.assertRaises(exception.ImageMismatch, self.upload, server)

    def test_an_image_that_nobody_can_look_at_is_not_trusted(self):
        self.service_user(side_effect=nova_exception.InvalidConfiguration(
            'no [service_user]'))
        server = FakeGlance()
        self.revoke_after_upload(server)
        error = self.assertRaises(exception.ImageNotVerified,
                                  self.upload, server)
        self.assertIn('no [service_user]', str(error))

    def test_an_image_that_nova_itself_may_not_see_is_not_taken_for_gone(
            self):
        self.service_user()
        server = FakeGlance()
        server.get = mock.Mock(side_effect=[
            glanceclient.exc.HTTPUnauthorized(),
            glanceclient.exc.HTTPNotFound()])
        server.http_client.get.side_effect = [(None, {})]
        self.assertRaises(exception.ImageNotVerified, self.upload, server)


class DiscardTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.image_api = mock.create_autospec(nova_glance.API, instance=True)
        self.user = nova_context.RequestContext(
            'user', 'project', auth_token='token')
        self.service = nova_context.RequestContext('nova', 'service')
        self.service_user = self.useFixture(fixtures.MockPatchObject(
            nova_context, 'get_nova_service_user_context',
            return_value=self.service)).mock

    def discard(self, *answers):
        self.image_api.delete.side_effect = answers
        return glance.discard(self.user, self.image_api, base.IMAGE_ID)

    def test_an_image_is_deleted_by_its_owner(self):
        self.assertIsNone(self.discard(None))
        self.image_api.delete.assert_called_once_with(
            self.user, base.IMAGE_ID)

    def test_one_that_is_gone_is_gone(self):
        self.assertIsNone(self.discard(
            nova_exception.ImageNotFound(image_id=base.IMAGE_ID)))

    def test_with_a_token_that_has_expired_nova_itself_deletes_it(self):
        for refusal in (
                glanceclient.exc.HTTPUnauthorized(),
                nova_exception.ImageNotAuthorized(image_id=base.IMAGE_ID)):
            self.assertIsNone(self.discard(refusal, None))
            self.image_api.delete.assert_called_with(
                self.service, base.IMAGE_ID)

    def test_one_that_can_not_be_deleted_is_told_of(self):
        self.assertIn('in use', self.discard(
            nova_exception.ImageDeleteConflict(reason='in use')))
        self.assertIn('401', self.discard(
            glanceclient.exc.HTTPUnauthorized(),
            glanceclient.exc.HTTPUnauthorized('401')))

    def test_without_a_service_user_it_is_told_so(self):
        self.service_user.side_effect = nova_exception.InvalidConfiguration(
            'no [service_user]')
        self.assertIn('service_user', self.discard(
            glanceclient.exc.HTTPUnauthorized()))


class ImageLookTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.server = mock.Mock()
        self.useFixture(fixtures.MockPatchObject(
            nova_glance.GlanceClientWrapper, '_create_onetime_client',
            return_value=self.server))
        self.look = upload.ImageLook(
            nova_context.RequestContext('user', 'project'), base.IMAGE_ID)

    def test_an_image_that_is_there_is_no_reason(self):
        self.assertIsNone(self.look())

    def test_one_that_was_deleted_is_what_nova_s_manager_knows(self):
        self.server.http_client.get.side_effect = (
            glanceclient.exc.HTTPNotFound())
        self.assertIsInstance(self.look(), nova_exception.ImageNotFound)

    def test_a_glance_that_is_away_says_nothing(self):
        self.server.http_client.get.side_effect = (
            glanceclient.exc.CommunicationError())
        self.assertRaises(glanceclient.exc.CommunicationError, self.look)
        self.server.http_client.get.assert_called_once()

    def test_when_it_is_closed_nothing_is_waited_for(self):
        self.look.close()
        self.assertRaises(nova_exception.ImageNotFound,
                          self.look._client._switch.check)
