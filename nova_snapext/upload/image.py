# SPDX-License-Identifier: Apache-2.0
"""An image that is not whole yet, and must not stay."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import functools
import typing as ty

import glanceclient.exc
from keystoneauth1 import exceptions as keystone
from nova import context as nova_context
from nova import exception as nova_exception
from nova.image import glance
from nova.virt.libvirt import driver as libvirt_driver
from oslo_log import log as logging

from nova_snapext import journal
from nova_snapext import plan as planning

LOG = logging.getLogger(__name__)

DELETE_ERRORS = (nova_exception.NovaException, keystone.ClientException,
                 glanceclient.exc.BaseException)


class UnfinishedImage(journal.Resource):
    """The image of a snapshot, until all of it has arrived and was compared.

    As one whose snapshot has failed it is deleted, which is what Nova's
    manager does with most of them.
    """

    kind = 'image'

    def __init__(self, image_api: glance.API, plan: planning.Plan):
        self._image_api = image_api
        self._plan = plan

    def record(self) -> dict[str, ty.Any]:
        return {}

    @classmethod
    def restore(cls, driver: libvirt_driver.LibvirtDriver,
                plan: planning.Plan,
                record: dict[str, ty.Any]) -> UnfinishedImage:
        return cls(driver._image_api, plan)

    def release(self) -> None:
        """Delete it, if it is there.

        As whoever asked for it; where that is nobody any more, as Nova's
        service user.

        :raises NovaException: Glance does not do it
        """
        context = self._plan.context
        if context is None or context.auth_token is None:
            context = nova_context.get_nova_service_user_context()
        try:
            self._image_api.delete(context, self._plan.image_id)
        except nova_exception.ImageNotFound:
            return

    def __str__(self) -> str:
        return f'the image {self._plan.image_id}'


@contextlib.contextmanager
def unfinished(
    image_api: glance.API, plan: planning.Plan, strategy: str,
) -> Iterator[tuple[journal.Entry, Callable[[], None]]]:
    """Have the image deleted on leaving, unless it is finished by then.

    :yields: the snapshot's entry in the journal, and a function that tells
        that the image is finished
    :raises SnapshotOutstanding: the instance has an entry already
    :raises OSError: the journal can't be written
    """
    image = UnfinishedImage(image_api, plan)
    # There is no moment at which the journal does not have it.
    with journal.opened(plan, strategy, image) as entry:
        [record] = entry.records
        try:
            yield entry, functools.partial(entry.forget, record)
        finally:
            if record in entry.records:
                _give_up(image, plan, functools.partial(entry.forget, record))


def _give_up(image: UnfinishedImage, plan: planning.Plan,
             forget: Callable[[], None]) -> None:
    try:
        image.release()
        forget()
    except DELETE_ERRORS as error:
        # Why the snapshot has failed is the better reason to tell.
        LOG.warning('%(image)s of a snapshot that has failed could not be '
                    'deleted, which is tried again later: %(error)s',
                    {'image': image, 'error': error}, instance=plan.instance)
