# SPDX-License-Identifier: Apache-2.0
"""An image whose data is already where Glance's store keeps it.

Glance takes over a location in the background since release 29 (2024.2): it
makes the image active, then reads all of it for its digest. If the image is
deleted during that, the end of this task saves it again, active and without
data (glance/async_/flows/location_import.py). So the caller waits for the end.
"""

from __future__ import annotations

import contextlib
import typing as ty

from glanceclient.common import utils as glanceclient_utils
import glanceclient.exc
from nova import context as nova_context
from nova import exception as nova_exception
from nova.image import glance
from oslo_log import log as logging
from oslo_utils import timeutils

from nova_snapext import cancel
from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.upload import client

CONF = conf.CONF
LOG = logging.getLogger(__name__)

# Seconds between two requests for the image's state.
POLL_INTERVAL = 2

# Bytes a second that Glance hashes at least, before the wait for it ends: a
# tenth of what it did on a busy machine with one disk.
SLOWEST_HASH = 4 * 1024 * 1024

# The first version of Glance's API with locations of their own, as in
# glanceclient's add_image_location.
LOCATION_API = 'v2.17'

# Of Glance's tasks, see get_flow() of its location_import.py.
TASK_TYPE = 'location_import'

# Glance, or a proxy before it, does not answer now.
UNREACHABLE = (glanceclient.exc.HTTPServiceUnavailable,
               glanceclient.exc.HTTPBadGateway,
               glanceclient.exc.CommunicationError,
               nova_exception.GlanceConnectionFailed)

#: Glance has not taken the location, and the image is as before.
REFUSALS = (nova_exception.ImageNotAuthorized,
            nova_exception.Forbidden,
            nova_exception.ImageUnacceptable,
            nova_exception.ImageBadRequest,
            glanceclient.exc.HTTPException)


class LocatedImage(contextlib.AbstractContextManager['LocatedImage']):
    """One image in Glance that gets its data by a location.

    A context manager, which closes its connections.

    :param token: its cancellation ends each wait, with the cause
    """

    def __init__(self, image_api: glance.API,
                 context: nova_context.RequestContext, image_id: str,
                 token: cancel.CancelToken):
        self._image_api = image_api
        self._context = context
        self._image_id = image_id
        self._token = token
        self._client = client.ImageClient(token, image_id)

    def __exit__(self, *_exc: object) -> None:
        self._client.close()

    def needs_service(self) -> bool:
        """Return whether Glance takes RBD locations from services only.

        The API of release 29 and newer does. That of before needs Glance's
        option show_multiple_locations, and no service.

        :raises HTTPException: Glance does not answer
        """
        with self._token.prefer_cause():
            http = self._client.connect(self._context).http_client
            return bool(glanceclient_utils.has_version(http, LOCATION_API))

    def add(self, url: str) -> None:
        """Have Glance take over a location, in the way of Nova.

        :raises LocationRefused: Glance has not taken it
        :raises ImageNotFound: the image was deleted
        """
        try:
            self._image_api.update(
                self._context, self._image_id, {'location': url},
                purge_props=False)
        except nova_exception.ImageNotFound:
            raise
        except REFUSALS as error:
            raise exception.LocationRefused(
                image=self._image_id, reason=str(error)) from error
        LOG.debug('Location %(url)s is offered to Glance for image %(image)s',
                  {'url': url, 'image': self._image_id})

    def wait_until_active(self, size: int) -> bool:
        """Wait until Glance is done with the image.

        :param size: of the image, in bytes
        :returns: whether Glance has a digest of the image
        :raises LocationRefused: Glance has given the location up
        :raises ImageNotVerified: it is not active in time
        :raises ImageNotFound: the image was deleted
        """
        limit = CONF.snapext.glance_reset_timeout
        watch = timeutils.StopWatch().start()
        while True:
            try:
                image, task = self._state()
            except UNREACHABLE as error:
                if watch.elapsed() > limit:
                    raise
                LOG.debug('Glance does not tell the state of image %(image)s '
                          'now: %(error)s',
                          {'image': self._image_id, 'error': error})
                self._token.wait(POLL_INTERVAL)
                continue
            active = image['status'] == 'active'
            if task == 'failure' and not active:
                raise exception.LocationRefused(
                    image=self._image_id,
                    reason='Glance could not read it, see its log')
            if active and task in ('success', 'failure', None):
                return image.get('os_hash_value') is not None
            if watch.elapsed() > limit + (
                    size / SLOWEST_HASH if active else 0):
                break
            self._token.wait(POLL_INTERVAL)
        if not active:
            raise exception.ImageNotVerified(
                image=self._image_id,
                reason=f'its status is {image["status"]}, not active, after '
                       f'{limit} seconds')
        LOG.warning('Glance has not finished the digest of image %s. Do not '
                    'delete the image before it has one: Glance would leave '
                    'an active image without data', self._image_id)
        return False

    def _state(self) -> tuple[dict[str, ty.Any], str | None]:
        """Return the image, and the state of the task that takes it over.

        :returns: None for the task if there is none, as with the locations
            API of before release 29
        """
        with self._token.prefer_cause():
            # The task comes first: it ends after the image is complete.
            task = self._task_state()
            try:
                return self._client.get(self._context), task
            except glanceclient.exc.HTTPNotFound as error:
                raise nova_exception.ImageNotFound(
                    image_id=self._image_id) from error

    def _task_state(self) -> str | None:
        http = self._client.connect(self._context).http_client
        try:
            _response, body = http.get(f'/v2/images/{self._image_id}/tasks')
        except (glanceclient.exc.HTTPNotFound,
                glanceclient.exc.HTTPForbidden,
                glanceclient.exc.HTTPMethodNotAllowed) as error:
            LOG.debug('The tasks of image %(image)s are not known: %(error)s',
                      {'image': self._image_id, 'error': error})
            return None
        states = [task['status'] for task in body['tasks']
                  if task['type'] == TASK_TYPE]
        return str(states[-1]) if states else None
