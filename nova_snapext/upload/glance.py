# SPDX-License-Identifier: Apache-2.0
"""Sending an image through Nova's image API, and comparing what arrived."""

from __future__ import annotations

from collections.abc import Iterable
import contextlib
import functools
import hashlib
import inspect
import json
import typing as ty

import glanceclient.exc
from keystoneauth1 import exceptions as ks_exceptions
from nova import context as nova_context
from nova import exception as nova_exception
from nova.image import glance
from oslo_log import log as logging
import tenacity

from nova_snapext import abort
from nova_snapext import conf
from nova_snapext import encode
from nova_snapext import exception
from nova_snapext import monitor
from nova_snapext.upload import body
from nova_snapext.upload import connection

CONF = conf.CONF
LOG = logging.getLogger(__name__)

# Glance's default hashing_algorithm. Where an image shows another one, it is
# computed when the upload is over, from the same frozen disk.
DIGEST_ALGORITHM = 'sha512'

# What Nova's own client tries again after, and what a proxy before Glance says
# while that is restarted.
CONNECTION_ERRORS = (
    glanceclient.exc.HTTPBadGateway,
    glanceclient.exc.HTTPServiceUnavailable,
    glanceclient.exc.InvalidEndpoint,
    glanceclient.exc.CommunicationError,
    IOError,
)

# What asking Glance, or Keystone for a token, fails with.
CLIENT_ERRORS = (
    glanceclient.exc.BaseException,
    glanceclient.exc.HTTPException,
    ks_exceptions.ClientException,
    nova_exception.NovaException,
)

# Seconds between two attempts, doubled each time.
FIRST_PAUSE, LONGEST_PAUSE = 1, 30


class StreamingClient(connection.AbortableClient):
    """Nova's Glance client, whose uploads begin at byte 0 at each attempt.

    Nova's own tries again with the same, half-read file; and it does not send
    the image's size, which spares stores of several kinds to grow what they
    write to, and lets Glance refuse an image of another size.

    :ivar digest: hexadecimal digest of the image, once an upload has been
        answered
    """

    def __init__(self, switch: abort.Switch, on_sent: body.OnSent):
        super().__init__(switch)
        self.digest: str | None = None
        self._on_sent = on_sent

    def call(self, context: nova_context.RequestContext, version: int,
             method: str, controller: str | None = None,
             args: ty.Any = None, kwargs: ty.Any = None) -> ty.Any:
        if method == 'upload':
            return self._upload(context, version, *args)
        if method == 'get' and self.digest is not None:
            return self._read_back(context, version, *args)
        return super().call(context, version, method, controller=controller,
                            args=args, kwargs=kwargs)

    def _create_onetime_client(self, context: nova_context.RequestContext,
                               version: int) -> ty.Any:
        client = super()._create_onetime_client(context, version)
        client.images.update = functools.partial(_update, client.http_client)
        return client

    def _upload(self, context: nova_context.RequestContext, version: int,
                image_id: str, encoder: encode.Encoder) -> None:
        attempts = tenacity.Retrying(
            # The last, as that is what asking for the image's status fails
            # with while Glance is restarted.
            retry=tenacity.retry_if_exception_type(
                (*CONNECTION_ERRORS, nova_exception.GlanceConnectionFailed)),
            stop=tenacity.stop_after_attempt(1 + CONF.glance.num_retries),
            wait=tenacity.wait_exponential(FIRST_PAUSE, LONGEST_PAUSE),
            sleep=self._switch.pause, before_sleep=self._log_failure,
            reraise=True)
        try:
            for attempt in attempts:
                with attempt:
                    self._attempt(
                        context, version, image_id, encoder,
                        again=attempt.retry_state.attempt_number > 1)
        except CONNECTION_ERRORS as error:
            self._switch.check()
            raise nova_exception.GlanceConnectionFailed(
                server=self.api_server, reason=str(error)) from error
        except glanceclient.exc.HTTPException as error:
            self._check_not_deleted(context, version, image_id)
            raise exception.GlanceRefused(
                server=self.api_server, image=image_id,
                reason=f'{error.details} (HTTP {error.code})') from error

    def _check_not_deleted(self, context: nova_context.RequestContext,
                           version: int, image_id: str) -> None:
        """See whether an upload was refused because its image is gone.

        :raises ImageNotFound: so it is
        """
        try:
            self.call(context, version, 'get', args=(image_id,))
        except glanceclient.exc.HTTPNotFound as error:
            raise nova_exception.ImageNotFound(image_id=image_id) from error
        except CLIENT_ERRORS as error:
            self._switch.check()
            LOG.debug('Image %(image)s can\'t be looked at: %(error)s',
                      {'image': image_id, 'error': error})

    def _read_back(self, context: nova_context.RequestContext, version: int,
                   image_id: str) -> ty.Any:
        """Ask what Glance has stored, if need be as Nova itself.

        :raises ImageNotVerified: that can't be asked
        """
        try:
            return super().call(context, version, 'get', args=(image_id,))
        except glanceclient.exc.HTTPUnauthorized as error:
            LOG.info('Glance does not accept the token any more with which '
                     'the snapshot was asked for (%s): image %s is looked at '
                     'as [service_user]', error, image_id)
        try:
            service = nova_context.get_nova_service_user_context()
            return super().call(service, version, 'get', args=(image_id,))
        except CLIENT_ERRORS as error:
            self._switch.check()
            # Not to be taken for a deletion: it may only not be allowed.
            raise exception.ImageNotVerified(
                image=image_id, reason=str(error)) from error

    def _log_failure(self, state: tenacity.RetryCallState) -> None:
        LOG.warning('The upload to Glance at %(server)s broke off, and '
                    'begins anew: %(error)s',
                    {'server': self.api_server,
                     'error': state.outcome and state.outcome.exception()})

    def _attempt(self, context: nova_context.RequestContext, version: int,
                 image_id: str, encoder: encode.Encoder, again: bool) -> None:
        self._switch.check()
        if again and self._settled(context, version, image_id) == 'active':
            # All had arrived, and only the answer was lost.
            return
        client = self._create_onetime_client(context, version)
        with contextlib.ExitStack() as stack:
            digest = body.Digest(DIGEST_ALGORITHM)
            stack.callback(digest.close)
            stream = stack.enter_context(contextlib.closing(encoder.stream()))
            data = body.Body(
                stream, encoder.expected_size,
                CONF.snapext.upload_piece_size, digest, self._on_sent)
            client.images.upload(
                image_id, data, **_size_argument(client, encoder.size))
            self.digest = digest.hexdigest()

    def _settled(self, context: nova_context.RequestContext, version: int,
                 image_id: str) -> str:
        """Wait until Glance knows that the last attempt is over.

        :returns: the status of the image, ``queued`` or ``active``
        """
        settle = tenacity.Retrying(
            retry=tenacity.retry_if_result(lambda status: status == 'saving'),
            stop=tenacity.stop_after_delay(CONF.snapext.glance_settle_timeout),
            wait=tenacity.wait_fixed(FIRST_PAUSE), sleep=self._switch.pause,
            retry_error_callback=lambda _state: 'saving')
        status = settle(
            lambda: self.call(context, version, 'get',
                              args=(image_id,))['status'])
        if status not in ('queued', 'active'):
            raise nova_exception.ImageUnacceptable(
                image_id=image_id,
                reason=f'after an upload that broke off it is {status!r}, '
                       f'not queued, so that nothing can be sent again')
        return status


