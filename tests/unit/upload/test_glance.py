# SPDX-License-Identifier: Apache-2.0

import copy
import hashlib
import itertools
import logging
from unittest import mock

import fixtures
import glanceclient.exc
from nova import context as nova_context
from nova import exception as nova_exception
from nova.image import glance as nova_glance

from nova_snapext import cancel
from nova_snapext import exception
from nova_snapext import upload
from nova_snapext.upload import glance
from tests.unit import base
from tests.unit.upload import fake_glance
from tests.unit.upload import http_glance

CONTENT = bytes(range(256)) * 2000

#: As Nova's libvirt driver makes it for a snapshot, and with values of other
#: types and names that Nova's image service translates or leaves out.
METADATA = {
    'id': base.IMAGE_ID,
    'status': 'active',
    'updated_at': 'now',
    'size': 5,
    'name': 'snap',
    'disk_format': 'qcow2',
    'container_format': 'bare',
    'min_disk': '3',
    'is_public': False,
    'properties': {
        'kernel_id': 'None',
        'ramdisk_id': '',
        'image_location': 'snapshot',
        'owner_id': 'project',
        'os_type': None,
        'count': 7,
        'mappings': [{'device': 'vda'}],
        'snapext_strategy_used': 'backup',
    },
}


class FakeEncoder:
    """An image that counts its streams."""

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


class GlanceTestCase(base.TestCase):

    def setUp(self):
        super().setUp()
        self.encoder = FakeEncoder()
        self.flags(num_retries=2, group='glance')
        self.sleeps = []
        self.token = cancel.CancelToken()
        self.patch(self.token, 'wait', self.sleeps.append)
        self.context = nova_context.RequestContext('user', 'project')

    def patch(self, target, name, value):
        self.enterContext(mock.patch.object(target, name, value))


class SetPropertiesTest(GlanceTestCase):

    def set_properties(self, server, attributes, removed=()):
        with server.installed(), upload.GlanceImage(
                self.context, base.IMAGE_ID, self.token) as image:
            image.set_properties(attributes, removed)

    def attributes_of_nova(self, metadata):
        """Return the attributes that Nova's image service would set."""
        client = mock.Mock()
        self.patch(nova_glance, '_translate_from_glance', mock.Mock())
        nova_glance.GlanceImageServiceV2(client=client).update(
            self.context, base.IMAGE_ID, copy.deepcopy(metadata),
            purge_props=False)
        attributes = client.call.call_args.kwargs['kwargs']
        del attributes['image_id']
        return attributes

    def test_patch_sets_attributes_that_nova_would_set(self):
        server = fake_glance.FakeGlance()
        server.get = lambda image_id: {'id': image_id}
        self.set_properties(server, METADATA)
        [patch] = server.patches
        self.assertEqual({'add'}, {change['op'] for change in patch})
        self.assertEqual(
            self.attributes_of_nova(METADATA),
            {change['path'][1:]: change['value'] for change in patch})

    def test_patch_leaves_out_read_only_and_empty_attributes(self):
        server = fake_glance.FakeGlance()
        self.set_properties(server, METADATA)
        [patch] = server.patches
        names = {change['path'][1:] for change in patch}
        self.assertEqual(set(), names & {
            'id', 'status', 'updated_at', 'size', 'is_public', 'properties',
            'kernel_id', 'ramdisk_id'})

    def test_properties_of_image_are_kept(self):
        server = fake_glance.FakeGlance(kept='a', requested='b')
        self.set_properties(server, {'properties': {'c': 'd'}}, ['requested'])
        self.assertEqual(
            [[{'op': 'add', 'path': '/c', 'value': 'd'},
              {'op': 'remove', 'path': '/requested'}]], server.patches)

    def test_two_requests_set_properties(self):
        server = fake_glance.FakeGlance()
        self.set_properties(server, {'a': 'b'})
        self.assertEqual(['GET', 'PATCH'], server.requests)

    def test_names_of_properties_are_logged_without_values(self):
        log = self.useFixture(fixtures.FakeLogger(
            glance.LOG.logger.name, level=logging.DEBUG))
        server = fake_glance.FakeGlance(c='d')
        self.set_properties(server, {'properties': {'a': 'value'}}, ['c'])
        self.assertIn('set or removed: a, c', log.output)
        self.assertNotIn('value', log.output)

    def test_refusal_raises_error_of_nova_image_service(self):
        for refusal, expected in (
                (glanceclient.exc.HTTPNotFound,
                 nova_exception.ImageNotFound),
                (glanceclient.exc.HTTPForbidden,
                 nova_exception.ImageNotAuthorized),
                (glanceclient.exc.HTTPUnauthorized,
                 nova_exception.ImageNotAuthorized),
                (glanceclient.exc.HTTPBadRequest,
                 nova_exception.ImageBadRequest),
                (glanceclient.exc.HTTPOverLimit,
                 nova_exception.ImageQuotaExceeded),
                (glanceclient.exc.HTTPConflict,
                 glanceclient.exc.HTTPConflict)):
            server = fake_glance.FakeGlance()
            server.http_client.patch.side_effect = refusal()
            self.assertRaises(expected, self.set_properties, server,
                              {'a': 'b'})


