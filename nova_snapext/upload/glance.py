# SPDX-License-Identifier: Apache-2.0
"""Upload an image to Glance, and verify the content that Glance stored."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import dataclasses
import hashlib
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
from nova_snapext.upload import refusal

CONF = conf.CONF
LOG = logging.getLogger(__name__)

# Glance's default hashing_algorithm. If an image has a digest of another
# algorithm, that digest is computed after the upload, from the same frozen
# disk.
DIGEST_ALGORITHM = 'sha512'

# The errors after which Nova's own client retries, the error of a proxy in
# front of Glance while Glance restarts, and errors that python-glanceclient
# does not translate: of TLS, of a response that breaks off, and of Keystone.
CONNECTION_ERRORS = (
    glanceclient.exc.HTTPBadGateway,
    glanceclient.exc.HTTPServiceUnavailable,
    glanceclient.exc.InvalidEndpoint,
    glanceclient.exc.CommunicationError,
    ks_exceptions.ConnectionError,
    ks_exceptions.DiscoveryFailure,
    ks_exceptions.HttpServerError,
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


@dataclasses.dataclass(frozen=True)
class Metadata:
    """Metadata of an image that is known when the disk is frozen.

    :ivar attributes: those that the image's data depends on
    :ivar informing: properties that describe the data, see
        :meth:`GlanceImage.set_metadata`
    :ivar seen: the image as Glance has returned it last; None: not known
    """

    attributes: dict[str, ty.Any]
    informing: Mapping[str, str | None]
    seen: dict[str, ty.Any] | None = None


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
    :ivar seen: the image as Glance has returned it after the last change of
        its metadata; None: not known
    """

    def __init__(self, context: nova_context.RequestContext, image_id: str,
                 token: cancel.CancelToken,
                 on_progress: body.OnProgress | None = None):
        self._context = context
        self._image_id = image_id
        self._token = token
        self._on_progress = on_progress or (lambda _sent, _size: None)
        self._client = image_client.ImageClient(token, image_id)
        self.seen: dict[str, ty.Any] | None = None
        self._sent_digest: str | None = None
        self._has_expired = False
        self._has_logged_in_again = False

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections to Glance."""
        self._client.close()

    def set_metadata(self, attributes: dict[str, ty.Any],
                     informing: Mapping[str, str | None]) -> frozenset[str]:
        """Set attributes of the image, and keep all others.

        Glance refuses a request as a whole: because of its quota of
        properties (413), its property protections or policies (403), or its
        schema (400). What is left out then is only what informs.

        :param attributes: values by name, in the form of Nova's image API:
            its ``properties`` may be a dictionary of their own, read-only
            attributes are left out
        :param informing: values of properties that only inform, by name;
            None: the image must not have the property
        :returns: names of those that Glance refused; a warning has the reason
        :raises GlanceRefused: Glance refuses the attributes, and would refuse
            them of Nova's own snapshot
        :raises ImageNotFound: the image was deleted
        :raises GlanceConnectionFailed: all of Nova's attempts failed
        """
        required = glance._translate_to_glance(attributes)
        # Nova's image service ignores it too.
        required.pop('id', None)
        try:
            self._change(required, informing)
            return frozenset()
        except glanceclient.exc.HTTPException as error:
            self._log_refusal(informing, error)
        # A property that is removed makes room for one that must be set.
        removals = {name: None for name, value in informing.items()
                    if value is None}
        try:
            self._change(required, removals)
        except glanceclient.exc.HTTPException as error:
            self._log_refusal(removals, error)
            try:
                self._change(required, {})
            except glanceclient.exc.HTTPException as refusal:
                raise self._refused(refusal) from refusal
        return self._inform(informing)

    def update_metadata(self, metadata: Metadata) -> None:
        """Set attributes again that :meth:`set_metadata` has set before.

        Nothing that happens to those that only inform is an error.

        :raises GlanceRefused: somebody else has changed the attributes that
            the data depends on, and Glance refuses to change them back
        :raises ImageNotFound: the image was deleted
        """
        self.seen = metadata.seen
        try:
            self.set_metadata(metadata.attributes, metadata.informing)
        except (nova_exception.ImageNotFound, exception.GlanceRefused):
            raise
        except CLIENT_ERRORS as error:
            self._token.raise_if_cancelled()
            LOG.warning('The properties %(names)s of image %(image)s could '
                        'not be set: %(error)s. They only inform, and the '
                        'snapshot goes on',
                        {'names': ', '.join(metadata.informing),
                         'image': self._image_id, 'error': error})

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
            if not self._has_arrived():
                raise self._unreachable(error) from error
        except glanceclient.exc.HTTPException as error:
            self._raise_if_deleted()
            raise self._refused(error) from error

    def verify(self, encoder: encode.Encoder) -> None:
        """Compare the image in Glance with the data that was sent.

        :param encoder: is read again if Glance's digest is of an algorithm
            other than DIGEST_ALGORITHM, or if no digest was computed
        :raises ImageMismatch: they differ
        :raises ImageNotVerified: Glance does not return the digest
        :raises GlanceConnectionFailed: Glance does not respond
        :raises ImageNotFound: the image was deleted
        """
        # After other errors, Nova's client has made its own attempts.
        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(CONNECTION_ERRORS),
            stop=tenacity.stop_after_attempt(2),
            wait=tenacity.wait_fixed(FIRST_RETRY_INTERVAL),
            sleep=self._token.wait, reraise=True)
        with self._errors_translated():
            try:
                stored = attempts(self._stored)
            except CONNECTION_ERRORS as error:
                raise self._unreachable(error) from error
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

    def _inform(self, informing: Mapping[str, str | None]) -> frozenset[str]:
        """Change properties one by one, and warn of those that can't be.

        :returns: names of the properties that Glance refused to change
        """
        reasons, refused, kept = [], [], []
        for name, value in informing.items():
            reason = self._refusal(name, value)
            if reason is None:
                continue
            reasons.append(reason)
            refused.append(name)
            # The guest may have been booted from an image with that property,
            # which is then of the snapshot in that image.
            if value is None or self._refusal(name, None) is not None:
                kept.append(name)
        if refused:
            LOG.warning(
                'Glance refused properties of image %(image)s: %(reasons)s. '
                'They only inform, and the snapshot goes on. Left out: '
                '%(left_out)s. Kept, with values that are not of this '
                'snapshot: %(kept)s. To have them set, raise '
                'image_property_quota of Glance, or allow them in its '
                'property protections',
                {'image': self._image_id,
                 'reasons': '; '.join(dict.fromkeys(reasons)),
                 'left_out': _listed(
                     name for name in refused if name not in kept),
                 'kept': _listed(kept)})
        return frozenset(refused)

    def _refusal(self, name: str, value: str | None) -> str | None:
        """Set or remove one property.

        :returns: why Glance refuses it; None if it does not
        """
        try:
            self._change({}, {name: value})
        except glanceclient.exc.HTTPException as error:
            return _reason(error)
        return None

    def _change(self, required: dict[str, ty.Any],
                informing: Mapping[str, str | None]) -> None:
        """Make one request that sets and removes attributes.

        :raises HTTPException: glanceclient's, if Glance refuses one of them;
            nothing is changed
        :raises ImageNotFound: the image was deleted
        """
        values = {name: value for name, value in informing.items()
                  if value is not None}
        try:
            seen, self.seen = self.seen, None
            names, self.seen = self._client.update(
                self._context, required | values,
                [name for name in informing if name not in values], seen)
        except glanceclient.exc.HTTPNotFound as error:
            raise nova_exception.ImageNotFound(
                image_id=self._image_id) from error
        except glanceclient.exc.HTTPException as error:
            if not str(error.code).startswith('4'):
                # Glance, or a proxy before it, has failed.
                raise nova_exception.GlanceConnectionFailed(
                    server=self._client.api_server,
                    reason=_reason(error)) from error
            raise
        LOG.debug('Attributes of image %(image)s set or removed: %(names)s',
                  {'image': self._image_id, 'names': ', '.join(names)})

    def _refused(self, error: glanceclient.exc.HTTPException,
                 ) -> exception.GlanceRefused:
        return exception.GlanceRefused(
            server=self._client.api_server, image=self._image_id,
            reason=_reason(error), user_reason=refusal.for_users(
                error.code, error.details))

    def _unreachable(self, error: Exception,
                     ) -> nova_exception.GlanceConnectionFailed:
        self._token.raise_if_cancelled()
        return nova_exception.GlanceConnectionFailed(
            server=self._client.api_server, reason=str(error))

    def _log_refusal(self, informing: Mapping[str, str | None],
                     error: glanceclient.exc.HTTPException) -> None:
        LOG.debug('Glance refused the attributes of image %(image)s together '
                  'with %(names)s: %(reason)s',
                  {'image': self._image_id, 'names': _listed(informing),
                   'reason': _reason(error)})

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
            self._sent_digest = None
            try:
                client.snapext_image.upload(data, encoder.size)
            except glanceclient.exc.HTTPUnauthorized as error:
                if self._log_in_again(client):
                    raise glanceclient.exc.CommunicationError(
                        message=str(error)) from error
                raise
            finally:
                # The image may be complete without an answer.
                if data.is_sent:
                    self._sent_digest = digest.hexdigest()

    def _log_in_again(self, client: ty.Any) -> bool:
        """Forget the service token that Glance has refused, but only once.

        :returns: whether another attempt will have a new one
        """
        if self._has_logged_in_again:
            return False
        self._has_logged_in_again = True
        return bool(client.http_client.invalidate())

    def _has_arrived(self) -> bool:
        """Return whether the last attempt made the image active.

        It can't have before its last byte was sent, and nothing waits then.

        :raises ImageNotFound: the image was deleted
        """
        if self._sent_digest is None:
            return False
        try:
            return self._wait_until_reset() == 'active'
        except glanceclient.exc.HTTPNotFound as error:
            raise nova_exception.ImageNotFound(
                image_id=self._image_id) from error
        except (*CONNECTION_ERRORS, *CLIENT_ERRORS) as error:
            self._token.raise_if_cancelled()
            LOG.debug('It is not known whether image %(image)s has arrived: '
                      '%(error)s', {'image': self._image_id, 'error': error})
            return False

    def _wait_until_reset(self) -> str:
        """Wait until Glance has noticed the end of the last attempt.

        :returns: the image's status, ``queued`` or ``active``
        :raises ImageUnacceptable: Glance does not accept another attempt
        :raises ImageNotVerified: Glance does not return the status
        """
        poll = tenacity.Retrying(
            retry=tenacity.retry_if_result(lambda status: status == 'saving'),
            stop=tenacity.stop_after_delay(CONF.snapext.glance_reset_timeout),
            wait=tenacity.wait_fixed(FIRST_RETRY_INTERVAL),
            sleep=self._token.wait,
            retry_error_callback=lambda _state: 'saving')
        status: str = poll(lambda: self._stored()['status'])
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

        :raises ImageNotVerified: Glance refuses that request
        :raises GlanceConnectionFailed: all of Nova's attempts failed
        """
        try:
            if not self._has_expired:
                return self._client.get(self._context)
        except glanceclient.exc.HTTPUnauthorized as error:
            self._has_expired = True
            LOG.info('Glance no longer accepts the token of the user who '
                     'requested the snapshot (%(error)s). Image %(image)s is '
                     'verified as [service_user]',
                     {'error': error, 'image': self._image_id})
        try:
            return self._client.get(self._client.service_context())
        except (*CONNECTION_ERRORS, nova_exception.GlanceConnectionFailed):
            raise
        except CLIENT_ERRORS as error:
            self._token.raise_if_cancelled()
            # A 404 does not prove a deletion here: Nova's user may only not
            # be allowed to see the image.
            raise exception.ImageNotVerified(
                image=self._image_id, reason=str(error)) from error

    def _log_retry(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        LOG.warning('The upload of image %(image)s to Glance at %(server)s '
                    'was interrupted, and is retried from its first byte: '
                    '%(error)s',
                    {'image': self._image_id,
                     'server': self._client.api_server, 'error': error})
        # It keeps the buffers of this attempt.
        exception.free_frames(error)


def upload(context: nova_context.RequestContext, image_id: str,
           metadata: Metadata, encoder: encode.Encoder,
           token: cancel.CancelToken, on_progress: body.OnProgress) -> None:
    """Upload an image to Glance, and verify what Glance stored.

    After an error, discard() the image: it may look complete.

    :param metadata: the image keeps all other attributes and properties
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
        image.update_metadata(metadata)
        image.send(encoder)
        image.verify(encoder)


def _reason(error: glanceclient.exc.HTTPException) -> str:
    """Return the text of a refusal, on one line."""
    return f'{refusal.one_line(error.details)} (HTTP {error.code})'


def _listed(names: Iterable[str]) -> str:
    return ', '.join(names) or 'none'


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
