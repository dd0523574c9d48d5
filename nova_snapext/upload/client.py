# SPDX-License-Identifier: Apache-2.0
"""Requests to Glance for one image."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping
import json
import typing as ty

from glanceclient.common import utils as glanceclient_utils
import glanceclient.exc
from nova import context as nova_context

from nova_snapext import cancel
from nova_snapext.upload import body
from nova_snapext.upload import connection
from nova_snapext.upload import service_user

# Of Glance's API, as Nova's client wants it.
API_VERSION = 2

# The first version of Glance's API with locations of their own, as in
# python-glanceclient's add_image_location.
LOCATION_API = 'v2.17'

# The type of Glance's task, see get_flow() of its location_import.py.
LOCATION_TASK = 'location_import'

# The codes of HTTP for a request that has succeeded.
SUCCESS = range(200, 300)

PATCH_HEADERS = {
    'Content-Type': 'application/openstack-images-v2.1-json-patch'}


class Update(ty.NamedTuple):
    """What an update has changed.

    :ivar names: of the attributes that were set or removed
    :ivar image: as it is now; None: Glance does not tell
    """

    names: list[str]
    image: dict[str, ty.Any] | None


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

    def update(self, attributes: dict[str, ty.Any], removed: Iterable[str],
               seen: dict[str, ty.Any] | None = None) -> Update:
        """Change some attributes of the image, and keep the others.

        Glance may forbid to set an attribute, even to the value that it has,
        and fails to remove one that the image does not have. If nothing
        differs, no change is requested.

        :param attributes: values by name
        :param removed: names of attributes to remove, unless they are set
        :param seen: the image as Glance has returned it last. If there are
            attributes to set, and none to remove, it is not requested first;
            what somebody else has changed since is changed in turn
        """
        removed, image, attempts = list(removed), seen, 2
        if image is None or not _additions(image, attributes) or (
                _removals(image, attributes, removed)):
            image, attempts = self.get(), 1
        names: list[str] = []
        while attempts:
            attempts -= 1
            additions = _additions(image, attributes)
            removals = _removals(image, attributes, removed)
            if not additions and not removals:
                break
            names += [*additions, *removals]
            changed = self._patch([*additions.values(), *removals.values()])
            if changed is None and attempts:
                changed = self.get()
            if changed is None:
                return Update(names, None)
            image = changed
        return Update(names, image)

    def _patch(self, changes: list[dict[str, ty.Any]],
               ) -> dict[str, ty.Any] | None:
        """Make changes, and return the image as it is then, if it is told."""
        # A copy: python-glanceclient adds the id of the request to it.
        _response, image = self._http_client.patch(
            self._url, data=json.dumps(changes), headers=dict(PATCH_HEADERS))
        return image if isinstance(image, dict) else None

    def upload(self, data: body.Body, size: int | None) -> None:
        """Send the image's data in one request, which is made once.

        keystoneauth would log in again after a 401, or follow a redirect, and
        then send what it has not yet read of the data: Glance would take
        that for the image.

        :param size: of the image, in bytes; None if it is not known yet
        """
        headers = {'Content-Type': 'application/octet-stream'}
        if size is not None:
            # Glance uses it since release 31, and ignores it before.
            headers['x-openstack-image-size'] = str(size)
        response, _body = self._http_client.put(
            f'{self._url}/file', headers=headers, data=data,
            allow_reauth=False, redirect=False)
        if response.status_code not in SUCCESS:
            error = glanceclient.exc.HTTPException(
                f'it is redirected to {response.headers.get("Location")}. '
                f'Nova must send images to Glance itself: correct its '
                f'endpoint in Keystone, or [glance]endpoint_override')
            error.code = response.status_code
            raise error

    def delete(self) -> None:
        """Delete the image, as Nova's image API does."""
        self._http_client.delete(self._url)

    def has_location_api(self) -> bool:
        """Return whether Glance adds a location in a request of its own.

        Since release 29 (2024.2).
        """
        return bool(glanceclient_utils.has_version(
            self._http_client, LOCATION_API))

    def add_location(self, url: str, store: str | None) -> None:
        """Add a location, by the request that Nova's image API makes.

        See GlanceImageServiceV2._add_location in nova/image/glance.py, and
        the two functions of python-glanceclient that it calls.

        :param store: Glance's name of the store that the location is in, for
            a Glance that does not find it out by itself; None if not known
        """
        if self.has_location_api():
            self._http_client.post(f'{self._url}/locations', data={
                'url': url, 'validation_data': {}})
            return
        value = {'url': url, 'metadata': {'store': store} if store else {}}
        self._http_client.patch(
            self._url, headers=dict(PATCH_HEADERS), data=json.dumps(
                [{'op': 'add', 'path': '/locations/-', 'value': value}]))

    def location_task(self) -> dict[str, ty.Any] | None:
        """Return Glance's last task that takes over a location.

        :returns: None if there is none, as before release 29, or if Glance
            does not show it
        """
        try:
            _response, body = self._http_client.get(f'{self._url}/tasks')
        except (glanceclient.exc.HTTPNotFound,
                glanceclient.exc.HTTPForbidden,
                glanceclient.exc.HTTPMethodNotAllowed):
            return None
        tasks = [task for task in body['tasks']
                 if task['type'] == LOCATION_TASK]
        return max(tasks, key=lambda task: str(task.get('created_at')),
                   default=None)

    def stores(self) -> list[str]:
        """List the names of Glance's stores; none if they have no names."""
        try:
            _response, body = self._http_client.get('/v2/info/stores')
        except glanceclient.exc.HTTPNotFound:
            return []
        return [str(store['id']) for store in body['stores']]


def _additions(image: Mapping[str, ty.Any], attributes: dict[str, ty.Any],
               ) -> dict[str, dict[str, ty.Any]]:
    """Return the changes that give an image other values, by name."""
    return {name: {'op': 'add', 'path': _pointer(name), 'value': value}
            for name, value in attributes.items()
            if name not in image or image[name] != value}


def _removals(image: Mapping[str, ty.Any], attributes: dict[str, ty.Any],
              removed: Iterable[str]) -> dict[str, dict[str, ty.Any]]:
    """Return the changes that remove attributes of an image, by name."""
    return {name: {'op': 'remove', 'path': _pointer(name)}
            for name in removed if name in image and name not in attributes}


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
        self._service: nova_context.RequestContext | None = None

    def _create_onetime_client(self, context: nova_context.RequestContext,
                               version: int) -> ty.Any:
        client = super()._create_onetime_client(context, version)
        client.snapext_image = ImageRequests(
            client.http_client, self._image_id)
        return client

    def service_context(self) -> nova_context.RequestContext:
        """Return a context of Nova's service user, for this client.

        :raises InvalidConfiguration: of Nova: [service_user] has no
            credentials
        """
        if self._service is None:
            self._service = service_user.context(self._token)
        return self._service

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

    def delete(self, context: nova_context.RequestContext) -> None:
        """Delete the image.

        :raises HTTPException: glanceclient's, if Glance refuses it
        :raises GlanceConnectionFailed: all of Nova's attempts failed
        """
        self.call(context, API_VERSION, 'delete', controller='snapext_image')

    def update(self, context: nova_context.RequestContext,
               attributes: dict[str, ty.Any], removed: Iterable[str],
               seen: dict[str, ty.Any] | None = None) -> Update:
        """Change the image's attributes, see :meth:`ImageRequests.update`.

        :raises GlanceConnectionFailed: all of Nova's attempts failed
        """
        return ty.cast(Update, self.call(
            context, API_VERSION, 'update', controller='snapext_image',
            args=(attributes, list(removed), seen)))
