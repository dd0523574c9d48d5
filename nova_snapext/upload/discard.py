# SPDX-License-Identifier: Apache-2.0
"""Delete the image of a snapshot that failed."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import threading

import glanceclient.exc
from nova import context as nova_context
from nova import exception as nova_exception
from oslo_log import log as logging

from nova_snapext import cancel
from nova_snapext import conf
from nova_snapext.upload import client as image_client
from nova_snapext.upload import glance
from nova_snapext.upload import location
from nova_snapext.upload import refusal

CONF = conf.CONF
LOG = logging.getLogger(__name__)

# Seconds that Keystone and Glance may take to tell what only informs.
SEEN_TIMEOUT = 10

HASHED_NOW = ('Glance reads it for its digest, and would save it again, '
              'without its data, if it were deleted now')


def discard(context: nova_context.RequestContext | None,
            image_id: str,
            seen_by_nova: bool = False) -> str | None:
    """Delete the image of a failed snapshot, as Nova's user if necessary.

    Nova's manager does not always delete it: shelve keeps the image, and the
    user's token may have expired.

    Nova's own client would wait for Glance and Keystone without a limit. This
    takes [snapext]upload_stall_timeout at most.

    :param context: of a user of the project that owns the image; None, or
        one without a token, if that is not known
    :param seen_by_nova: Nova's service user may see the image, see
        is_seen_by_nova()
    :returns: why the image could not be deleted; None if it is gone
    """
    with _limited_client(image_id) as client:
        return _discard(context, client, image_id, seen_by_nova)


@contextlib.contextmanager
def _limited_client(image_id: str) -> Iterator[image_client.ImageClient]:
    """Return a client whose requests together have one time limit."""
    token = cancel.CancelToken()
    seconds = CONF.snapext.upload_stall_timeout
    client = image_client.ImageClient(token, image_id)

    def give_up() -> None:
        token.cancel(nova_exception.GlanceConnectionFailed(
            server=getattr(client, 'api_server', '(not known)'),
            reason=f'no answer within {seconds} seconds'))

    # A native thread, as the caller may be in any thread under eventlet.
    timer = cancel.native_threading().Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield client
    finally:
        timer.cancel()
        client.close()


def _discard(context: nova_context.RequestContext | None,
             client: image_client.ImageClient, image_id: str,
             seen_by_nova: bool) -> str | None:
    """Delete an image as the user, or as [service_user].

    :returns: why it could not be deleted; None if it is gone
    """
    if context is not None and context.auth_token is not None:
        if _is_hashed_now(context, client, image_id):
            return HASHED_NOW
        try:
            client.delete(context)
            LOG.debug('Image %s discarded', image_id)
            return None
        except glanceclient.exc.HTTPNotFound:
            LOG.debug('Image %s is already deleted', image_id)
            return None
        except (glanceclient.exc.HTTPForbidden,
                glanceclient.exc.HTTPUnauthorized) as error:
            if _is_protected(context, client, image_id):
                return _protected(image_id)
            LOG.info('The user who requested the snapshot may no longer '
                     'delete its image %(image)s (%(error)s). It is deleted '
                     'as [service_user]',
                     {'image': image_id, 'error': error})
        except glance.CLIENT_ERRORS as error:
            return refusal.one_line(error)
    return _discard_as_nova(client, image_id, seen_by_nova)


def is_seen_by_nova(image_id: str) -> bool:
    """Return whether Nova's service user may see an image.

    Only then a 404 that this user gets later proves that the image is
    deleted: Glance answers the same for an image that a user may not see.
    """
    return look_as_nova(image_id)()


def look_as_nova(image_id: str) -> Callable[[], bool]:
    """Ask in the background whether Nova's service user may see an image.

    :returns: a function that waits for the answer, see is_seen_by_nova()
    """
    if not CONF.service_user.auth_type:
        return lambda: False
    seen: list[bool] = []
    # Nothing depends on it yet, and Keystone may never answer.
    thread = threading.Thread(
        target=lambda: seen.append(_sees_as_nova(image_id)),
        name='snapext-service-user', daemon=True)
    thread.start()

    def is_seen() -> bool:
        thread.join(SEEN_TIMEOUT)
        return seen == [True]

    return is_seen


def _sees_as_nova(image_id: str) -> bool:
    try:
        with _limited_client(image_id) as client:
            _get(client.service_context(), client)
    except Exception as error:
        LOG.debug('Nova\'s service user does not see image %(image)s: '
                  '%(error)s', {'image': image_id, 'error': error})
        return False
    return True


def _discard_as_nova(client: image_client.ImageClient, image_id: str,
                     seen_by_nova: bool) -> str | None:
    """Delete an image as [service_user].

    :returns: why it could not be deleted; None if it is gone
    """
    try:
        context = client.service_context()
        if _is_hashed_now(context, client, image_id):
            return HASHED_NOW
        client.delete(context)
        LOG.debug('Image %s discarded as [service_user]', image_id)
        return None
    except glanceclient.exc.HTTPNotFound:
        if seen_by_nova:
            LOG.debug('Image %s is already deleted', image_id)
            return None
        return (f'Nova\'s service user does not find image {image_id}, and '
                f'may only not be allowed to see it')
    except glanceclient.exc.HTTPForbidden as error:
        return (_protected(image_id)
                if _is_protected(context, client, image_id)
                else refusal.one_line(error))
    except glance.CLIENT_ERRORS as error:
        return refusal.one_line(error)


def _is_protected(context: nova_context.RequestContext,
                  client: image_client.ImageClient, image_id: str) -> bool:
    """Return whether Glance refuses a deletion because of this attribute.

    It answers 403, as to a user without permission.
    """
    try:
        return bool(_get(context, client).get('protected'))
    except Exception as error:
        LOG.debug('Could not ask why image %(image)s can\'t be deleted: '
                  '%(error)s', {'image': image_id, 'error': error})
        return False


def _protected(image_id: str) -> str:
    return (f'it is protected. Run "openstack image set --unprotected '
            f'{image_id}"')


def _is_hashed_now(context: nova_context.RequestContext,
                   client: image_client.ImageClient, image_id: str) -> bool:
    """Return whether Glance reads the image now, see location.is_hashed_now().

    :returns: False if Glance does not tell
    """
    try:
        return location.is_hashed_now(client.connect(context).snapext_image)
    except Exception as error:
        LOG.debug('Could not ask whether image %(image)s is being read: '
                  '%(error)s', {'image': image_id, 'error': error})
        return False


def _get(context: nova_context.RequestContext,
         client: image_client.ImageClient) -> dict[str, object]:
    """Return an image, by one attempt.

    Nova's own function leaves ``protected`` out. It also hides private images
    from a context without a token, as Nova's service user has.
    """
    image: dict[str, object] = client.connect(context).snapext_image.get()
    return image
