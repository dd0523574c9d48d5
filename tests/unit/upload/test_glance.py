# SPDX-License-Identifier: Apache-2.0

import hashlib
import itertools
from unittest import mock

import glanceclient.exc
from nova import context as nova_context
from nova import exception as nova_exception
from nova.image import glance as nova_glance

from nova_snapext import exception
from nova_snapext import upload
from nova_snapext.upload import glance
from tests.unit import base

CONTENT = bytes(range(256)) * 2000


class FakeEncoder:
    """An image; it counts how often it was begun."""

    size = len(CONTENT)

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
        connection breaks; None: all, and no break
    """

    def __init__(self, *failures, statuses=(), **stored):
        self.failures = iter(failures)
        self.statuses = iter(statuses)
        self.received = []
        self.sizes = []
        self.stored = stored
        self.images = self
        self.status = 'queued'

    def upload(self, image_id, image_data, image_size=None):
        self.sizes.append(image_size)
        limit = next(self.failures, None)
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

    def update(self, image_id, **metadata):
        self.metadata = metadata
        return self.get(image_id)


class UploadTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.encoder = FakeEncoder()
        self.image_api = mock.create_autospec(nova_glance.API, instance=True)
        self.flags(num_retries=2, group='glance')
        # What Nova does with an answer is not what is tested here, and
        # pauses between attempts are nothing to wait for.
        self.patch(nova_glance, '_translate_from_glance',
                   lambda image: image)
        self.sleeps = []
        self.patch(glance.tenacity.nap.time, 'sleep', self.sleeps.append)

    def patch(self, target, name, value):
        patch = mock.patch.object(target, name, value)
        patch.start()
        self.addCleanup(patch.stop)

    def upload(self, server, on_sent=lambda sent, size: None):
        context = nova_context.RequestContext('user', 'project')

        def client(wrapper, _context, _version):
            wrapper.api_server = 'http://glance'
            return server

        with mock.patch.object(nova_glance.GlanceClientWrapper,
                               '_create_onetime_client', client):
            upload.upload(context, self.image_api, base.IMAGE_ID,
                          {'name': 'snap'}, self.encoder, on_sent)

    def test_an_image_is_sent_once_and_its_size_announced(self):
        server = FakeGlance()
        self.upload(server)
        self.assertEqual([CONTENT], server.received)
        self.assertEqual([len(CONTENT)], server.sizes)
        self.image_api.delete.assert_not_called()

    def test_metadata_is_sent_before_the_bytes(self):
        server = FakeGlance()
        self.upload(server)
        self.assertEqual('snap', server.metadata['name'])

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
        self.image_api.delete.assert_not_called()

    def test_an_error_of_the_disk_is_not_tried_again(self):
        def stream():
            yield CONTENT[:1000]
            raise exception.DiskReadError(disk='vda', reason='gone')

        self.encoder.stream = stream
        server = FakeGlance()
        self.assertRaises(exception.DiskReadError, self.upload, server)
        self.assertEqual(1, len(server.sizes))

    def test_other_bytes_in_glance_delete_the_image_and_fail(self):
        server = FakeGlance(os_hash_value='0' * 128)
        error = self.assertRaises(exception.ImageMismatch,
                                  self.upload, server)
        self.assertIn('sha512', str(error))
        self.image_api.delete.assert_called_once_with(
            mock.ANY, base.IMAGE_ID)

    def test_another_size_in_glance_deletes_the_image_and_fails(self):
        error = self.assertRaises(exception.ImageMismatch,
                                  self.upload, FakeGlance(size=12))
        self.assertIn('12 bytes', str(error))
        self.image_api.delete.assert_called_once_with(
            mock.ANY, base.IMAGE_ID)

    def test_a_mismatch_that_can_not_be_deleted_says_so(self):
        self.image_api.delete.side_effect = (
            nova_exception.ImageNotAuthorized(image_id=base.IMAGE_ID))
        error = self.assertRaises(exception.ImageMismatch,
                                  self.upload, FakeGlance(size=12))
        self.assertIn('must not be used', str(error))

    def test_another_digest_algorithm_is_computed_from_the_same_disk(self):
        self.upload(FakeGlance(
            os_hash_algo='sha256',
            os_hash_value=hashlib.sha256(CONTENT).hexdigest()))
        self.assertEqual(2, self.encoder.begun)
        self.image_api.delete.assert_not_called()

    def test_an_old_glance_s_checksum_serves_where_it_has_no_digest(self):
        checksum = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
        self.upload(FakeGlance(os_hash_algo=None, os_hash_value=None,
                               checksum=checksum))
        self.image_api.delete.assert_not_called()

    def test_an_image_without_any_digest_is_not_trusted(self):
        self.assertRaises(
            exception.ImageMismatch, self.upload,
            FakeGlance(os_hash_algo=None, os_hash_value=None, checksum=None))
