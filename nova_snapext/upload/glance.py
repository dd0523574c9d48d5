# SPDX-License-Identifier: Apache-2.0
"""Upload an image to Glance, and verify the content that Glance stored."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
import contextlib
import hashlib
import inspect
import typing as ty

import glanceclient.exc
from keystoneauth1 import exceptions as ks_exceptions
from nova import context as nova_context
from nova import exception as nova_exception
from nova.image import glance
from oslo_log import log as logging
from oslo_utils import units
import tenacity

from nova_snapext import cancel
from nova_snapext import conf
from nova_snapext import encode
from nova_snapext import exception
from nova_snapext.upload import body
from nova_snapext.upload import client as image_client

CONF = conf.CONF
LOG = logging.getLogger(__name__)

# Glance's default hashing_algorithm. If an image has a digest of another
# algorithm, that digest is computed after the upload, from the same frozen
# disk.
DIGEST_ALGORITHM = 'sha512'

# The errors after which Nova's own client retries, and the error of a proxy
# in front of Glance while Glance restarts.
CONNECTION_ERRORS = (
    glanceclient.exc.HTTPBadGateway,
    glanceclient.exc.HTTPServiceUnavailable,
    glanceclient.exc.InvalidEndpoint,
    glanceclient.exc.CommunicationError,
    IOError,
)

# The errors of requests to Glance, and to Keystone for a token.
CLIENT_ERRORS = (
    glanceclient.exc.BaseException,
    glanceclient.exc.HTTPException,
    ks_exceptions.ClientException,
    nova_exception.NovaException,
)

# Seconds between two attempts. Each interval is twice the last one.
FIRST_RETRY_INTERVAL, MAX_RETRY_INTERVAL = 1, 30


class GlanceImage(contextlib.AbstractContextManager['GlanceImage']):
    """One image in Glance, as the user that a context belongs to.

    It makes its requests with Nova's client, which lacks two features that
    a snapshot needs. Nova retries an upload with the same file, which is half
    read by then; here each attempt begins at byte 0. Nova does not send the
    image's size; with the size, stores of several kinds need not grow their
    file while they write, and Glance can refuse an image of another size.

    A context manager, which closes its connections.

    :param token: its cancellation ends each method at once, with the cause
    :param on_progress: called with the number of bytes sent so far, and the
        expected total
    """

    def __init__(self, context: nova_context.RequestContext, image_id: str,
                 token: cancel.CancelToken,
                 on_progress: body.OnProgress | None = None):
        self._context = context
        self._image_id = image_id
        self._token = token
        self._on_progress = on_progress or (lambda _sent, _size: None)
        self._client = image_client.ImageClient(token, image_id)
        self._sent_digest: str | None = None

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections to Glance."""
        self._client.close()

    def set_properties(self, attributes: dict[str, ty.Any],
                       removed: Iterable[str] = ()) -> None:
        """Set and remove attributes of the image, and keep all others.

        :param attributes: values by name, in the form of Nova's image API:
            its ``properties`` may be a dictionary of their own, read-only
            attributes are left out
        :param removed: names of properties to remove, if the image has them
            and they are not set
        :raises ImageNotFound: the image was deleted
        :raises ImageNotAuthorized: the user may not change the image
        :raises GlanceConnectionFailed: all of Nova's attempts failed
        """
        translated = glance._translate_to_glance(attributes)
        # Nova's image service ignores it too.
        translated.pop('id', None)
        with self._errors_translated():
            changed = self._client.update(self._context, translated, removed)
        LOG.debug('Attributes of image %(image)s set or removed: %(names)s',
                  {'image': self._image_id, 'names': ', '.join(changed)})

    def send(self, encoder: encode.Encoder) -> None:
        """Upload the image's data.

        :param encoder: is read from byte 0 at each attempt
        :raises ImageNotFound: the image was deleted
        :raises GlanceRefused: Glance does not accept the image
        :raises GlanceConnectionFailed: all attempts were interrupted
        :raises ImageUnacceptable: Glance does not accept another attempt
        """
        self._sent_digest = None
        attempts = tenacity.Retrying(
            # GlanceConnectionFailed: a request for the image's status fails
            # with it while Glance restarts.
            retry=tenacity.retry_if_exception_type(
                (*CONNECTION_ERRORS, nova_exception.GlanceConnectionFailed)),
            stop=tenacity.stop_after_attempt(1 + CONF.glance.num_retries),
            wait=tenacity.wait_exponential(
                FIRST_RETRY_INTERVAL, MAX_RETRY_INTERVAL),
            sleep=self._token.wait, before_sleep=self._log_retry,
            reraise=True)
        try:
            for attempt in attempts:
                with attempt:
                    self._attempt(encoder, attempt.retry_state.attempt_number)
        except CONNECTION_ERRORS as error:
            self._token.raise_if_cancelled()
            raise nova_exception.GlanceConnectionFailed(
                server=self._client.api_server, reason=str(error)) from error
        except glanceclient.exc.HTTPException as error:
            self._raise_if_deleted()
            raise exception.GlanceRefused(
                server=self._client.api_server, image=self._image_id,
                reason=f'{error.details} (HTTP {error.code})') from error

    def verify(self, encoder: encode.Encoder) -> None:
        """Compare the image in Glance with the data that was sent.

        :param encoder: is read again if Glance's digest is of an algorithm
            other than DIGEST_ALGORITHM, or if no digest was computed
        :raises ImageMismatch: they differ
        :raises ImageNotVerified: Glance does not return the digest
        :raises ImageNotFound: the image was deleted
        """
        with self._errors_translated():
            stored = self._stored()
        mismatch = _mismatch(stored, encoder, self._sent_digest)
        if mismatch:
            raise exception.ImageMismatch(
                image=self._image_id, reason=mismatch)
        LOG.debug('Image %(image)s in Glance has the size (%(size)d bytes) '
                  'and the digest of the data that was sent',
                  {'image': self._image_id, 'size': stored['size']})

    @contextlib.contextmanager
    def _errors_translated(self) -> Iterator[None]:
        """Raise the errors that Nova's image service would raise."""
        try:
            yield
        except Exception as error:
            translated = glance._translate_image_exception(
                self._image_id, error)
            if translated is error:
                raise
            raise translated from error

    def _attempt(self, encoder: encode.Encoder, number: int) -> None:
        self._token.raise_if_cancelled()
        if number > 1 and self._wait_until_reset() == 'active':
            LOG.debug('Image %s has arrived; only the response of the last '
                      'attempt was lost', self._image_id)
            return
        LOG.debug('Upload attempt %(number)d of image %(image)s begins',
                  {'number': number, 'image': self._image_id})
        client = self._client.connect(self._context)
        with contextlib.ExitStack() as stack:
            digest = body.Digest(DIGEST_ALGORITHM)
            stack.callback(digest.close)
            stream = stack.enter_context(contextlib.closing(encoder.stream()))
            data = body.Body(
                stream, encoder.expected_size,
                CONF.snapext.upload_chunk_kb * units.Ki, digest,
                self._on_progress)
            client.images.upload(
                self._image_id, data, **_size_argument(client, encoder.size))
            self._sent_digest = digest.hexdigest()

    def _wait_until_reset(self) -> str:
        """Wait until Glance has noticed the end of the last attempt.

        :returns: the image's status, ``queued`` or ``active``
        :raises ImageUnacceptable: Glance does not accept another attempt
        """
        poll = tenacity.Retrying(
            retry=tenacity.retry_if_result(lambda status: status == 'saving'),
            stop=tenacity.stop_after_delay(CONF.snapext.glance_reset_timeout),
            wait=tenacity.wait_fixed(FIRST_RETRY_INTERVAL),
            sleep=self._token.wait,
            retry_error_callback=lambda _state: 'saving')
        status: str = poll(lambda: self._client.get(self._context)['status'])
        if status not in ('queued', 'active'):
            raise nova_exception.ImageUnacceptable(
                image_id=self._image_id,
                reason=f'after an interrupted upload its status is '
                       f'{status!r}, not queued, and Glance accepts no '
                       f'further upload')
        return status

    def _raise_if_deleted(self) -> None:
        """Check whether Glance refused an upload because its image is gone.

        :raises ImageNotFound: the image is gone
        """
        try:
            self._client.get(self._context)
        except glanceclient.exc.HTTPNotFound as error:
            raise nova_exception.ImageNotFound(
                image_id=self._image_id) from error
        except CLIENT_ERRORS as error:
            self._token.raise_if_cancelled()
            LOG.debug('Could not check whether image %(image)s is deleted: '
                      '%(error)s', {'image': self._image_id, 'error': error})

    def _stored(self) -> dict[str, ty.Any]:
        """Return the image as Glance stored it.

        The user's token may expire during the upload. The request is then
        made again as Nova's service user.

        :raises ImageNotVerified: that request fails
        """
        try:
            return self._client.get(self._context)
        except glanceclient.exc.HTTPUnauthorized as error:
            LOG.info('Glance no longer accepts the token of the user who '
                     'requested the snapshot (%(error)s). Image %(image)s is '
                     'verified as [service_user]',
                     {'error': error, 'image': self._image_id})
        try:
            return self._client.get(
                nova_context.get_nova_service_user_context())
        except CLIENT_ERRORS as error:
            self._token.raise_if_cancelled()
            # A 404 does not prove a deletion here: Nova's user may only not
            # be allowed to see the image.
            raise exception.ImageNotVerified(
                image=self._image_id, reason=str(error)) from error

    def _log_retry(self, state: tenacity.RetryCallState) -> None:
        LOG.warning('The upload of image %(image)s to Glance at %(server)s '
                    'was interrupted, and is retried from its first byte: '
                    '%(error)s',
                    {'image': self._image_id,
                     'server': self._client.api_server,
                     'error': state.outcome and state.outcome.exception()})


