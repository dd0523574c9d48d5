# SPDX-License-Identifier: Apache-2.0

import contextlib
import copy
import hashlib
import itertools
import logging
import threading
from typing import ClassVar
from unittest import mock

import fixtures
import glanceclient.exc
from keystoneauth1 import exceptions as ks_exceptions
from keystoneauth1 import identity
from keystoneauth1 import loading
from keystoneauth1 import token_endpoint
from nova import context as nova_context
from nova import exception as nova_exception
from nova.image import glance as nova_glance

from nova_snapext import cancel
from nova_snapext import exception
from nova_snapext import upload
from nova_snapext.upload import client as image_client
from nova_snapext.upload import glance
from nova_snapext.upload import service_user
from tests.unit import base
from tests.unit.upload import fake_glance
from tests.unit.upload import http_glance
from tests.unit.upload import test_connection

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


class MetadataTestCase(GlanceTestCase):

    def setUp(self):
        super().setUp()
        self.patch(nova_glance.time, 'sleep', lambda _seconds: None)
        self.log = self.useFixture(fixtures.FakeLogger(
            glance.LOG.logger.name, level=logging.DEBUG))

    @contextlib.contextmanager
    def image(self, server):
        with server.installed(), upload.GlanceImage(
                self.context, base.IMAGE_ID, self.token) as image:
            yield image

    def set_metadata(self, server, attributes, informing=()):
        with self.image(server) as image:
            return image.set_metadata(attributes, dict(informing))


class SetMetadataTest(MetadataTestCase):

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
        self.set_metadata(server, METADATA)
        [patch] = server.patches
        self.assertEqual({'add'}, {change['op'] for change in patch})
        self.assertEqual(
            self.attributes_of_nova(METADATA),
            {change['path'][1:]: change['value'] for change in patch})

    def test_patch_leaves_out_read_only_and_empty_attributes(self):
        server = fake_glance.FakeGlance()
        self.set_metadata(server, METADATA)
        [patch] = server.patches
        names = {change['path'][1:] for change in patch}
        self.assertEqual(set(), names & {
            'id', 'status', 'updated_at', 'size', 'is_public', 'properties',
            'kernel_id', 'ramdisk_id'})

    def test_properties_of_image_are_kept(self):
        server = fake_glance.FakeGlance(kept='a', requested='b')
        self.set_metadata(server, {'properties': {'c': 'd'}},
                          {'requested': None})
        self.assertEqual(
            [[{'op': 'add', 'path': '/c', 'value': 'd'},
              {'op': 'remove', 'path': '/requested'}]], server.patches)

    def test_two_requests_set_properties(self):
        server = fake_glance.FakeGlance()
        self.set_metadata(server, {'a': 'b'}, {'c': 'd'})
        self.assertEqual(['GET', 'PATCH'], server.requests)

    def test_names_of_properties_are_logged_without_values(self):
        server = fake_glance.FakeGlance(c='d')
        self.set_metadata(server, {'properties': {'a': 'value'}},
                          {'c': None, 'e': 'value'})
        self.assertIn('set or removed: a, e, c', self.log.output)
        self.assertNotIn('value', self.log.output)

    def test_refusal_has_text_of_glance(self):
        for refusal in (glanceclient.exc.HTTPForbidden,
                        glanceclient.exc.HTTPUnauthorized,
                        glanceclient.exc.HTTPBadRequest,
                        glanceclient.exc.HTTPOverLimit,
                        glanceclient.exc.HTTPConflict):
            server = fake_glance.FakeGlance()
            server.http_client.patch.side_effect = refusal(
                'the &#x27;text&#x27;\n of Glance')
            error = self.assertRaises(
                exception.GlanceRefused, self.set_metadata, server,
                {'a': 'b'}, {'c': 'd', 'e': None})
            self.assertIn(f"the 'text' of Glance (HTTP {refusal.code})",
                          str(error))

    def test_failure_of_glance_is_no_refusal(self):
        for failure in (glanceclient.exc.HTTPInternalServerError,
                        glanceclient.exc.HTTPBadGateway):
            server = fake_glance.FakeGlance()
            server.http_client.patch.side_effect = failure('down')
            self.assertRaises(
                nova_exception.GlanceConnectionFailed, self.set_metadata,
                server, {'a': 'b'}, {'c': 'd'})

    def test_deleted_image_raises_image_not_found(self):
        for method in ('get', 'patch'):
            server = fake_glance.FakeGlance()
            getattr(server.http_client, method).side_effect = (
                glanceclient.exc.HTTPNotFound())
            self.assertRaises(nova_exception.ImageNotFound,
                              self.set_metadata, server, {'a': 'b'})

    def test_unreachable_glance_raises_error_of_nova(self):
        server = fake_glance.FakeGlance()
        server.http_client.patch.side_effect = (
            glanceclient.exc.CommunicationError())
        self.assertRaises(nova_exception.GlanceConnectionFailed,
                          self.set_metadata, server, {'a': 'b'})


