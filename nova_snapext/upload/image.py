# SPDX-License-Identifier: Apache-2.0
"""An image that is not whole yet, and must not stay."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import functools
import typing as ty

from nova import exception as nova_exception
from nova.image import glance as nova_glance
from nova.virt.libvirt import driver as libvirt_driver
from oslo_log import log as logging

from nova_snapext import exception
from nova_snapext import journal
from nova_snapext import plan as planning
from nova_snapext.upload import glance

LOG = logging.getLogger(__name__)


class UnfinishedImage(journal.Resource):
    """The image of a snapshot, until all of it has arrived and was compared.

    As one whose snapshot has failed it is deleted, which is what Nova's
    manager does with most of them.
    """

    kind = 'image'

    def __init__(self, image_api: nova_glance.API, plan: planning.Plan):
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

        :raises ImageLeft: it can't be deleted
        """
        self.delete('nova-compute did not live to its end')

    def delete(self, failure: str) -> None:
        """Delete it, if it is there.

        :param failure: why its snapshot has failed
        :raises ImageLeft: it can't be deleted
        """
        reason = glance.discard(
            self._plan.context, self._image_api, self._plan.image_id)
        if reason is not None:
            raise exception.ImageLeft(
                failure=failure, image=self._plan.image_id, reason=reason)

    def __str__(self) -> str:
        return f'the image {self._plan.image_id}'


@contextlib.contextmanager
def unfinished(
    image_api: nova_glance.API, plan: planning.Plan, strategy: str,
) -> Iterator[tuple[journal.Entry, Callable[[], None]]]:
    """Have the image deleted on leaving, unless it is finished by then.

    :yields: the snapshot's entry in the journal, and a function that tells
        that the image is finished
    :raises SnapshotOutstanding: the instance has an entry already
    :raises JournalFailed: the journal can't be written
    :raises ImageLeft: on leaving by an error, which it tells: the image could
        not be deleted; it is in the journal still
    """
    image = UnfinishedImage(image_api, plan)
    # There is no moment at which the journal does not have it.
    with journal.opened(plan, strategy, image) as entry:
        [record] = entry.records
        finished = functools.partial(entry.forget, record)
        try:
            yield entry, finished
        except Exception as failure:
            if record in entry.records:
                _give_up(image, failure, finished)
            raise


def _give_up(image: UnfinishedImage, failure: Exception,
             finished: Callable[[], None]) -> None:
    """Delete the image of a snapshot that has failed.

    :raises ImageLeft: it could not be deleted
    """
    try:
        if not isinstance(failure, nova_exception.ImageNotFound):
            image.delete(str(failure))
        finished()
    except exception.ImageLeft as left:
        if not isinstance(failure, exception.GONE):
            raise left from failure
        # Nova's manager looks for what has failed. The journal still has it.
        LOG.error('%s', left)