def upload(context: nova_context.RequestContext, image_id: str,
           metadata: dict[str, ty.Any], removed: Iterable[str],
           encoder: encode.Encoder, token: cancel.CancelToken,
           on_progress: body.OnProgress) -> None:
    """Upload an image to Glance, and verify what Glance stored.

    After an error, :func:`discard` the image: it may look complete.

    :param metadata: attributes to set, see
        :meth:`GlanceImage.set_properties`; the image keeps all others
    :param removed: names of properties to remove, if the image has them
    :param encoder: the image; it is read from byte 0 at each attempt
    :param token: its cancellation ends the upload at once, with the cause
    :param on_progress: called with the number of bytes sent so far, and the
        expected total
    :raises ImageMismatch: Glance stored other data
    :raises ImageNotVerified: Glance does not return the digest
    :raises ImageNotFound: the image was deleted
    :raises GlanceRefused: Glance does not accept the image
    :raises GlanceConnectionFailed: all attempts were interrupted
    """
    with GlanceImage(context, image_id, token, on_progress) as image:
        image.set_properties(metadata, removed)
        image.send(encoder)
        image.verify(encoder)


def discard(context: nova_context.RequestContext, image_api: glance.API,
            image_id: str) -> str | None:
    """Delete the image of a failed snapshot, as Nova's user if necessary.

    Nova's manager does not always delete it: shelve keeps the image, and the
    user's token may have expired.

    :param context: of the user who requested the snapshot; None, or one
        without a token, if that is not known
    :returns: why the image could not be deleted; None if it is gone
    """
    if context is None or context.auth_token is None:
        return _discard_as_nova(image_api, image_id, gone=True)
    try:
        image_api.delete(context, image_id)
        LOG.debug('Image %s discarded', image_id)
        return None
    except nova_exception.ImageNotFound:
        LOG.debug('Image %s is already deleted', image_id)
        return None
    except (nova_exception.ImageNotAuthorized,
            glanceclient.exc.HTTPUnauthorized):
        LOG.info('The user who requested the snapshot may no longer delete '
                 'its image %s. It is deleted as [service_user]', image_id)
    except CLIENT_ERRORS as error:
        return str(error)
    # A 404 does not prove a deletion: Nova's user may only not be allowed to
    # see the image.
    return _discard_as_nova(image_api, image_id, gone=False)


