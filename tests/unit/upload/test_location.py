# SPDX-License-Identifier: Apache-2.0

import datetime
import json
import math
from unittest import mock

import fixtures
import glanceclient.exc
from nova import context as nova_context
from nova import exception as nova_exception
from nova.image import glance as nova_glance
from oslo_utils import timeutils

from nova_snapext import cancel
from nova_snapext import exception
from nova_snapext.upload import client
from nova_snapext.upload import location
from tests.unit import base

URL = 'rbd://fsid/images/id/snap'
IMAGE = f'/v2/images/{base.IMAGE_ID}'


class Server:
    """The requests of one image that Glance answers.

    :ivar states: of the task, the image and its digest; the first one is that
        of now, and each request for the image leads to the next
    :ivar requests: method, path and body of each change
    :ivar answers: of the changes: None, or an error to raise
    """

    def __init__(self):
        self.states = [(None, 'queued', None)]
        self.requests = []
        self.answers = []
        self.versions = ['v2.9', 'v2.17']
        self.stores = None
        self.image = {}
        self.created_at = timeutils.utcnow()

    def get(self, url):
        if url == '/versions':
            return None, {'versions': [
                {'id': version, 'status': 'SUPPORTED'}
                for version in self.versions]}
        if url == '/v2/info/stores':
            if self.stores is None:
                raise glanceclient.exc.HTTPNotFound()
            return None, {'stores': [{'id': name} for name in self.stores]}
        task, status, digest = self.states[0]
        if isinstance(status, Exception):
            self.states.pop(0)
            raise status
        if url == f'{IMAGE}/tasks':
            if task is None:
                raise glanceclient.exc.HTTPNotFound()
            created = self.created_at.isoformat()
            return None, {'tasks': [
                {'type': 'api_image_import', 'status': 'success',
                 'created_at': '2040-01-01T00:00:00'},
                {'type': 'location_import', 'status': task,
                 'created_at': created},
                {'type': 'location_import', 'status': 'failure',
                 'created_at': '2000-01-01T00:00:00'}]}
        if len(self.states) > 1:
            self.states.pop(0)
        if status is None:
            raise glanceclient.exc.HTTPNotFound()
        return None, {'status': status, 'os_hash_value': digest, 'size': 1,
                      **self.image}

    def change(self, method, url, body):
        self.requests.append((method, url, body))
        answer = self.answers.pop(0) if self.answers else None
        if answer is not None:
            raise answer
        return None, None

    def post(self, url, data):
        return self.change('POST', url, data)

    def patch(self, url, headers, data):
        assert headers == client.PATCH_HEADERS
        return self.change('PATCH', url, json.loads(data))


class LocationTestCase(base.TestCase):

    def setUp(self):
        super().setUp()
        self.server = Server()

        def create(wrapper, _context, _version):
            wrapper.api_server = 'http://glance'
            return mock.Mock(http_client=self.server)

        # ImageClient's own adds the requests.
        self.useFixture(fixtures.MockPatchObject(
            nova_glance.GlanceClientWrapper, '_create_onetime_client',
            create))
        self.useFixture(fixtures.MockPatchObject(
            client.connection.CancellableClient, '_create_onetime_client',
            create))
        self.token = cancel.CancelToken()
        self.useFixture(fixtures.MockPatchObject(
            self.token, 'wait',
            side_effect=lambda _: self.token.raise_if_cancelled()))
        self.image = location.LocatedImage(
            nova_context.RequestContext('user', 'project'), base.IMAGE_ID,
            self.token)