def _update(http_client: ty.Any, image_id: str,
            remove_props: Iterable[str] = (), **attributes: ty.Any) -> None:
    """Do what glanceclient's update() does, in two requests instead of five.

    A frozen disk waits for them. It asks for the schema, twice, and for the
    image once more, which nobody looks at before it is uploaded.

    :raises HTTPException: of glanceclient's, as from update()
    """
    url = f'/v2/images/{image_id}'
    _response, image = http_client.get(url)
    changed = {name: value for name, value in attributes.items()
               if name not in image or image[name] != value}
    patch = [{'op': 'add', 'path': _pointer(name), 'value': value}
             for name, value in changed.items()]
    patch += [{'op': 'remove', 'path': _pointer(name)}
              for name in remove_props if name in image]
    http_client.patch(
        url, data=json.dumps(patch),
        headers={'Content-Type':
                 'application/openstack-images-v2.1-json-patch'})


def _pointer(name: str) -> str:
    """Give the JSON pointer to an attribute, see RFC 6901."""
    return '/' + name.replace('~', '~0').replace('/', '~1')


def _size_argument(client: ty.Any, size: int | None) -> dict[str, int]:
    """Give the argument that names the size, where glanceclient has it.

    :param size: in bytes; None where it isn't known yet
    """
    if size is None:
        return {}
    # Since python-glanceclient 4.10; Glance uses it since 31, and older ones
    # leave the header alone.
    if 'image_size' in inspect.signature(client.images.upload).parameters:
        return {'image_size': size}
    return {}