#: As a snapshot informs before the freeze.
INFORMING = {'snapext_strategy': None, 'snapext_strategy_used': 'backup',
             'snapext_consistency': 'unknown', 'snapext_frozen_at': 'unknown'}


class InformingTest(MetadataTestCase):
    """A Glance that refuses properties that only inform."""

    ATTRIBUTES: ClassVar = {
        'name': 'snap', 'properties': {'image_location': 'snapshot'}}

    def server(self, count=0, **options):
        """Return a Glance whose image has this many properties."""
        return fake_glance.FakeGlance(**options, **{
            f'user_{number}': 'x' for number in range(count)})

    def inform(self, server):
        self.refused = self.set_metadata(server, self.ATTRIBUTES, INFORMING)
        self.assertEqual('snapshot', server.stored['image_location'])
        self.warnings = [line for line in self.log.output.splitlines()
                         if 'Glance refused properties' in line]
        return {name: value for name, value in server.stored.items()
                if name.startswith('snapext')}

    def test_accepted_properties_take_one_request_and_no_warning(self):
        server = self.server(124)
        self.assertEqual(
            {name: value for name, value in INFORMING.items() if value},
            self.inform(server))
        self.assertEqual(['GET', 'PATCH'], server.requests)
        self.assertEqual(frozenset(), self.refused)
        self.assertEqual([], self.warnings)

    def test_quota_that_nova_fits_in_leaves_out_what_informs(self):
        server = self.server(127)
        self.assertEqual({}, self.inform(server))
        self.assertEqual(frozenset({
            'snapext_strategy_used', 'snapext_consistency',
            'snapext_frozen_at'}), self.refused)
        [warning] = self.warnings
        for part in (base.IMAGE_ID, 'Attempted: 129, Maximum: 128 (HTTP 413)',
                     'Left out: snapext_strategy_used, snapext_consistency, '
                     'snapext_frozen_at. Kept, with values that are not of '
                     'this snapshot: none'):
            self.assertIn(part, warning)

    def test_quota_leaves_out_no_more_than_it_must(self):
        self.assertEqual({'snapext_strategy_used': 'backup'},
                         self.inform(self.server(126)))

    def test_image_at_quota_to_which_nova_adds_nothing_keeps_its_snapshot(
            self):
        self.assertEqual({}, self.inform(self.server(
            127, image_location='snapshot')))

    def test_removed_request_makes_room_for_a_property_of_nova(self):
        # The user's request must not cost the snapshot that Nova would take.
        self.assertEqual({}, self.inform(self.server(
            127, snapext_strategy='backup')))

    def test_quota_that_nova_exceeds_raises_reason_and_changes_nothing(self):
        server = self.server(128)
        before = dict(server.stored)
        error = self.assertRaises(exception.GlanceRefused, self.inform, server)
        self.assertIn('Attempted: 129, Maximum: 128 (HTTP 413)', str(error))
        self.assertEqual(before, server.stored)

    def test_values_of_earlier_snapshot_are_replaced_at_quota(self):
        self.assertEqual(
            {'snapext_frozen_at': 'unknown'}, self.inform(self.server(
                126, image_location='snapshot', snapext_frozen_at='2020')))

    def test_protected_properties_are_left_out(self):
        self.assertEqual(
            {'snapext_strategy_used': 'backup',
             'snapext_frozen_at': 'unknown'},
            self.inform(self.server(
                protected={'snapext_consistency': ['create']})))
        [warning] = self.warnings
        self.assertIn("Attribute 'snapext_consistency' is reserved. "
                      '(HTTP 403)', warning)

    def test_stale_value_that_can_not_be_replaced_is_removed(self):
        self.assertNotIn('snapext_frozen_at', self.inform(self.server(
            snapext_frozen_at='2020',
            protected={'snapext_frozen_at': ['update']})))
        self.assertIn('Left out: snapext_frozen_at. Kept', self.warnings[0])

    def test_stale_value_that_can_not_be_removed_either_is_named(self):
        self.assertEqual('2020', self.inform(self.server(
            snapext_frozen_at='2020',
            protected={'snapext_frozen_at': ['update', 'delete']},
        ))['snapext_frozen_at'])
        [warning] = self.warnings
        self.assertIn('of this snapshot: snapext_frozen_at.', warning)
        self.assertEqual({'snapext_frozen_at'}, self.refused)

    def test_request_that_can_not_be_removed_is_named(self):
        shown = self.inform(self.server(
            snapext_strategy='backup',
            protected={'snapext_strategy': ['delete']}))
        self.assertEqual('unknown', shown['snapext_consistency'])
        self.assertIn('of this snapshot: snapext_strategy.', self.warnings[0])

    def test_protected_property_of_nova_raises_reason(self):
        error = self.assertRaises(
            exception.GlanceRefused, self.inform, self.server(
                protected={'image_location': ['create']}))
        self.assertIn("Attribute 'image_location' is reserved", str(error))

    def test_schema_without_additional_properties_leaves_them_out(self):
        server = self.server()

        def on_patch(url, headers, data):
            if 'snapext' in data:
                raise glanceclient.exc.HTTPBadRequest(
                    'Additional properties are not allowed')
            return server.on_patch(url, headers, data)

        server.http_client.patch.side_effect = on_patch
        self.assertEqual({}, self.inform(server))
        [warning] = self.warnings
        self.assertEqual(1, warning.count('Additional properties'))

    def test_refusal_that_does_not_repeat_is_no_warning(self):
        # Somebody removed the request at the same time.
        server = self.server(snapext_strategy='backup')
        errors = [glanceclient.exc.HTTPConflict()]

        def on_patch(url, headers, data):
            if errors:
                raise errors.pop()
            return server.on_patch(url, headers, data)

        server.http_client.patch.side_effect = on_patch
        self.assertEqual({'snapext_strategy_used', 'snapext_consistency',
                          'snapext_frozen_at'}, self.inform(server).keys())
        self.assertEqual([], self.warnings)

    def test_second_strategy_changes_only_what_differs(self):
        server = self.server()
        self.inform(server)
        self.set_metadata(server, self.ATTRIBUTES,
                          INFORMING | {'snapext_strategy_used': 'cold'})
        self.assertEqual([{'op': 'add', 'path': '/snapext_strategy_used',
                           'value': 'cold'}], server.patches[-1])

    def test_cancellation_is_not_taken_for_a_refusal(self):
        cause = exception.ServiceStopping(instance='i')
        server = self.server()

        def on_patch(url, headers, data):
            self.token.cancel(cause)
            self.token.raise_if_cancelled()

        server.http_client.patch.side_effect = on_patch
        self.assertIs(cause, self.assertRaises(
            exception.ServiceStopping, self.inform, server))