def _discard_as_nova(image_api: glance.API, image_id: str,
                     gone: bool) -> str | None:
    """Delete an image as [service_user].

    :param gone: whether an image that is not found counts as deleted
    """
    try:
        image_api.delete(
            nova_context.get_nova_service_user_context(), image_id)
        LOG.debug('Image %s discarded as [service_user]', image_id)
        return None
    except nova_exception.ImageNotFound as error:
        return None if gone else str(error)
    except CLIENT_ERRORS as error:
        return str(error)


def _size_argument(client: ty.Any, size: int | None) -> dict[str, int]:
    """Return the argument for the image's size, if glanceclient has it.

    :param size: in bytes; None if it is not known yet
    """
    if size is None:
        return {}
    # Since python-glanceclient 4.10. Glance uses the header since release 31,
    # and ignores it before.
    if 'image_size' in inspect.signature(client.images.upload).parameters:
        return {'image_size': size}
    return {}


def _mismatch(stored: dict[str, ty.Any], encoder: encode.Encoder,
              sent_digest: str | None) -> str | None:
    """Return how an image in Glance differs from the data that was sent."""
    if stored['status'] != 'active':
        return f'its status is {stored["status"]}'
    if stored['size'] != encoder.size:
        return f'{stored["size"]} bytes, not {encoder.size}'
    algorithm = stored.get('os_hash_algo') or 'md5'
    digest = stored.get('os_hash_value') or stored.get('checksum')
    if algorithm not in hashlib.algorithms_available:
        return f'its digest algorithm {algorithm} is not available here'
    if sent_digest is None or algorithm != DIGEST_ALGORITHM:
        sent_digest = _digest(encoder, algorithm)
    if digest != sent_digest:
        return f'its {algorithm} digest is {digest}, not {sent_digest}'
    return None


def _digest(encoder: encode.Encoder, algorithm: str) -> str:
    """Read the image again, and return its digest."""
    LOG.debug('The image is read again for its %s digest', algorithm)
    digest = hashlib.new(algorithm, usedforsecurity=False)
    for chunk in encoder.stream():
        digest.update(chunk)
    return digest.hexdigest()
