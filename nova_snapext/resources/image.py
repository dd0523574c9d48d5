# SPDX-License-Identifier: Apache-2.0
"""An image that is not complete yet, and must be deleted after an error."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import typing as ty

from nova import exception as nova_exception
from nova.image import glance
from nova.virt.libvirt import driver as libvirt_driver
from oslo_log import log as logging

from nova_snapext import exception
from nova_snapext import journal
from nova_snapext import plan as planning
from nova_snapext import upload

LOG = logging.getLogger(__name__)


class IncompleteImage(journal.Resource):
    """The image of a snapshot, until all of it is uploaded and verified.

    If the snapshot fails, the image is deleted. Nova's manager does the same
    in most cases.
    """

    kind = 'image'

    def __init__(self, image_api: glance.API, target: planning.Target):
        self._image_api = image_api
        self._target = target

    def record(self) -> dict[str, ty.Any]:
        return {}

    @classmethod
    def restore(cls, driver: libvirt_driver.LibvirtDriver,
                target: planning.Target,
                record: dict[str, ty.Any]) -> IncompleteImage:
        return cls(driver._image_api, target)

    def release(self) -> None:
        """Delete the image, if it exists, after a crash.

        As the user who requested the snapshot, or as Nova's service user if
        that user is not known any more.

        :raises IncompleteImageLeft: it can't be deleted
        """
        self.delete('nova-compute stopped before the snapshot was complete')

    def delete(self, failure: str) -> None:
        """Delete the image, if it exists.

        :param failure: why its snapshot failed
        :raises IncompleteImageLeft: it can't be deleted
        """
        reason = upload.discard(
            self._target.context, self._image_api, self._target.image_id)
        if reason is not None:
            raise exception.IncompleteImageLeft(
                failure=failure, image=self._target.image_id, reason=reason)

    def __str__(self) -> str:
        return f'the image {self._target.image_id}'


@contextlib.contextmanager
def incomplete_image(
    image_api: glance.API, plan: planning.Plan, strategy: str,
) -> Iterator[tuple[journal.JournalEntry, Callable[[], None]]]:
    """Delete the image if the context ends with an error before completion.

    :param strategy: name of the snapshot's strategy
    :yields: the snapshot's journal entry, and a function that marks the image
        as complete
    :raises SnapshotInProgress: the instance already has an entry
    :raises JournalFailed: the journal can't be written
    :raises IncompleteImageLeft: the snapshot failed, and its image could not
        be deleted; the journal keeps the image
    """
    image = IncompleteImage(image_api, plan)
    # The entry contains the image from its first write on.
    with journal.new_entry(plan, strategy, image) as entry:
        [record] = entry.records

        def mark_complete() -> None:
            LOG.debug('Image %s no longer has to be deleted if the snapshot '
                      'fails', plan.image_id, instance=plan.instance)
            entry.remove(record)

        try:
            yield entry, mark_complete
        except Exception as failure:
            if record in entry.records and _is_deleted(image, failure):
                entry.remove(record)
            raise


def _is_deleted(image: IncompleteImage, failure: Exception) -> bool:
    """Delete the image of a failed snapshot.

    :returns: whether the image is gone
    :raises IncompleteImageLeft: it could not be deleted, and Nova would
        report the failure to the user
    """
    if isinstance(failure, nova_exception.ImageNotFound):
        return True
    try:
        image.delete(str(failure))
    except exception.IncompleteImageLeft as left:
        if not isinstance(failure, exception.GONE):
            raise left from failure
        # Nova's manager expects the failure itself. The journal keeps the
        # image.
        LOG.error('%s', left)
        return False
    return True