class UpdateMetadataTest(MetadataTestCase):
    """Values that are known after the freeze."""

    FORMATS: ClassVar = {'disk_format': 'qcow2', 'container_format': 'bare'}
    VALUES: ClassVar = {'snapext_consistency': 'crash',
                        'snapext_frozen_at': '2026-11-01T12:00:00.250Z'}

    def server(self, **options):
        return fake_glance.FakeGlance(
            **self.FORMATS | dict.fromkeys(self.VALUES, 'unknown') | options)

    def update(self, server, seen=None):
        with self.image(server) as image:
            image.update_metadata(upload.Metadata(
                self.FORMATS, self.VALUES, seen))
        return {name: server.stored.get(name) for name in self.VALUES}

    def test_only_values_are_sent(self):
        server = self.server()
        self.assertEqual(self.VALUES, self.update(server))
        self.assertEqual(
            [[{'op': 'add', 'path': f'/{name}', 'value': value}
              for name, value in self.VALUES.items()]], server.patches)

    def test_image_that_was_seen_before_the_freeze_is_not_requested(self):
        server = self.server()
        with self.image(server) as image:
            image.set_metadata(
                {'name': 'snap'}, dict.fromkeys(self.VALUES, 'unknown'))
            seen = image.seen
        server.requests.clear()
        self.assertEqual(self.VALUES, self.update(server, seen))
        self.assertEqual(['PATCH'], server.requests)

    def test_refused_values_of_an_image_that_was_seen_are_removed(self):
        server = self.server(
            protected={name: ['update'] for name in self.VALUES})
        self.assertEqual(dict.fromkeys(self.VALUES), self.update(
            server, dict(server.stored)))
        self.assertIn('is reserved', self.log.output)

    def test_lowered_quota_accepts_values_of_present_properties(self):
        self.assertEqual(self.VALUES, self.update(self.server(quota=1)))

    def test_refused_values_are_removed_with_a_warning(self):
        self.assertEqual(
            dict.fromkeys(self.VALUES), self.update(self.server(
                protected={name: ['update'] for name in self.VALUES})))
        self.assertIn('is reserved', self.log.output)

    def test_values_that_can_not_be_removed_either_stay_unknown(self):
        self.assertEqual(
            dict.fromkeys(self.VALUES, 'unknown'), self.update(self.server(
                protected={name: ['update', 'delete']
                           for name in self.VALUES})))
        self.assertIn('of this snapshot: snapext_consistency, '
                      'snapext_frozen_at', self.log.output)

    def test_no_refusal_fails(self):
        for refusal in (glanceclient.exc.HTTPForbidden,
                        glanceclient.exc.HTTPOverLimit,
                        glanceclient.exc.HTTPBadRequest,
                        glanceclient.exc.HTTPConflict,
                        glanceclient.exc.HTTPInternalServerError,
                        glanceclient.exc.HTTPServiceUnavailable,
                        glanceclient.exc.CommunicationError):
            server = self.server()
            server.http_client.patch.side_effect = refusal('text of Glance')
            self.update(server)
            self.assertIn('text of Glance', self.log.output)

    def test_unreachable_glance_does_not_fail(self):
        # The upload has attempts of its own.
        server = self.server()
        server.http_client.get.side_effect = (
            glanceclient.exc.CommunicationError())
        self.update(server)
        self.assertIn('could not be set', self.log.output)

    def test_format_that_somebody_changed_is_set_again(self):
        server = self.server(disk_format='raw', protected={
            name: ['update'] for name in self.VALUES})
        self.update(server)
        self.assertEqual('qcow2', server.stored['disk_format'])

    def test_format_that_can_not_be_set_again_is_an_error(self):
        # The image would be read as another format than was sent.
        error = self.assertRaises(
            exception.GlanceRefused, self.update, self.server(
                disk_format='raw', protected={'disk_format': ['update']}))
        self.assertIn('disk_format', str(error))

    def test_deleted_image_raises_image_not_found(self):
        server = self.server()
        server.http_client.patch.side_effect = glanceclient.exc.HTTPNotFound()
        self.assertRaises(nova_exception.ImageNotFound, self.update, server)

    def test_cancellation_raises_cause(self):
        cause = exception.ServiceStopping(instance='i')
        server = self.server()

        def on_get(_url):
            self.token.cancel(cause)
            self.token.raise_if_cancelled()

        server.http_client.get.side_effect = on_get
        self.assertIs(cause, self.assertRaises(
            exception.ServiceStopping, self.update, server))