class AddTest(LocationTestCase):

    def test_location_is_added_by_nova_s_request(self):
        self.image.add(URL, 'ceph')
        self.assertEqual([('POST', f'{IMAGE}/locations', {
            'url': URL, 'validation_data': {}})], self.server.requests)

    def test_old_glance_is_told_the_store(self):
        self.server.versions = ['v2.9']
        for store, metadata in (('ceph', {'store': 'ceph'}), (None, {})):
            self.image.add(URL, store)
            self.assertEqual(('PATCH', IMAGE, [
                {'op': 'add', 'path': '/locations/-',
                 'value': {'url': URL, 'metadata': metadata}}]),
                self.server.requests[-1])

    def test_refusal_leaves_the_image_for_another_way(self):
        for error in (glanceclient.exc.HTTPForbidden(),
                      glanceclient.exc.HTTPUnauthorized(),
                      glanceclient.exc.HTTPBadRequest(),
                      glanceclient.exc.HTTPConflict(),
                      glanceclient.exc.HTTPNotImplemented()):
            self.server.answers = [error]
            self.assertRaises(exception.LocationRefused, self.image.add, URL)

    def test_refusal_after_a_lost_answer_is_none(self):
        # What Glance says of a location that it has depends on its release.
        for error in (glanceclient.exc.HTTPBadRequest(),
                      glanceclient.exc.HTTPConflict(),
                      glanceclient.exc.HTTPForbidden()):
            self.server.answers = [glanceclient.exc.CommunicationError(),
                                   error]
            self.image.add(URL)

    def test_deleted_image_is_no_refusal(self):
        self.server.answers = [glanceclient.exc.HTTPNotFound()]
        self.assertRaises(nova_exception.ImageNotFound, self.image.add, URL)

    def test_request_without_an_answer_is_made_again(self):
        for lost in (glanceclient.exc.CommunicationError(),
                     glanceclient.exc.HTTPServiceUnavailable(),
                     glanceclient.exc.HTTPBadGateway(),
                     glanceclient.exc.HTTPInternalServerError()):
            self.server.answers = [lost]
            self.server.requests.clear()
            self.image.add(URL)
            self.assertEqual(2, len(self.server.requests))

    def test_conflict_with_a_request_whose_answer_was_lost_is_no_refusal(self):
        # Glance takes the location already: the data must not be removed.
        self.server.answers = [glanceclient.exc.CommunicationError(),
                               glanceclient.exc.HTTPConflict()]
        self.image.add(URL)

    def test_glance_that_never_answers_has_perhaps_taken_it(self):
        self.flags(num_retries=2, group='glance')
        self.server.answers = [glanceclient.exc.CommunicationError()] * 9
        self.assertRaises(nova_exception.GlanceConnectionFailed,
                          self.image.add, URL)
        self.assertEqual(3, len(self.server.requests))

    def test_cancellation_is_the_error(self):
        cause = nova_exception.ImageNotFound(image_id='i')
        self.server.answers = [glanceclient.exc.CommunicationError()]
        self.token.cancel(cause)
        self.assertIs(cause, self.assertRaises(
            nova_exception.ImageNotFound, self.image.add, URL))


class TakenOverTest(LocationTestCase):
    """After a refusal, which may be that of a second, equal request."""

    def is_taken_over(self, *states):
        self.server.states = list(states)
        return self.image.is_taken_over()

    def test_task_that_runs_is_waited_for(self):
        self.assertTrue(self.is_taken_over(
            ('pending', 'queued', None), ('processing', 'queued', None),
            ('success', 'active', None)))
        self.assertFalse(self.is_taken_over(
            ('processing', 'queued', None), ('failure', 'queued', None)))

    def test_image_without_a_task_is_not_taken_over(self):
        self.assertFalse(self.is_taken_over((None, 'queued', None)))
        self.assertEqual(0, self.token.wait.call_count)

    def test_glance_that_does_not_answer_is_asked_again(self):
        self.assertFalse(self.is_taken_over(
            (None, glanceclient.exc.HTTPServiceUnavailable(), None),
            (None, 'queued', None)))

    def test_state_that_stays_unknown_is_an_error(self):
        self.server.states = [
            (None, glanceclient.exc.HTTPServiceUnavailable(), None)] * 9
        with mock.patch.object(location.timeutils.StopWatch, 'elapsed',
                               return_value=61):
            self.assertRaises(glanceclient.exc.HTTPServiceUnavailable,
                              self.image.is_taken_over)

    def test_task_that_does_not_end_is_an_error(self):
        with mock.patch.object(location.timeutils.StopWatch, 'elapsed',
                               return_value=61):
            self.assertRaises(exception.ImageNotVerified, self.is_taken_over,
                              ('processing', 'queued', None))


