# SPDX-License-Identifier: Apache-2.0
"""The event of a snapshot among the instance's actions, for the user.

Nova's own event of a snapshot succeeds and ends as soon as the snapshot has
begun.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import typing as ty

from nova.compute import utils as compute_utils
from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects

from nova_snapext import conf
from nova_snapext import exception

CONF = conf.CONF

EVENT = 'compute_snapext_snapshot'

# Characters of an event's name in Nova's table instance_actions_events.
NAME_LENGTH = 255


@contextlib.contextmanager
def report(context: nova_context.RequestContext,
           instance: objects.Instance) -> Iterator[None]:
    """Start an event, and finish it with the result of the snapshot.

    The cause of a failure is in the event's details. By Nova's default policy
    only operators see them, because they may describe the host. But the user
    who requested a strategy needs the reason of its refusal: the name of a
    second event contains the part of it that is for users.
    """
    with contextlib.ExitStack() as stack:
        # Nova's periodic tasks take snapshots without an action of a user.
        with contextlib.suppress(nova_exception.InstanceActionNotFound):
            stack.enter_context(_event(context, instance, EVENT))
        try:
            yield
        except exception.StrategyRefused as refused:
            with contextlib.suppress(nova_exception.InstanceActionNotFound), \
                    _event(context, instance,
                           refused.format_message()[:NAME_LENGTH]):
                raise
            raise


def _event(context: nova_context.RequestContext, instance: objects.Instance,
           name: str) -> _EventReporter:
    return _EventReporter(
        context, name, CONF.host, instance.uuid, graceful_exit=True)


class _EventReporter(compute_utils.EventReporter):
    """Nova's, with the text of our errors that is for operators."""

    def __exit__(self, exc_type: ty.Any, exc_val: ty.Any,
                 exc_tb: ty.Any) -> bool | None:
        # Nova would take format_message(), which is for users.
        if isinstance(exc_val, exception.SnapextError):
            exc_val = str(exc_val)
        result: bool | None = super().__exit__(exc_type, exc_val, exc_tb)
        return result