class UploadTest(GlanceTestCase):

    def upload(self, server, attributes=None, informing=()):
        with server.installed():
            upload.upload(
                self.context, base.IMAGE_ID, upload.Metadata(
                    attributes or {'name': 'snap'}, dict(informing)),
                self.encoder, self.token, lambda _sent, _size: None)

    def test_image_is_sent_once_with_its_size(self):
        server = fake_glance.FakeGlance()
        self.upload(server)
        self.assertEqual([CONTENT], server.received)
        self.assertEqual([str(len(CONTENT))], server.sizes)

    def test_image_of_unknown_size_is_sent_without_one(self):
        server = fake_glance.FakeGlance()
        self.encoder.size = None
        self.assertRaises(exception.ImageMismatch, self.upload, server)
        self.assertEqual([None], server.sizes)

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
        self.upload(server, {
            'name': 'snap', 'properties': {'os_type': None, 'a/b~c': 'd'},
        }, {'requested': None, 'missing': None})
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

    def test_chunk_size_option_is_in_kib(self):
        self.flags(upload_chunk_kb=4, group='snapext')
        server, lengths = fake_glance.FakeGlance(), []

        def upload(image_data):
            image_data = mock.Mock(wraps=image_data)
            image_data.read = self.recorded(image_data.read, lengths)
            fake_glance.FakeGlance.upload(server, image_data)

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

    def test_refusal_that_glanceclient_has_no_class_for_is_not_retried(self):
        server = fake_glance.FakeGlance(glanceclient.exc.HTTPException(
            '415 Unsupported Media Type'))
        error = self.assertRaises(exception.GlanceRefused,
                                  self.upload, server)
        self.assertIn('415', str(error))
        self.assertEqual(1, len(server.received))

    def test_refusal_for_deleted_image_raises_image_not_found(self):
        # python-glanceclient has no class for Glance's 410.
        for refusal in (glanceclient.exc.HTTPException('410 Gone'),
                        glanceclient.exc.HTTPNotFound('404')):
            server = fake_glance.FakeGlance(refusal)
            server.http_client.get.side_effect = itertools.chain(
                [(None, {})], itertools.repeat(
                    glanceclient.exc.HTTPNotFound()))
            self.assertRaises(nova_exception.ImageNotFound,
                              self.upload, server)

    def proxy_gives_up(self, statuses, answers=1):
        """Return a Glance whose proxy answers 504 after the last byte."""
        server = fake_glance.FakeGlance(
            statuses=['queued', *statuses])

        def upload(image_data):
            fake_glance.FakeGlance.upload(server, image_data)
            if len(server.received) <= answers:
                raise glanceclient.exc.CommunicationError(
                    '504 Gateway Time-out')

        server.upload = upload
        return server

    def test_image_that_is_complete_after_a_timeout_of_a_proxy_is_kept(self):
        server = self.proxy_gives_up(['saving', 'saving', 'active'])
        self.upload(server)
        self.assertEqual(1, len(server.received))
        # Its digest is known, and the disk is not read again.
        self.assertEqual(1, self.encoder.begun)

    def test_timeout_of_a_proxy_without_image_is_retried(self):
        server = self.proxy_gives_up(['queued', 'active'])
        self.upload(server)
        self.assertEqual([CONTENT] * 2, server.received)

    def test_image_that_is_complete_after_the_last_attempt_is_kept(self):
        self.flags(num_retries=0, group='glance')
        self.upload(self.proxy_gives_up(['saving', 'active']))

    def test_image_deleted_after_the_last_attempt_raises_not_found(self):
        self.flags(num_retries=0, group='glance')
        server = self.proxy_gives_up([])
        server.http_client.get.side_effect = [
            (None, {}), glanceclient.exc.HTTPNotFound()]
        self.assertRaises(nova_exception.ImageNotFound, self.upload, server)

    def test_proxy_that_times_out_each_time_fails_the_upload(self):
        server = self.proxy_gives_up(itertools.repeat('queued', 9), 9)
        error = self.assertRaises(
            nova_exception.GlanceConnectionFailed, self.upload, server)
        self.assertIn('504', str(error))
        self.assertEqual(3, len(server.received))

    def test_last_attempt_that_breaks_off_is_not_waited_for(self):
        self.flags(num_retries=0, group='glance')
        server = fake_glance.FakeGlance(5)
        self.assertRaises(nova_exception.GlanceConnectionFailed,
                          self.upload, server)
        self.assertEqual(['GET', 'PATCH', 'PUT'], server.requests)

    def test_bad_gateway_of_proxy_is_retried(self):
        server = fake_glance.FakeGlance(
            glanceclient.exc.HTTPBadGateway('502'))
        self.upload(server)
        self.assertEqual(CONTENT, server.received[-1])

    def test_broken_connection_of_keystoneauth_is_retried(self):
        # python-glanceclient does not translate these.
        for error in (ks_exceptions.SSLError('EOF'),
                      ks_exceptions.UnknownConnectionError('', OSError()),
                      ks_exceptions.ServiceUnavailable()):
            server = fake_glance.FakeGlance(error)
            self.upload(server)
            self.assertEqual(CONTENT, server.received[-1])

    def test_broken_response_does_not_fail_complete_image(self):
        for error in (ks_exceptions.UnknownConnectionError('', OSError()),
                      glanceclient.exc.HTTPBadGateway()):
            server = fake_glance.FakeGlance()
            server.http_client.get.side_effect = itertools.chain(
                [(None, {}), error],
                map(server.on_get, itertools.repeat('/i')))
            self.upload(server)

    def test_glance_that_stays_broken_fails_verification(self):
        server = fake_glance.FakeGlance()
        server.http_client.get.side_effect = itertools.chain(
            [(None, {})], itertools.repeat(
                ks_exceptions.UnknownConnectionError('', OSError())))
        self.assertRaises(nova_exception.GlanceConnectionFailed,
                          self.upload, server)
        self.assertEqual(3, server.http_client.get.call_count)

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
        self.patch(service_user, 'context', mock.Mock(
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

    def test_token_expired_before_lost_response_keeps_complete_image(self):
        self.service_user()
        server = fake_glance.FakeGlance(len(CONTENT))
        self.expire_token_after_upload(server)
        server.status = 'active'
        self.upload(server)
        self.assertEqual(1, len(server.received))
        # Once expired, it stays so.
        self.assertEqual([base.IMAGE_ID], server.refused)

    def test_token_expired_before_the_end_of_the_data_fails(self):
        self.service_user()
        server = fake_glance.FakeGlance(
            5, glanceclient.exc.HTTPUnauthorized('401'))
        self.expire_token_after_upload(server)
        error = self.assertRaises(
            exception.GlanceRefused, self.upload, server)
        self.assertIn('401', str(error))
        self.assertEqual(2, len(server.received))

    def test_keystone_that_restarts_after_lost_response_is_asked_again(self):
        self.service_user(side_effect=itertools.chain(
            [ks_exceptions.ConnectFailure()],
            itertools.repeat(nova_context.RequestContext('nova'))))
        server = fake_glance.FakeGlance(len(CONTENT))
        self.expire_token_after_upload(server)
        server.status = 'active'
        self.upload(server)
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
            self.context, base.IMAGE_ID, upload.Metadata(
                {'name': 'snap'}, {'requested': None}),
            self.encoder, self.token, lambda _sent, _size: None)
        self.assertEqual(
            [f'GET {self.url}', f'PATCH {self.url}', f'PUT {self.url}/file',
             f'GET {self.url}'], self.server.requests)
        self.assertEqual(1, self.server.connections)
        self.assertEqual(
            [{'op': 'add', 'path': '/name', 'value': 'snap'},
             {'op': 'remove', 'path': '/requested'}], self.server.patch)
        self.assertEqual(CONTENT, self.server.content)

    def upload_to_server(self):
        upload.upload(self.context, base.IMAGE_ID, upload.Metadata({}, {}),
                      self.encoder, self.token, lambda _sent, _size: None)

    def uploads(self):
        return self.server.requests.count(f'PUT {self.url}/file')

    def test_complete_image_of_a_proxy_that_gives_up_is_kept(self):
        self.server.status = 504
        self.upload_to_server()
        self.assertEqual(1, self.uploads())

    def test_status_without_a_class_is_a_refusal(self):
        self.server.status = 415
        error = self.assertRaises(exception.GlanceRefused,
                                  self.upload_to_server)
        self.assertIn('415', str(error))
        self.assertEqual(1, self.uploads())

    def with_service_token(self):
        """Send a service token, from a Keystone that has many.

        :returns: the tokens that were sent
        """
        self.flags(send_service_user_token=True, group='service_user')
        tokens = map('service-{}'.format, itertools.count())

        class Plugin(token_endpoint.Token):
            def get_token(self, _session):
                self.token = self.token or next(tokens)
                return self.token

            def invalidate(self):
                self.token = None
                return True

        self.patch(loading, 'load_auth_from_conf_options', mock.Mock(
            return_value=Plugin(self.server.url, None)))
        return tokens

    def test_refused_service_token_lets_the_next_attempt_send_all(self):
        tokens = self.with_service_token()
        self.server.refusals = [(401, {}, b'')]
        self.upload_to_server()
        self.assertEqual(2, self.uploads())
        self.assertEqual(CONTENT, self.server.content)
        self.assertEqual('service-2', next(tokens))

    def test_token_that_is_refused_twice_is_a_refusal(self):
        self.with_service_token()
        self.server.refusals = [(401, {}, b'')] * 2
        self.assertRaises(exception.GlanceRefused, self.upload_to_server)
        self.assertEqual(2, self.uploads())
        self.assertEqual(b'', self.server.content)

    def test_refused_user_token_is_a_refusal(self):
        self.server.refusals = [(401, {}, b'')]
        self.assertRaises(exception.GlanceRefused, self.upload_to_server)
        self.assertEqual(1, self.uploads())

    def test_redirect_is_a_refusal_that_names_where_to(self):
        for code in (301, 302, 303, 307, 308):
            self.server.requests.clear()
            self.server.refusals = [
                (code, {'Location': f'{self.server.url}/other'}, b'')]
            error = self.assertRaises(exception.GlanceRefused,
                                      self.upload_to_server)
            self.assertIn('/other', str(error))
            self.assertIn(f'HTTP {code}', str(error))
            self.assertEqual(1, self.uploads())
        self.assertEqual(b'', self.server.content)

    #: Answers of gateways, which python-glanceclient can't read.
    UNREADABLE = (
        ({'Content-Type': 'application/json'}, b'{"message": "busy"}'),
        ({'Content-Type': 'application/json'}, b'["busy"]'),
        ({'Content-Type': 'application/json'}, b'{"a": {"message": 1}}'),
        ({'Content-Type': 'application/json'}, b'busy'),
        ({}, b'busy'),
        ({'Content-Type': 'text/plain'}, b'\xff busy'))

    def test_gateway_that_is_unavailable_is_retried(self):
        for headers, content in self.UNREADABLE:
            for code in (429, 503):
                self.server.requests.clear()
                self.server.content = b''
                self.server.refusals = [(code, headers, content)]
                self.upload_to_server()
                self.assertEqual(2, self.uploads())

    def test_refusal_of_a_gateway_is_told_in_its_words(self):
        for headers, content in self.UNREADABLE:
            for code in (400, 410, 500, 507):
                self.server.requests.clear()
                self.server.refusals = [(code, headers, content)]
                error = self.assertRaises(exception.GlanceRefused,
                                          self.upload_to_server)
                self.assertIn('1' if b': 1' in content else 'busy',
                              str(error))
                self.assertIn(f'(HTTP {code // 100}00)', str(error))
                self.assertEqual(1, self.uploads())

    def test_discard_tells_what_a_gateway_has_answered(self):
        for headers, content in self.UNREADABLE:
            # Glance is first asked whether it reads the image.
            self.server.refusals = [(507, headers, content)]
            self.assertIn('1' if b': 1' in content else 'busy',
                          upload.discard(self.context, base.IMAGE_ID))

    def test_requests_share_no_headers(self):
        # python-glanceclient adds to them.
        with upload.GlanceImage(
                self.context, base.IMAGE_ID, self.token) as image:
            image.set_metadata({'name': 'snap'}, {})
        self.assertEqual({'Content-Type'}, image_client.PATCH_HEADERS.keys())

    def test_closed_image_leaves_no_callback(self):
        with upload.GlanceImage(
                self.context, base.IMAGE_ID, self.token) as image:
            image.set_metadata({'name': 'snap'}, {})
        self.assertEqual([], self.token._callbacks)

    def expire_token(self, keystone):
        """Refuse the user's token, and have this server for another one."""
        self.server.refused_tokens.add('token')
        self.patch(loading, 'load_auth_from_conf_options', mock.Mock(
            return_value=identity.V3Password(
                keystone.url, username='nova', password='secret')))

    def test_keystone_that_hangs_ends_at_the_stall_timeout(self):
        self.flags(upload_stall_timeout=1, group='snapext')
        self.flags(num_retries=0, group='glance')
        with test_connection.Server(10) as keystone, upload.GlanceImage(
                self.context, base.IMAGE_ID, self.token) as image:
            self.expire_token(keystone)
            self.assertRaises(nova_exception.GlanceConnectionFailed,
                              image.verify, self.encoder)

    def test_cancellation_ends_the_wait_for_keystone(self):
        cause = exception.ServiceStopping(instance='i')
        with test_connection.Server(10) as keystone, upload.GlanceImage(
                self.context, base.IMAGE_ID, self.token) as image:
            self.expire_token(keystone)

            def cancel_when_silent():
                keystone.silent.wait()
                self.token.cancel(cause)

            thread = threading.Thread(target=cancel_when_silent)
            thread.start()
            self.addCleanup(thread.join)
            self.assertIs(cause, self.assertRaises(
                exception.ServiceStopping, image.verify, self.encoder))
        self.assertEqual([], self.token._callbacks)

    def test_check_of_image_makes_one_request(self):
        check = upload.ImageDeletedCheck(self.context, base.IMAGE_ID)
        self.assertIsNone(check.run())
        check.close()
        self.assertEqual([f'GET {self.url}'], self.server.requests)
