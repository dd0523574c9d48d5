# SPDX-License-Identifier: Apache-2.0
"""Requests to Glance for one image."""

from __future__ import annotations

from collections.abc import Iterable
import json
import typing as ty

from nova import context as nova_context

from nova_snapext import cancel
from nova_snapext.upload import connection

# Of Glance's API, as Nova's client wants it.
API_VERSION = 2

PATCH_HEADERS = {
    'Content-Type': 'application/openstack-images-v2.1-json-patch'}


class ImageRequests:
    """The requests for one image, each of them made once.

    python-glanceclient's own controller makes five requests to update an
    image and two to get it: it also gets the schema, and the updated image.
    A frozen disk waits for them. That controller takes a lock that all images
    of a process share, and under eventlet the greenlets of two native threads
    can't wait for one lock.

    :raises HTTPException: glanceclient's, as from its own controller
    """

    def __init__(self, http_client: ty.Any, image_id: str):
        self._http_client = http_client
        self._url = f'/v2/images/{image_id}'

    def get(self) -> dict[str, ty.Any]:
        """Return the image's attributes; its properties are among them."""
        _response, image = self._http_client.get(self._url)
        return ty.cast(dict[str, ty.Any], image)

    def update(self, attributes: dict[str, ty.Any],
               removed: Iterable[str]) -> list[str]:
        """Change some attributes of the image, and keep the others.

        Glance may forbid to set an attribute, even to the value that it has,
        and fails to remove one that the image does not have. If nothing
        differs, no change is requested.

        :param attributes: values by name
        :param removed: names of attributes to remove, unless they are set
        :returns: names of the attributes that were set or removed
        """
        image = self.get()
        changed = {name: value for name, value in attributes.items()
                   if name not in image or image[name] != value}
        removed = [name for name in removed
                   if name in image and name not in attributes]
        patch = [{'op': 'add', 'path': _pointer(name), 'value': value}
                 for name, value in changed.items()]
        patch += [{'op': 'remove', 'path': _pointer(name)}
                  for name in removed]
        if patch:
            # A copy: python-glanceclient adds the id of the request to it.
            self._http_client.patch(self._url, data=json.dumps(patch),
                                    headers=dict(PATCH_HEADERS))
        return [*changed, *removed]


def _pointer(name: str) -> str:
    """Return the JSON pointer to an attribute, see RFC 6901."""
    return '/' + name.replace('~', '~0').replace('/', '~1')


class ImageClient(connection.CancellableClient):
    """Nova's Glance client, for one image.

    Nova's client chooses the endpoint, authenticates, and retries.
    """

    def __init__(self, token: cancel.CancelToken, image_id: str):
        super().__init__(token)
        self._image_id = image_id

    def _create_onetime_client(self, context: nova_context.RequestContext,
                               version: int) -> ty.Any:
        client = super()._create_onetime_client(context, version)
        client.snapext_image = ImageRequests(
            client.http_client, self._image_id)
        return client

    def connect(self, context: nova_context.RequestContext) -> ty.Any:
        """Return a python-glanceclient for requests that are not retried.

        Its ``snapext_image`` is an :class:`ImageRequests`.
        """
        return self._create_onetime_client(context, API_VERSION)

    def get(self, context: nova_context.RequestContext) -> dict[str, ty.Any]:
        """Return the image's attributes, see :meth:`ImageRequests.get`.

        :raises GlanceConnectionFailed: all of Nova's attempts failed
        """
        return ty.cast(dict[str, ty.Any], self.call(
            context, API_VERSION, 'get', controller='snapext_image'))

    def update(self, context: nova_context.RequestContext,
               attributes: dict[str, ty.Any],
               removed: Iterable[str]) -> list[str]:
        """Change the image's attributes, see :meth:`ImageRequests.update`.

        :raises GlanceConnectionFailed: all of Nova's attempts failed
        """
        return ty.cast(list[str], self.call(
            context, API_VERSION, 'update', controller='snapext_image',
            args=(attributes, list(removed))))