class UploadTest(GlanceTestCase):

    def upload(self, server, metadata=None, removed=()):
        with server.installed():
            upload.upload(
                self.context, base.IMAGE_ID, metadata or {'name': 'snap'},
                removed, self.encoder, self.token, lambda _sent, _size: None)

    def test_image_is_sent_once_with_its_size(self):
        server = fake_glance.FakeGlance()
        self.upload(server)
        self.assertEqual([CONTENT], server.received)
        self.assertEqual([len(CONTENT)], server.sizes)

    def test_metadata_is_set_before_data_is_sent(self):
        server = fake_glance.FakeGlance()
        self.upload(server)
        self.assertEqual(
            [[{'op': 'add', 'path': '/name', 'value': 'snap'}]],
            server.patches)
        self.assertEqual(['GET', 'PATCH', 'PUT', 'GET'], server.requests)

    def test_different_metadata_is_set_and_removed_metadata_removed(self):
        server = fake_glance.FakeGlance(
            name='snap', os_type='linux', requested='backup')
        self.upload(server, removed=('requested', 'missing'), metadata={
            'name': 'snap', 'properties': {'os_type': None, 'a/b~c': 'd'}})
        [patch] = server.patches
        self.assertEqual(
            [{'op': 'add', 'path': '/os_type', 'value': None},
             {'op': 'add', 'path': '/a~1b~0c', 'value': 'd'},
             {'op': 'remove', 'path': '/requested'}], patch)

    def test_interrupted_metadata_request_is_retried(self):
        server = fake_glance.FakeGlance()
        server.http_client.get.side_effect = itertools.chain(
            [glanceclient.exc.CommunicationError()],
            map(server.on_get, itertools.repeat('/i')))
        with mock.patch('time.sleep'):
            self.upload(server)
        self.assertEqual(1, len(server.patches))
        self.assertEqual([CONTENT], server.received)

    def test_old_glanceclient_gets_no_size(self):
        server = fake_glance.FakeGlance()
        server.upload = (
            lambda image_id, image_data: fake_glance.FakeGlance.upload(
                server, image_id, image_data))
        self.upload(server)
        self.assertEqual([None], server.sizes)
        self.assertEqual([CONTENT], server.received)

    def test_chunk_size_option_is_in_kib(self):
        self.flags(upload_chunk_kb=4, group='snapext')
        server, lengths = fake_glance.FakeGlance(), []

        def upload(image_id, image_data, image_size=None):
            image_data = mock.Mock(wraps=image_data)
            image_data.read = self.recorded(image_data.read, lengths)
            fake_glance.FakeGlance.upload(server, image_id, image_data)

        server.upload = upload
        self.upload(server)
        self.assertEqual(4096, max(lengths))

    def recorded(self, read, lengths):
        def recorded_read(size):
            chunk = read(size)
            lengths.append(len(chunk))
            return chunk

        return recorded_read

    def test_interrupted_upload_is_retried_from_first_byte(self):
        server = fake_glance.FakeGlance(300_000, 10)
        self.upload(server)
        self.assertEqual(CONTENT, server.received[-1])
        self.assertEqual(3, self.encoder.begun)
        for part in server.received:
            self.assertTrue(CONTENT.startswith(part))

    def test_interrupted_upload_closes_its_stream(self):
        self.upload(fake_glance.FakeGlance(300_000))
        self.assertEqual(self.encoder.begun, self.encoder.closed)

    def test_upload_fails_after_as_many_retries_as_nova_makes(self):
        server = fake_glance.FakeGlance(*itertools.repeat(5, 10))
        self.assertRaises(nova_exception.GlanceConnectionFailed,
                          self.upload, server)
        self.assertEqual(3, self.encoder.begun)

    def test_intervals_between_attempts_grow(self):
        self.upload(fake_glance.FakeGlance(5, 5))
        self.assertEqual(sorted(self.sleeps), self.sleeps)
        self.assertGreater(self.sleeps[-1], self.sleeps[0])

    def test_next_attempt_waits_until_glance_has_reset_image(self):
        server = fake_glance.FakeGlance(
            5, statuses=['queued', 'saving', 'saving', 'queued', 'active'])
        self.upload(server)
        self.assertEqual(CONTENT, server.received[-1])

    def test_image_that_stays_saving_fails_upload(self):
        self.flags(glance_reset_timeout=1, group='snapext')
        server = fake_glance.FakeGlance(
            5, statuses=itertools.repeat('saving'))
        with mock.patch.object(glance.tenacity.stop_after_delay, '__call__',
                               lambda *_args: True):
            error = self.assertRaises(nova_exception.ImageUnacceptable,
                                      self.upload, server)
        self.assertIn('saving', str(error))

    def test_lost_response_to_complete_upload_is_not_retried(self):
        server = fake_glance.FakeGlance(len(CONTENT))
        server.statuses = iter(['queued', 'active', 'active'])
        self.upload(server)
        self.assertEqual(1, len(server.received))

    def test_disk_error_is_not_retried(self):
        def stream():
            yield CONTENT[:1000]
            raise exception.DiskReadError(disk='vda', reason='gone')

        self.encoder.stream = stream
        server = fake_glance.FakeGlance()
        self.assertRaises(exception.DiskReadError, self.upload, server)
        self.assertEqual(1, len(server.sizes))

    def test_different_digest_in_glance_is_mismatch(self):
        server = fake_glance.FakeGlance(os_hash_value='0' * 128)
        error = self.assertRaises(exception.ImageMismatch,
                                  self.upload, server)
        self.assertIn('sha512', str(error))

    def test_different_size_in_glance_is_mismatch(self):
        error = self.assertRaises(exception.ImageMismatch,
                                  self.upload, fake_glance.FakeGlance(size=12))
        self.assertIn('12 bytes', str(error))

    def test_digest_of_other_algorithm_is_computed_from_same_disk(self):
        self.upload(fake_glance.FakeGlance(
            os_hash_algo='sha256',
            os_hash_value=hashlib.sha256(CONTENT).hexdigest()))
        self.assertEqual(2, self.encoder.begun)

    def test_checksum_of_old_glance_is_compared(self):
        checksum = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
        self.upload(fake_glance.FakeGlance(
            os_hash_algo=None, os_hash_value=None, checksum=checksum))

    def test_image_without_digest_is_mismatch(self):
        self.assertRaises(
            exception.ImageMismatch, self.upload, fake_glance.FakeGlance(
                os_hash_algo=None, os_hash_value=None, checksum=None))

    def test_refusal_is_not_retried_and_has_text_of_glance(self):
        for refusal in (glanceclient.exc.HTTPOverLimit,
                        glanceclient.exc.HTTPForbidden,
                        glanceclient.exc.HTTPConflict,
                        glanceclient.exc.HTTPUnauthorized):
            server = fake_glance.FakeGlance(refusal('text of Glance'))
            error = self.assertRaises(exception.GlanceRefused,
                                      self.upload, server)
            self.assertIn('text of Glance', str(error))
            self.assertIn(base.IMAGE_ID, str(error))
            self.assertEqual(1, len(server.received))

    def test_refusal_for_deleted_image_raises_image_not_found(self):
        # python-glanceclient has no class for Glance's 410.
        for refusal in (glanceclient.exc.HTTPException('410 Gone'),
                        glanceclient.exc.HTTPNotFound('404')):
            server = fake_glance.FakeGlance(refusal)
            server.http_client.get.side_effect = [
                (None, {}), glanceclient.exc.HTTPNotFound()]
            self.assertRaises(nova_exception.ImageNotFound,
                              self.upload, server)

    def test_bad_gateway_of_proxy_is_retried(self):
        server = fake_glance.FakeGlance(
            glanceclient.exc.HTTPBadGateway('502'))
        self.upload(server)
        self.assertEqual(CONTENT, server.received[-1])

    def test_glance_unreachable_between_attempts_is_retried(self):
        self.patch(nova_glance.time, 'sleep', lambda _seconds: None)
        errors = [glanceclient.exc.CommunicationError('unreachable')] * 3
        server = fake_glance.FakeGlance(5)

        def get(image_id):
            if server.received and errors:
                raise errors.pop()
            return fake_glance.FakeGlance.get(server, image_id)

        server.get = get
        self.upload(server)
        self.assertEqual(CONTENT, server.received[-1])
        self.assertEqual([], errors)

    def test_cancellation_between_attempts_raises_cause(self):
        cause = exception.ServiceStopping(instance='i')
        server = fake_glance.FakeGlance(5, 5)

        def wait(_seconds):
            self.token.cancel(cause)
            self.token.raise_if_cancelled()

        self.patch(self.token, 'wait', wait)
        self.assertIs(cause, self.assertRaises(
            exception.ServiceStopping, self.upload, server))
        self.assertEqual(1, self.encoder.begun)

    def test_cancelled_upload_begins_no_attempt(self):
        self.token.cancel(exception.ServiceStopping(instance='i'))
        self.assertRaises(exception.ServiceStopping, self.upload,
                          fake_glance.FakeGlance())
        self.assertEqual(0, self.encoder.begun)

    def expire_token_after_upload(self, server):
        """Refuse the user's token once the server has the image."""
        server.refused = []

        def get(image_id):
            if server.received and server.context.user_id == 'user':
                server.refused.append(image_id)
                raise glanceclient.exc.HTTPUnauthorized('401')
            return fake_glance.FakeGlance.get(server, image_id)

        server.get = get

    def service_user(self, **error):
        self.patch(nova_context, 'get_nova_service_user_context', mock.Mock(
            return_value=nova_context.RequestContext('nova', 'service'),
            **error))

    def test_token_expired_during_upload_verifies_as_service_user(self):
        self.service_user()
        server = fake_glance.FakeGlance()
        self.expire_token_after_upload(server)
        self.upload(server)
        self.assertEqual([base.IMAGE_ID], server.refused)

    def test_token_expired_with_lost_response_verifies_as_service_user(self):
        self.service_user()
        server = fake_glance.FakeGlance(len(CONTENT))
        server.status = 'active'
        refusals = iter([False, True])

        def get(image_id):
            if (server.received and server.context.user_id == 'user' and
                    next(refusals)):
                raise glanceclient.exc.HTTPUnauthorized('401')
            return fake_glance.FakeGlance.get(server, image_id)

        server.get = get
        self.upload(server)
        self.assertEqual('nova', server.context.user_id)
        self.assertEqual(1, len(server.received))

    def test_mismatch_is_found_as_service_user(self):
        self.service_user()
        server = fake_glance.FakeGlance(os_hash_value='0' * 128)
        self.expire_token_after_upload(server)
        self.assertRaises(exception.ImageMismatch, self.upload, server)

    def test_missing_service_user_leaves_image_unverified(self):
        self.service_user(side_effect=nova_exception.InvalidConfiguration(
            'no [service_user]'))
        server = fake_glance.FakeGlance()
        self.expire_token_after_upload(server)
        error = self.assertRaises(exception.ImageNotVerified,
                                  self.upload, server)
        self.assertIn('no [service_user]', str(error))

    def test_image_hidden_from_service_user_is_unverified_not_deleted(self):
        self.service_user()
        server = fake_glance.FakeGlance()
        server.http_client.get.side_effect = [
            (None, {}), glanceclient.exc.HTTPUnauthorized(),
            glanceclient.exc.HTTPNotFound()]
        self.assertRaises(exception.ImageNotVerified, self.upload, server)

    def test_image_deleted_before_verification_raises_image_not_found(self):
        server = fake_glance.FakeGlance()
        server.http_client.get.side_effect = [
            (None, {}), glanceclient.exc.HTTPNotFound()]
        self.assertRaises(nova_exception.ImageNotFound, self.upload, server)


