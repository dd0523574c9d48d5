# SPDX-License-Identifier: Apache-2.0
"""An image that is not complete yet, and must be deleted after an error."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
import contextlib

from nova import context as nova_context
from nova import exception as nova_exception
from oslo_log import log as logging

from nova_snapext import exception
from nova_snapext import journal
from nova_snapext import plan as planning
from nova_snapext import upload

LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def incomplete_image(
    plan: planning.Plan, strategy: str, seen_by_nova: bool,
) -> Iterator[tuple[journal.JournalEntry, Callable[[], None]]]:
    """Delete the image if the context ends with an error before completion.

    Nova's manager does the same in most cases.

    :param strategy: name of the snapshot's strategy
    :param seen_by_nova: see :func:`upload.is_seen_by_nova`
    :yields: the snapshot's journal entry, and a function that marks the image
        as complete; it may be called again
    :raises SnapshotInProgress: the instance already has an entry
    :raises JournalFailed: the journal can't be written
    :raises IncompleteImageLeft: the snapshot failed, and its image could not
        be deleted; the journal keeps the image, and excludes no other
        snapshot
    """
    is_complete = False

    def mark_complete() -> None:
        nonlocal is_complete
        if is_complete:
            return
        is_complete = True
        image.remove()
        LOG.debug('Image %s no longer has to be deleted if the snapshot '
                  'fails', plan.image_id, instance=plan.instance)

    with journal.new_image(plan, strategy, seen_by_nova) as image:
        try:
            with journal.new_entry(plan, strategy) as entry:
                yield entry, mark_complete
        except Exception as failure:
            if not is_complete:
                _delete_failed(plan, image, failure)
            raise


def delete(image: journal.ImageEntry,
           context: nova_context.RequestContext | None) -> None:
    """Delete an image, and its journal entry.

    :param context: of the user who requested the snapshot, or of one of the
        same project; None: Nova's service user deletes it
    :raises UnexpectedState: it can't be deleted; the journal keeps it
    """
    if not image.seen_by_nova and upload.is_seen_by_nova(image.image_id):
        image.seen_by_nova = True
        image.save()
    reason = upload.discard(
        context, image.image_id, image.seen_by_nova)
    if reason is not None:
        if reason != image.reason:
            image.reason = reason
            image.save()
        raise exception.UnexpectedState(reason=reason)
    image.remove()


def _delete_failed(plan: planning.Plan, image: journal.ImageEntry,
                   failure: Exception) -> None:
    """Delete the image of a failed snapshot.

    :raises IncompleteImageLeft: it could not be deleted, and Nova would
        report the failure to the user
    """
    if isinstance(failure, nova_exception.ImageNotFound):
        image.remove()
        return
    try:
        delete(image, plan.context)
    except Exception as error:
        # Whatever it is, it must not hide why the snapshot failed.
        left = exception.IncompleteImageLeft(
            failure=str(failure), image=plan.image_id, reason=str(error))
        if not isinstance(failure, exception.GONE):
            raise left from failure
        # Nova's manager expects the failure itself.
        LOG.error('%s', left, instance=plan.instance)
