# SPDX-License-Identifier: Apache-2.0
"""An image whose data is already where Glance's store keeps it.

Glance takes over a location in the background since release 29 (2024.2): it
makes the image active, then reads all of it for its digest. If the image is
deleted during that, the end of this task saves it again, active and without
data (glance/async_/flows/location_import.py). So nothing of ours deletes such
an image before the end, see is_hashed_now(), and a snapshot ends after it:
Nova may delete the image of a backup next.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import datetime
import typing as ty

import glanceclient.exc
from nova import context as nova_context
from nova import exception as nova_exception
from oslo_log import log as logging
from oslo_utils import timeutils

from nova_snapext import cancel
from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.upload import client
from nova_snapext.upload import glance

CONF = conf.CONF
LOG = logging.getLogger(__name__)

# Seconds between two requests for the image's state.
POLL_INTERVAL = 2

#: Bytes a second that Glance hashes at least, before nobody waits for it any
#: more: a tenth of what it did on a busy machine with one disk.
SLOWEST_HASH = 4 * 1024 * 1024

# States of Glance's task that is not at its end.
UNFINISHED = ('pending', 'processing')

# No answer: Glance, or a proxy before it, has failed or can't be reached. It
# may have got the request all the same.
UNREACHABLE = (*glance.CONNECTION_ERRORS,
               glanceclient.exc.HTTPInternalServerError,
               nova_exception.GlanceConnectionFailed)

# All errors of a request.
REQUEST_ERRORS = (*UNREACHABLE, glanceclient.exc.HTTPException)


class LocatedImage(contextlib.AbstractContextManager['LocatedImage']):
    """One image in Glance that gets its data by a location.

    It may be used in a native thread under eventlet, because it shares no lock
    with Nova's own client. A context manager, which closes its connections.

    :param token: its cancellation ends each wait, with the cause
    """

    def __init__(self, context: nova_context.RequestContext, image_id: str,
                 token: cancel.CancelToken):
        self._context = context
        self._image_id = image_id
        self._token = token
        self._client = client.ImageClient(token, image_id)
        # Of an attempt to add a location, after one without an answer.
        self._refusal: Exception | None = None

    def __exit__(self, *_exc: object) -> None:
        self._client.close()

    def _requests(self) -> client.ImageRequests:
        return ty.cast(client.ImageRequests,
                       self._client.connect(self._context).snapext_image)

    def needs_service(self) -> bool:
        """Return whether Glance takes RBD locations from services only.

        The API of release 29 and newer does. That of before needs Glance's
        option show_multiple_locations, and no service.

        :raises HTTPException: Glance does not answer
        """
        with self._token.prefer_cause():
            return self._requests().has_location_api()

    def stores(self) -> list[str]:
        """List the names of Glance's stores.

        :returns: none if Glance has one store only, without a name
        :raises HTTPException: Glance does not answer
        """
        with self._token.prefer_cause():
            return self._requests().stores()

    def locations(self) -> list[str]:
        """List the locations of the image, as far as Glance shows them.

        :raises HTTPException: Glance does not show the image
        """
        with self._token.prefer_cause():
            image = self._requests().get()
        return [str(url) for url in (
            *(location['url'] for location in image.get('locations') or ()),
            image.get('direct_url')) if url]

    def add(self, url: str, store: str | None = None) -> None:
        """Have Glance take over a location.

        :param store: see :meth:`ImageRequests.add_location`
        :raises LocationRefused: Glance has not taken it
        :raises ImageNotFound: the image was deleted
        :raises GlanceConnectionFailed: it is not known whether it has
        """
        for attempt in range(1, CONF.glance.num_retries + 2):
            try:
                with self._token.prefer_cause():
                    self._requests().add_location(url, store)
            except glanceclient.exc.HTTPNotFound as error:
                raise nova_exception.ImageNotFound(
                    image_id=self._image_id) from error
            except REQUEST_ERRORS as error:
                if isinstance(error, UNREACHABLE):
                    last: Exception = error
                    LOG.debug('Attempt %(number)d to add a location to image '
                              '%(image)s got no answer: %(error)s',
                              {'number': attempt, 'image': self._image_id,
                               'error': error})
                    self._token.wait(POLL_INTERVAL)
                    continue
                # Glance refuses a location that it has already, with a code
                # that depends on its release. So it may have got an attempt
                # whose answer was lost.
                if attempt == 1:
                    raise self._refused(error) from error
                LOG.debug('Glance may have taken an earlier attempt to add a '
                          'location to image %(image)s: %(error)s',
                          {'image': self._image_id, 'error': error})
                self._refusal = error
            LOG.debug('Location %(url)s is offered to Glance for image '
                      '%(image)s', {'url': url, 'image': self._image_id})
            return
        raise nova_exception.GlanceConnectionFailed(
            server=self._client.api_server, reason=str(last)) from last

    def wait_until_active(self, limit: float) -> None:
        """Wait until the image has its data.

        :param limit: in seconds
        :raises LocationRefused: Glance has given the location up
        :raises ImageNotVerified: it is not active in time
        :raises ImageNotFound: the image was deleted
        """
        for image, task, is_late in self._states(limit):
            if image['status'] == 'active':
                return
            if task is not None and task['status'] == 'failure':
                raise self._refused('it could not read it, see its log')
            if is_late and self._refusal is not None:
                raise self._refused(self._refusal)
            if is_late:
                raise self._not_active(image, limit)

    def is_taken_over(self) -> bool:
        """Return whether Glance takes the location over, after a refusal.

        Of two equal requests Glance refuses the second, and its task for the
        first may still run.

        :returns: whether the image has its data in the end
        :raises ImageNotVerified: the task does not end
        :raises HTTPException: Glance does not tell
        :raises ImageNotFound: the image was deleted
        """
        limit = CONF.snapext.glance_reset_timeout
        for image, task, is_late in self._states(limit):
            if image['status'] == 'active':
                return True
            if task is None or task['status'] not in UNFINISHED:
                return False
            if is_late:
                raise self._not_active(image, limit)
        raise AssertionError('it is polled until one of these')

    def _states(self, limit: float) -> Iterator[
            tuple[dict[str, ty.Any], dict[str, ty.Any] | None, bool]]:
        """Return the image, its task, and whether the limit is over.

        Again and again, until the caller has seen enough.

        :param limit: in seconds; after it, Glance has to answer
        """
        watch = timeutils.StopWatch().start()
        while True:
            try:
                image, task = self._state()
            except REQUEST_ERRORS as error:
                if (not isinstance(error, UNREACHABLE) or
                        watch.elapsed() > limit):
                    raise
                self._log_unreachable(error)
            else:
                yield image, task, watch.elapsed() > limit
            self._token.wait(POLL_INTERVAL)

    def _not_active(self, image: dict[str, ty.Any],
                    limit: float) -> exception.ImageNotVerified:
        return exception.ImageNotVerified(
            image=self._image_id,
            reason=f'its status is {image["status"]}, not active, after '
                   f'{limit:g} seconds')

    def wait_until_hashed(self, slowest: float) -> bool:
        """Wait until Glance has read the active image for its digest.

        Glance's task is at its end then, and the image can be deleted. An
        image that has no such task, because it was uploaded, is not waited
        for.

        :param slowest: bytes a second that Glance hashes at least, beside
            [snapext]glance_reset_timeout
        :returns: whether Glance has a digest of the image
        :raises ImageNotFound: the image was deleted
        """
        short = limit = float(CONF.snapext.glance_reset_timeout)
        is_logged = False
        watch = timeutils.StopWatch().start()
        while True:
            try:
                image, task = self._state()
            except REQUEST_ERRORS as error:
                if not isinstance(error, UNREACHABLE):
                    raise
                self._log_unreachable(error)
            else:
                if task is None or task['status'] not in UNFINISHED:
                    return image.get('os_hash_value') is not None
                limit = _hash_limit(image, slowest)
            if short < watch.elapsed() <= limit and not is_logged:
                is_logged = True
                LOG.info(
                    'Glance still reads image %(image)s for its digest, and '
                    'the instance is busy until then: for %(seconds)d seconds '
                    'at most, if Glance was restarted. A restart of '
                    'nova-compute ends the wait, and keeps the image',
                    {'image': self._image_id, 'seconds': limit})
            if watch.elapsed() > limit:
                LOG.warning(
                    'Glance has not finished the digest of image %s. Do not '
                    'delete the image before it has one: Glance would leave '
                    'an active image without data', self._image_id)
                return False
            self._token.wait(POLL_INTERVAL)

    def _state(self) -> tuple[dict[str, ty.Any], dict[str, ty.Any] | None]:
        """Return the image, and the task that takes it over.

        :returns: None for the task if there is none
        """
        connected = self._requests()
        with self._token.prefer_cause():
            # The task comes first: it ends after the image is complete.
            task = connected.location_task()
            try:
                return connected.get(), task
            except glanceclient.exc.HTTPNotFound as error:
                raise nova_exception.ImageNotFound(
                    image_id=self._image_id) from error

    def _log_unreachable(self, error: Exception) -> None:
        LOG.debug('Glance does not tell the state of image %(image)s now: '
                  '%(error)s', {'image': self._image_id, 'error': error})

    def _refused(self, reason: object) -> exception.LocationRefused:
        return exception.LocationRefused(
            image=self._image_id, reason=str(reason))


def is_hashed_now(connected: client.ImageRequests) -> bool:
    """Return whether Glance reads an active image for its digest.

    Its deletion would leave an active image without data. A task that has not
    ended after a long time was that of a Glance that was stopped.

    :raises HTTPException: Glance does not answer
    """
    task = connected.location_task()
    if task is None or task['status'] not in UNFINISHED:
        return False
    image = connected.get()
    if image['status'] != 'active':
        return False
    begun = timeutils.normalize_time(
        timeutils.parse_isotime(f'{task["created_at"].rstrip("Z")}Z'))
    return begun + datetime.timedelta(
        seconds=_hash_limit(image, SLOWEST_HASH)) > timeutils.utcnow()


def _hash_limit(image: dict[str, ty.Any], slowest: float) -> float:
    """Return how many seconds Glance may take for an image's digest."""
    return float(CONF.snapext.glance_reset_timeout +
                 (image.get('size') or 0) / slowest)
