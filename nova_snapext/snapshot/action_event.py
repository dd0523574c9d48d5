# SPDX-License-Identifier: Apache-2.0
"""The event of a snapshot among the instance's actions, for the user.

Nova's own event of a snapshot succeeds and ends as soon as the snapshot has
begun.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib

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
    second event contains it.
    """
    with contextlib.ExitStack() as stack:
        # Nova's periodic tasks take snapshots without an action of a user.
        with contextlib.suppress(nova_exception.InstanceActionNotFound):
            stack.enter_context(_event(context, instance, EVENT))
        try:
            yield
        except exception.StrategyRefused as refused:
            with contextlib.suppress(nova_exception.InstanceActionNotFound), \
                    _event(context, instance, str(refused)[:NAME_LENGTH]):
                raise
            raise


def _event(context: nova_context.RequestContext, instance: objects.Instance,
           name: str) -> compute_utils.EventReporter:
    return compute_utils.EventReporter(
        context, name, CONF.host, instance.uuid, graceful_exit=True)
