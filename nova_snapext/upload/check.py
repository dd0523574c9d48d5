# SPDX-License-Identifier: Apache-2.0
"""The check that cancels a snapshot when its image is deleted."""

from __future__ import annotations

import glanceclient.exc
from nova import context as nova_context
from nova import exception as nova_exception

from nova_snapext import cancel
from nova_snapext import checks
from nova_snapext.upload import client


class ImageDeletedCheck(checks.Check):
    """Checks whether the image is deleted: so users cancel a snapshot.

    Once the user's token has expired, Nova's service user is asked.

    :param context: of a user who may see the image; None: not known
    :param seen_by_nova: the service user has seen the image, see
        is_seen_by_nova()
    """

    def __init__(self, context: nova_context.RequestContext | None,
                 image_id: str, seen_by_nova: bool = False):
        self._context = context
        self._expired: glanceclient.exc.HTTPUnauthorized | None = None
        if context is None:
            self._expired = glanceclient.exc.HTTPUnauthorized(
                'the user is not known')
        self._image_id = image_id
        self._seen_by_nova = seen_by_nova
        self._token = cancel.CancelToken()
        self._client = client.ImageClient(self._token, image_id)

    def run(self) -> nova_exception.ImageNotFound | None:
        if self._expired is None:
            try:
                return self._find_deletion(self._context)
            except glanceclient.exc.HTTPUnauthorized as error:
                # A new one, as that would keep its frames.
                self._expired = glanceclient.exc.HTTPUnauthorized(
                    error.details)
        deleted = self._find_deletion(self._client.service_context())
        if deleted is not None and not self._seen_by_nova:
            # This user may only not be allowed to see the image.
            raise self._expired
        self._seen_by_nova = True
        return deleted

    def _find_deletion(self, context: nova_context.RequestContext | None,
                       ) -> nova_exception.ImageNotFound | None:
        # Nova's client would retry by itself, and log each attempt.
        image = self._client.connect(context).snapext_image
        try:
            image.get()
        except glanceclient.exc.HTTPNotFound:
            return self._deleted()
        return None

    def close(self) -> None:
        self._token.cancel(self._deleted())
        self._client.close()

    def _deleted(self) -> nova_exception.ImageNotFound:
        return nova_exception.ImageNotFound(image_id=self._image_id)
