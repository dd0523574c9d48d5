# SPDX-License-Identifier: Apache-2.0
"""A Glance with one image, behind a client of python-glanceclient."""

import contextlib
import hashlib
import json
from unittest import mock

import glanceclient.exc
from nova.image import glance as nova_glance

#: Attributes of Glance's schema, which its quota of properties leaves out.
BASE_ATTRIBUTES = frozenset((
    'name', 'disk_format', 'container_format', 'min_disk', 'status'))


class FakeGlance:
    """A client of python-glanceclient, and the server behind it.

    :param failures: for each upload, the bytes that arrive before the
        connection is interrupted, or the error that Glance responds with;
        None: the upload succeeds
    :param statuses: the image's status at each request for it
    :param quota: Glance's image_property_quota
    :param protected: by name of a property, what its property protections
        forbid: create, update, delete
    :param stored: attributes of the image
    :ivar requests: methods of the requests, in order
    :ivar received: data of each upload
    :ivar sizes: the size that each upload announced
    :ivar patches: JSON of each PATCH
    :ivar context: context of the last client
    :ivar deletions: for each DELETE, the error that Glance responds with, or
        None
    :ivar deleted_as: context of each DELETE
    """

    def __init__(self, *failures, statuses=(), quota=128, protected=None,
                 **stored):
        self.failures = iter(failures)
        self.statuses = iter(statuses)
        self.requests = []
        self.received = []
        self.sizes = []
        self.patches = []
        self.stored = stored
        self.quota = quota
        self.protected = protected or {}
        self.http_client = mock.Mock()
        self.http_client.get.side_effect = self.on_get
        self.http_client.put.side_effect = self.on_put
        self.http_client.invalidate.return_value = False
        self.http_client.patch.side_effect = self.on_patch
        self.http_client.delete.side_effect = self.on_delete
        self.deletions = iter(())
        self.deleted_as = []
        self.status = 'queued'

    @contextlib.contextmanager
    def installed(self):
        """Replace the server of Nova's Glance client."""
        def client(wrapper, context, _version):
            self.context = context
            wrapper.api_server = 'http://glance'
            return self

        with mock.patch.object(nova_glance.GlanceClientWrapper,
                               '_create_onetime_client', client):
            yield

    def on_put(self, url, headers, data, allow_reauth, redirect):
        assert not allow_reauth and not redirect
        self.sizes.append(headers.get('x-openstack-image-size'))
        self.upload(data)
        return mock.Mock(status_code=204), None

    def upload(self, image_data):
        self.requests.append('PUT')
        limit = next(self.failures, None)
        if isinstance(limit, Exception):
            self.received.append(b'')
            raise limit
        content = b''
        while chunk := image_data.read(1024 * 1024):
            content += chunk
            if limit is not None and len(content) >= limit:
                self.received.append(content)
                raise glanceclient.exc.CommunicationError(
                    message='interrupted')
        self.received.append(content)
        self.status = 'active'

    def on_get(self, url):
        self.requests.append('GET')
        return None, self.get(url.rpartition('/')[2])

    def get(self, image_id):
        content = self.received[-1] if self.received else b''
        self.status = next(self.statuses, self.status)
        return {'id': image_id, 'status': self.status, 'size': len(content),
                'os_hash_algo': 'sha512',
                'os_hash_value': hashlib.sha512(content).hexdigest(),
                **self.stored}

    def on_patch(self, url, headers, data):
        self.requests.append('PATCH')
        self.patches.append(json.loads(data))
        self.stored = self.changed(self.patches[-1])
        return None, {'id': url.rpartition('/')[2], **self.stored}

    def on_delete(self, _url):
        self.requests.append('DELETE')
        self.deleted_as.append(self.context)
        error = next(self.deletions, None)
        if error is not None:
            raise error

    def changed(self, patch):
        """Return the attributes after a change, as Glance makes it or not.

        See glance/api/property_protections.py and glance/quota/__init__.py.
        """
        changed = dict(self.stored)
        for change in patch:
            name = change['path'][1:].replace('~1', '/').replace('~0', '~')
            operation = ('delete' if change['op'] == 'remove' else
                         'update' if changed.get(name) is not None else
                         'create')
            if operation in self.protected.get(name, ()):
                raise glanceclient.exc.HTTPForbidden(
                    f'403 Forbidden: Attribute \'{name}\' is reserved.')
            if operation == 'delete':
                del changed[name]
            else:
                changed[name] = change['value']
        properties = changed.keys() - BASE_ATTRIBUTES
        if properties - self.stored.keys() and len(properties) > self.quota:
            raise glanceclient.exc.HTTPOverLimit(
                '413 Request Entity Too Large\n\nThe limit has been exceeded '
                'on the number of allowed image properties. Attempted: '
                f'{len(properties)}, Maximum: {self.quota}')
        return changed
