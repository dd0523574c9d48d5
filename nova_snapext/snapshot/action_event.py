# SPDX-License-Identifier: Apache-2.0
"""The event of a snapshot among the instance's actions, for the user.

Nova's own event of a snapshot succeeds and ends as soon as the snapshot has
begun.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import typing as ty

import libvirt
from nova.compute import utils as compute_utils
from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from oslo_log import log as logging

from nova_snapext import conf
from nova_snapext.snapshot import user_text

CONF = conf.CONF
LOG = logging.getLogger(__name__)

EVENT = 'compute_snapext_snapshot'

# Errors whose text is in an event's details.
TOLD_OPERATORS = (nova_exception.NovaException, libvirt.libvirtError)


@contextlib.contextmanager
def report(context: nova_context.RequestContext,
           instance: objects.Instance) -> Iterator[None]:
    """Start an event, and finish it with the result of the snapshot.

    The cause of a failure is in the event's details. By Nova's default policy
    only operators see them, because they may describe the host. Users see the
    names of events: a second one has a sentence for them as its name. Nova
    stores the same sentence as the fault of the instance.
    """
    reporter = _EventReporter(context, EVENT, CONF.host, instance.uuid)
    with reporter:
        try:
            yield
        except Exception as error:
            text = user_text.of_error(error)
            # Nova calls it for the fault, see exception_to_dict() in its
            # compute/utils.py.
            error.format_message = (  # type: ignore[attr-defined]
                lambda: text)
            if not reporter.is_started:
                raise
            with _EventReporter(context, text, CONF.host, instance.uuid):
                raise


class _EventReporter(compute_utils.EventReporter):
    """Nova's, with the text of our errors that is for operators.

    An event only informs: if it can't be written, the snapshot goes on. Its
    own error is never hidden.
    """

    is_started = False

    def __enter__(self) -> _EventReporter:
        with self._never_failing():
            super().__enter__()
            self.is_started = True
        return self

    def __exit__(self, exc_type: ty.Any, exc_val: ty.Any,
                 exc_tb: ty.Any) -> None:
        # Nova would take format_message(), which is for users.
        if isinstance(exc_val, TOLD_OPERATORS):
            exc_val = str(exc_val)
        elif exc_val is not None:
            # As in Nova: nobody knows what its text has.
            exc_val = type(exc_val).__name__
        if self.is_started:
            with self._never_failing():
                super().__exit__(exc_type, exc_val, exc_tb)

    @contextlib.contextmanager
    def _never_failing(self) -> Iterator[None]:
        try:
            yield
        except nova_exception.InstanceActionNotFound:
            # Nova's periodic tasks take snapshots without a user's action.
            LOG.debug('No action of instance %s has this event',
                      self.instance_uuids)
        except Exception as error:
            LOG.warning('The event of the snapshot of instance %(instances)s '
                        'could not be written: %(error)s. The snapshot does '
                        'not depend on it',
                        {'instances': ', '.join(self.instance_uuids),
                         'error': error})