class HttpTest(GlanceTestCase):
    """The real clients of Nova and Glance, and an HTTP server."""

    def setUp(self):
        super().setUp()
        self.server = self.enterContext(http_glance.HttpGlance())
        self.flags(api_servers=[self.server.url], group='glance')
        self.context.auth_token = 'token'
        self.url = f'/v2/images/{base.IMAGE_ID}'

    def test_upload_makes_four_requests_on_one_connection(self):
        upload.upload(
            self.context, base.IMAGE_ID, {'name': 'snap'}, ['requested'],
            self.encoder, self.token, lambda _sent, _size: None)
        self.assertEqual(
            [f'GET {self.url}', f'PATCH {self.url}', f'PUT {self.url}/file',
             f'GET {self.url}'], self.server.requests)
        self.assertEqual(1, self.server.connections)
        self.assertEqual(
            [{'op': 'add', 'path': '/name', 'value': 'snap'},
             {'op': 'remove', 'path': '/requested'}], self.server.patch)
        self.assertEqual(CONTENT, self.server.content)

    def test_closed_image_leaves_no_callback(self):
        with upload.GlanceImage(
                self.context, base.IMAGE_ID, self.token) as image:
            image.set_properties({'name': 'snap'})
        self.assertEqual([], self.token._callbacks)

    def test_check_of_image_makes_one_request(self):
        check = upload.ImageDeletedCheck(self.context, base.IMAGE_ID)
        self.assertIsNone(check.run())
        check.close()
        self.assertEqual([f'GET {self.url}'], self.server.requests)


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

    def discard(self, *results):
        self.image_api.delete.side_effect = results
        return upload.discard(self.user, self.image_api, base.IMAGE_ID)

    def test_image_is_deleted_as_its_owner(self):
        self.assertIsNone(self.discard(None))
        self.image_api.delete.assert_called_once_with(
            self.user, base.IMAGE_ID)

    def test_deleted_image_counts_as_discarded(self):
        self.assertIsNone(self.discard(
            nova_exception.ImageNotFound(image_id=base.IMAGE_ID)))

    def test_expired_token_deletes_image_as_service_user(self):
        for refusal in (
                glanceclient.exc.HTTPUnauthorized(),
                nova_exception.ImageNotAuthorized(image_id=base.IMAGE_ID)):
            self.assertIsNone(self.discard(refusal, None))
            self.image_api.delete.assert_called_with(
                self.service, base.IMAGE_ID)

    def test_image_hidden_from_service_user_is_not_discarded(self):
        self.assertIn(base.IMAGE_ID, self.discard(
            glanceclient.exc.HTTPUnauthorized(),
            nova_exception.ImageNotFound(image_id=base.IMAGE_ID)))

    def test_failed_deletion_returns_reason(self):
        self.assertIn('in use', self.discard(
            nova_exception.ImageDeleteConflict(reason='in use')))
        self.assertIn('401', self.discard(
            glanceclient.exc.HTTPUnauthorized(),
            glanceclient.exc.HTTPUnauthorized('401')))

    def test_missing_service_user_is_returned_as_reason(self):
        self.service_user.side_effect = nova_exception.InvalidConfiguration(
            'no [service_user]')
        self.assertIn('service_user', self.discard(
            glanceclient.exc.HTTPUnauthorized()))
