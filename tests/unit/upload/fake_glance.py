# SPDX-License-Identifier: Apache-2.0
"""A Glance with one image, behind a client of python-glanceclient."""

import contextlib
import hashlib
import json
from unittest import mock

import glanceclient.exc
from nova.image import glance as nova_glance


class FakeGlance:
    """A client of python-glanceclient, and the server behind it.

    :param failures: for each upload, the bytes that arrive before the
        connection is interrupted, or the error that Glance responds with;
        None: the upload succeeds
    :param statuses: the image's status at each request for it
    :param stored: attributes of the image
    :ivar requests: methods of the requests, in order
    :ivar received: data of each upload
    :ivar sizes: the size that each upload announced
    :ivar patches: JSON of each PATCH
    :ivar context: context of the last client
    """

    def __init__(self, *failures, statuses=(), **stored):
        self.failures = iter(failures)
        self.statuses = iter(statuses)
        self.requests = []
        self.received = []
        self.sizes = []
        self.patches = []
        self.stored = stored
        self.images = self
        self.http_client = mock.Mock()
        self.http_client.get.side_effect = self.on_get
        self.http_client.patch.side_effect = self.on_patch
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

    def upload(self, image_id, image_data, image_size=None):
        self.requests.append('PUT')
        self.sizes.append(image_size)
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
