# SPDX-License-Identifier: Apache-2.0

from unittest import mock

import fixtures
import glanceclient.exc
from nova import context as nova_context
from nova import exception as nova_exception
from nova.image import glance as nova_glance

from nova_snapext import cancel
from nova_snapext import exception
from nova_snapext.upload import location
from tests.unit import base

URL = 'rbd://fsid/images/id/snap'
TASKS = f'/v2/images/{base.IMAGE_ID}/tasks'


class LocatedImageTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.server = mock.Mock()
        self.states = []
        self.server.http_client.get.side_effect = self.get
        self.useFixture(fixtures.MockPatchObject(
            nova_glance.GlanceClientWrapper, '_create_onetime_client',
            return_value=self.server))
        self.api = mock.create_autospec(nova_glance.API, instance=True)
        self.token = cancel.CancelToken()
        self.useFixture(fixtures.MockPatchObject(
            self.token, 'wait',
            side_effect=lambda _: self.token.raise_if_cancelled()))
        self.image = location.LocatedImage(
            self.api, nova_context.RequestContext('user', 'project'),
            base.IMAGE_ID, self.token)

    def get(self, url):
        """Return the next state: of the task first, then of the image."""
        task, status, digest = self.states[0]
        if url == TASKS:
            if task is None:
                raise glanceclient.exc.HTTPNotFound()
            return None, {'tasks': [
                {'type': 'api_image_import', 'status': 'success'},
                {'type': 'location_import', 'status': task}]}
        if len(self.states) > 1:
            self.states.pop(0)
        if status is None:
            raise glanceclient.exc.HTTPNotFound()
        return None, {'status': status, 'os_hash_value': digest}

    def waited(self, *states):
        self.states = list(states)
        return self.image.wait_until_active(1)

    def test_location_is_added_as_nova_adds_it(self):
        self.image.add(URL)
        self.api.update.assert_called_once_with(
            mock.ANY, base.IMAGE_ID, {'location': URL}, purge_props=False)

    def test_refusal_leaves_the_image_for_another_way(self):
        for error in (nova_exception.ImageNotAuthorized(image_id='i'),
                      nova_exception.ImageBadRequest(image_id='i',
                                                     response='r'),
                      glanceclient.exc.HTTPConflict(),
                      glanceclient.exc.HTTPNotImplemented()):
            self.api.update.side_effect = error
            self.assertRaises(exception.LocationRefused, self.image.add, URL)

    def test_deleted_image_is_no_refusal(self):
        self.api.update.side_effect = nova_exception.ImageNotFound(
            image_id='i')
        self.assertRaises(nova_exception.ImageNotFound, self.image.add, URL)

    def test_lost_answer_is_no_refusal(self):
        self.api.update.side_effect = nova_exception.GlanceConnectionFailed(
            server='s', reason='r')
        self.assertRaises(nova_exception.GlanceConnectionFailed,
                          self.image.add, URL)

    def test_active_image_is_hashed_before_the_wait_ends(self):
        self.assertTrue(self.waited(
            ('pending', 'queued', None), ('processing', 'active', None),
            ('processing', 'active', None), ('success', 'active', 'abc')))
        self.assertEqual(3, self.token.wait.call_count)

    def test_image_without_a_digest_is_reported(self):
        self.assertFalse(self.waited(('success', 'active', None)))

    def test_failed_hash_does_not_fail_the_image(self):
        self.assertFalse(self.waited(('failure', 'active', None)))

    def test_old_glance_has_no_task(self):
        self.assertFalse(self.waited((None, 'active', None)))

    def test_failed_task_is_a_refusal(self):
        self.assertRaises(exception.LocationRefused, self.waited,
                          ('processing', 'queued', None),
                          ('failure', 'queued', None))

    def test_deleted_image_ends_the_wait(self):
        self.assertRaises(nova_exception.ImageNotFound, self.waited,
                          ('processing', 'active', None), (None, None, None))

    def test_image_that_stays_queued_is_not_verified(self):
        self.flags(glance_reset_timeout=1, group='snapext')
        with mock.patch.object(location.timeutils.StopWatch, 'elapsed',
                               side_effect=[0, 2]):
            self.assertRaises(exception.ImageNotVerified, self.waited,
                              ('pending', 'queued', None))

    def test_cancellation_ends_the_wait(self):
        cause = nova_exception.ImageNotFound(image_id='i')
        self.token.cancel(cause)
        self.assertIs(cause, self.assertRaises(
            nova_exception.ImageNotFound, self.waited,
            ('processing', 'active', None)))