def upload(context: nova_context.RequestContext, image_id: str,
           metadata: dict[str, ty.Any], removed: Iterable[str],
           encoder: encode.Encoder, switch: abort.Switch,
           on_sent: body.OnSent) -> None:
    """Send an image to Glance, and compare what Glance stored.

    When it fails, :func:`discard` the image: it may look whole.

    :param encoder: the image; read from byte 0 at each attempt
    :param metadata: what Nova says of the image; what the image has already
        is kept
    :param removed: properties that are taken off the image, if it has them
    :param switch: when it trips, the upload ends at once with its cause
    :param on_sent: called with the bytes sent so far, and those in all
    :raises ImageMismatch: something else arrived
    :raises ImageNotVerified: Glance does not tell what arrived
    :raises ImageNotFound: the image was deleted
    :raises GlanceRefused: Glance does not want the image
    :raises GlanceConnectionFailed: all attempts broke off
    """
    client = StreamingClient(switch, on_sent)
    service = glance.GlanceImageServiceV2(client=client)
    with contextlib.closing(client):
        # Nova hands what it does not know on to the client's update().
        stored = service.update(
            context, image_id, {**metadata, 'remove_props': list(removed)},
            data=encoder, purge_props=False)
        mismatch = _mismatch(stored, encoder, client.digest)
    if mismatch:
        raise exception.ImageMismatch(image=image_id, reason=mismatch)


def discard(context: nova_context.RequestContext, image_api: glance.API,
            image_id: str) -> str | None:
    """Delete the image of a snapshot that failed, if need be as Nova itself.

    Nova's manager does not do it in any case: shelve keeps the image, and
    where the user's token has expired it can't.

    :param context: of the snapshot's user; one without a token: nobody's
    :returns: why it could not be deleted; None if it is gone
    """
    if context is None or context.auth_token is None:
        return _discard_as_nova(image_api, image_id, gone=True)
    try:
        image_api.delete(context, image_id)
        return None
    except nova_exception.ImageNotFound:
        return None
    except (nova_exception.ImageNotAuthorized,
            glanceclient.exc.HTTPUnauthorized):
        LOG.info('The snapshot\'s user may not delete its image %s any more: '
                 'it is deleted as [service_user]', image_id)
    except CLIENT_ERRORS as error:
        return str(error)
    # Which may be told that there is none because it may not see it.
    return _discard_as_nova(image_api, image_id, gone=False)


def _discard_as_nova(image_api: glance.API, image_id: str,
                     gone: bool) -> str | None:
    """Delete an image as [service_user].

    :param gone: whether one that is not found is taken for deleted
    """
    try:
        image_api.delete(
            nova_context.get_nova_service_user_context(), image_id)
        return None
    except nova_exception.ImageNotFound as error:
        return None if gone else str(error)
    except CLIENT_ERRORS as error:
        return str(error)


class ImageLook(monitor.Look):
    """Looks whether the image was deleted, as a user does who cancels."""

    def __init__(self, context: nova_context.RequestContext, image_id: str):
        self._context = context
        self._image_id = image_id
        self._switch = abort.Switch()
        self._client = connection.AbortableClient(self._switch)

    def __call__(self) -> nova_exception.ImageNotFound | None:
        # By no call() of Nova's, which tries again by itself, and tells of
        # each time. Nor by the client's images: these ask for a schema first,
        # and hold a lock meanwhile that all images of a process share. Under
        # eventlet the greenlets of two native threads can't wait for one.
        client = self._client._create_onetime_client(self._context, 2)
        try:
            client.http_client.get(f'/v2/images/{self._image_id}')
        except glanceclient.exc.HTTPNotFound:
            return nova_exception.ImageNotFound(image_id=self._image_id)
        return None

    def close(self) -> None:
        self._switch.trip(nova_exception.ImageNotFound(
            image_id=self._image_id))
        self._client.close()


def _mismatch(stored: dict[str, ty.Any], encoder: encode.Encoder,
              sent_digest: str | None) -> str | None:
    """Say in what an image in Glance differs from what was sent."""
    if stored['status'] != 'active':
        return f'its status is {stored["status"]}'
    if stored['size'] != encoder.size:
        return f'{stored["size"]} bytes, not {encoder.size}'
    algorithm = stored.get('os_hash_algo') or 'md5'
    digest = stored.get('os_hash_value') or stored.get('checksum')
    if algorithm not in hashlib.algorithms_available:
        return f'its digest is made by {algorithm}, which is unknown here'
    if sent_digest is None or algorithm != DIGEST_ALGORITHM:
        sent_digest = _digest(encoder, algorithm)
    if digest != sent_digest:
        return f'its {algorithm} digest is {digest}, not {sent_digest}'
    return None


def _digest(encoder: encode.Encoder, algorithm: str) -> str:
    """Read the image once more, for a digest that Glance shows."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    for buffer in encoder.stream():
        digest.update(buffer)
    return digest.hexdigest()