class WaitTest(LocationTestCase):

    def test_refusal_after_a_lost_answer_counts_if_nothing_comes(self):
        self.server.answers = [glanceclient.exc.CommunicationError(),
                               glanceclient.exc.HTTPForbidden()]
        self.image.add(URL)
        with mock.patch.object(location.timeutils.StopWatch, 'elapsed',
                               return_value=61):
            self.assertRaises(exception.LocationRefused, self.wait,
                              (None, 'queued', None))

    slowest = location.SLOWEST_HASH

    def wait(self, *states):
        self.server.states = list(states)
        return self.image.wait_until_active(60)

    def hashed(self, *states):
        self.server.states = list(states)
        return self.image.wait_until_hashed(self.slowest)

    def test_wait_ends_when_the_image_has_its_data(self):
        self.wait(('pending', 'queued', None), ('processing', 'queued', None),
                  ('processing', 'active', None))
        self.assertEqual(2, self.token.wait.call_count)

    def test_old_glance_has_no_task(self):
        self.wait((None, 'active', None))
        self.assertFalse(self.hashed((None, 'active', None)))

    def test_failed_task_is_a_refusal(self):
        self.assertRaises(exception.LocationRefused, self.wait,
                          ('processing', 'queued', None),
                          ('failure', 'queued', None))

    def test_deleted_image_ends_both_waits(self):
        for wait in (self.wait, self.hashed):
            self.assertRaises(nova_exception.ImageNotFound, wait,
                              ('processing', 'queued', None),
                              (None, None, None))

    def test_image_that_stays_queued_is_not_verified(self):
        with mock.patch.object(location.timeutils.StopWatch, 'elapsed',
                               return_value=61):
            self.assertRaises(exception.ImageNotVerified, self.wait,
                              ('pending', 'queued', None))

    def test_glance_that_restarts_is_waited_for(self):
        self.wait((None, glanceclient.exc.CommunicationError(), None),
                  (None, glanceclient.exc.HTTPServiceUnavailable(), None),
                  (None, glanceclient.exc.CommunicationError(), None),
                  ('processing', 'active', None))

    def test_slow_proxy_does_not_end_the_wait_for_the_digest(self):
        self.assertTrue(self.hashed(
            (None, glanceclient.exc.CommunicationError(), None),
            ('success', 'active', 'abc')))

    def test_cancellation_ends_both_waits(self):
        cause = nova_exception.ImageNotFound(image_id='i')
        self.token.cancel(cause)
        for wait in (self.wait, self.hashed):
            self.assertIs(cause, self.assertRaises(
                nova_exception.ImageNotFound, wait,
                ('processing', 'queued', None)))

    def test_digest_is_waited_for_until_the_task_ends(self):
        self.assertTrue(self.hashed(
            ('processing', 'active', None), ('processing', 'active', 'abc'),
            ('success', 'active', 'abc')))
        self.assertEqual(2, self.token.wait.call_count)

    def test_glance_without_digests_is_no_failure(self):
        for task in ('success', 'failure'):
            self.assertFalse(self.hashed((task, 'active', None)))

    def test_glance_that_hashes_for_too_long_is_left_with_a_warning(self):
        with mock.patch.object(location.timeutils.StopWatch, 'elapsed',
                               return_value=10000), \
                self.assertLogs('nova_snapext.upload.location',
                                'WARNING') as logs:
            self.assertFalse(self.hashed(('processing', 'active', None)))
        self.assertIn('Do not delete', logs.output[0])

    def hashed_after(self, seconds):
        """Return the log of a wait for a large image, which is cut off."""
        self.server.image = {'size': 100 * location.SLOWEST_HASH}
        with mock.patch.object(location.timeutils.StopWatch, 'elapsed',
                               return_value=seconds), \
                self.assertLogs('nova_snapext.upload.location') as logs:
            self.hashed(('processing', 'active', None),
                        ('processing', 'active', None),
                        ('success', 'active', 'abc'))
        return logs.output

    def test_long_wait_tells_once_how_to_end_it(self):
        [line] = self.hashed_after(70)
        self.assertIn('A restart of nova-compute ends the wait', line)
        self.assertIn('160 seconds', line)

    def test_image_that_nova_keeps_is_not_waited_for_by_its_size(self):
        self.slowest = math.inf
        [line] = self.hashed_after(70)
        self.assertIn('Do not delete', line)


class InfoTest(LocationTestCase):

    def test_location_api_is_for_services(self):
        self.assertTrue(self.image.needs_service())
        self.server.versions = ['v2.16']
        self.assertFalse(self.image.needs_service())

    def test_stores_are_named(self):
        self.assertEqual([], self.image.stores())
        self.server.stores = ['local', 'ceph']
        self.assertEqual(['local', 'ceph'], self.image.stores())

    def test_locations_are_those_that_glance_shows(self):
        self.assertEqual([], self.image.locations())
        self.server.image = {'locations': [{'url': URL, 'metadata': {}}],
                             'direct_url': 'file:///x'}
        self.assertEqual([URL, 'file:///x'], self.image.locations())


class HashedNowTest(LocationTestCase):

    def is_hashed(self, *state):
        self.server.states = [state]
        return location.is_hashed_now(self.image._requests())

    def test_active_image_with_a_task_is_hashed_now(self):
        self.assertTrue(self.is_hashed('processing', 'active', None))
        self.assertTrue(self.is_hashed('pending', 'active', None))

    def test_others_are_not(self):
        for state in ((None, 'active', None), ('success', 'active', None),
                      ('failure', 'queued', None),
                      ('processing', 'queued', None)):
            self.assertFalse(self.is_hashed(*state), state)

    def test_task_of_a_glance_that_was_stopped_is_forgotten(self):
        self.server.created_at -= datetime.timedelta(days=1)
        self.assertFalse(self.is_hashed('processing', 'active', None))
