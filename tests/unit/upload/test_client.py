# SPDX-License-Identifier: Apache-2.0

from unittest import mock

import glanceclient.exc
from keystoneauth1 import exceptions as ks_exceptions
from nova import context as nova_context
from nova import exception as nova_exception
from nova.image import glance as nova_glance

from nova_snapext import cancel
from nova_snapext.upload import client
from tests.unit import base
from tests.unit.upload import fake_glance


class ImageRequestsTest(base.TestCase):

    def requests(self, **stored):
        self.server = fake_glance.FakeGlance(**stored)
        return client.ImageRequests(self.server.http_client, base.IMAGE_ID)

    def test_update_makes_two_requests(self):
        self.requests().update({'a': 'b'}, [])
        self.assertEqual(['GET', 'PATCH'], self.server.requests)
        url = f'/v2/images/{base.IMAGE_ID}'
        self.server.http_client.get.assert_called_once_with(url)
        self.server.http_client.patch.assert_called_once_with(
            url, data=mock.ANY, headers={
                'Content-Type':
                    'application/openstack-images-v2.1-json-patch'})

    def test_update_sets_different_and_removes_existing_attributes(self):
        # Glance may forbid to set a value that exists, and fails to remove an
        # attribute that does not.
        requests = self.requests(
            name='snap', os_type='linux', requested='backup')
        changed = requests.update(
            {'name': 'snap', 'os_type': None, 'a/b~c': 'd'},
            ['requested', 'missing'])
        [patch] = self.server.patches
        self.assertEqual(
            [{'op': 'add', 'path': '/os_type', 'value': None},
             {'op': 'add', 'path': '/a~1b~0c', 'value': 'd'},
             {'op': 'remove', 'path': '/requested'}], patch)
        self.assertEqual(['os_type', 'a/b~c', 'requested'], changed.names)

    def test_update_that_changes_nothing_is_not_requested(self):
        self.assertEqual(
            [], self.requests(a='b').update({'a': 'b'}, ['c']).names)
        self.assertEqual(['GET'], self.server.requests)

    def test_attribute_to_set_is_not_removed(self):
        self.requests(a='old').update({'a': 'new'}, ['a'])
        self.assertEqual([[{'op': 'add', 'path': '/a', 'value': 'new'}]],
                         self.server.patches)

    def test_update_returns_the_image_as_it_is_then(self):
        update = self.requests(a='old').update({'a': 'new'}, [])
        self.assertEqual('new', update.image['a'])

    def test_update_of_an_image_that_was_seen_makes_one_request(self):
        requests = self.requests(a='old')
        update = requests.update({'a': 'new'}, ['b'], {'a': 'old'})
        self.assertEqual(['PATCH'], self.server.requests)
        self.assertEqual('new', update.image['a'])

    def test_what_has_changed_since_the_image_was_seen_is_set_again(self):
        requests = self.requests(a='old', disk_format='raw')
        update = requests.update(
            {'a': 'new', 'disk_format': 'qcow2'}, [],
            {'a': 'old', 'disk_format': 'qcow2'})
        self.assertEqual(['PATCH', 'PATCH'], self.server.requests)
        self.assertEqual('qcow2', update.image['disk_format'])

    def test_image_that_would_not_be_changed_is_requested(self):
        requests = self.requests(disk_format='raw')
        requests.update({'disk_format': 'qcow2'}, [],
                        {'disk_format': 'qcow2'})
        self.assertEqual(['GET', 'PATCH'], self.server.requests)

    def test_image_is_requested_before_something_is_removed(self):
        # It may be gone by now, and could not be removed.
        requests = self.requests(a='old')
        requests.update({'a': 'new'}, ['b'], {'a': 'old', 'b': 'c'})
        self.assertEqual(['GET', 'PATCH'], self.server.requests)

    def test_image_that_the_answer_does_not_tell_is_requested(self):
        requests = self.requests(a='old', disk_format='raw')
        answer = self.server.on_patch

        def on_patch(*args, **kwargs):
            answer(*args, **kwargs)
            return None, iter([b''])

        self.server.http_client.patch.side_effect = on_patch
        requests.update(
            {'a': 'new', 'disk_format': 'qcow2'}, [],
            {'a': 'old', 'disk_format': 'qcow2'})
        self.assertEqual(['PATCH', 'GET', 'PATCH'], self.server.requests)
        self.assertEqual('qcow2', self.server.stored['disk_format'])

    def test_answer_without_an_image_leaves_it_unknown(self):
        requests = self.requests(a='old')
        self.server.http_client.patch.side_effect = None
        self.server.http_client.patch.return_value = None, iter([b''])
        self.assertEqual((['a'], None), requests.update({'a': 'new'}, []))


class ImageClientTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.flags(num_retries=1, group='glance')
        self.server = fake_glance.FakeGlance()
        self.enterContext(self.server.installed())
        self.enterContext(mock.patch.object(nova_glance.time, 'sleep'))
        self.token = cancel.CancelToken()
        self.client = client.ImageClient(self.token, base.IMAGE_ID)
        self.context = nova_context.RequestContext('user', 'project')

    def test_unreachable_glance_is_asked_again(self):
        self.server.http_client.get.side_effect = [
            glanceclient.exc.CommunicationError(), (None, {'id': 'i'})]
        self.assertEqual({'id': 'i'}, self.client.get(self.context))

    def test_response_that_the_token_interrupts_raises_the_cause(self):
        def interrupt(_url):
            self.token.cancel(ZeroDivisionError())
            raise ks_exceptions.UnknownConnectionError('reset', None)

        self.server.http_client.get.side_effect = interrupt
        self.assertRaises(ZeroDivisionError, self.client.get, self.context)

    def test_interrupted_patch_begins_again_with_get(self):
        # Glance may have applied the first one: what it removed can't be
        # removed again.
        self.server.http_client.get.side_effect = [
            (None, {'a': 'b'}), (None, {})]
        self.server.http_client.patch.side_effect = [
            glanceclient.exc.CommunicationError(), (None, {})]
        self.assertEqual(
            [], self.client.update(self.context, {}, ['a']).names)
        self.assertEqual(
            ['[{"op": "remove", "path": "/a"}]'],
            [call.kwargs['data']
             for call in self.server.http_client.patch.mock_calls])

    def test_glance_that_stays_unreachable_raises_nova_error(self):
        self.server.http_client.get.side_effect = (
            glanceclient.exc.CommunicationError())
        self.assertRaises(nova_exception.GlanceConnectionFailed,
                          self.client.get, self.context)
        self.assertEqual(2, self.server.http_client.get.call_count)
