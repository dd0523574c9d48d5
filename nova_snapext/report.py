# SPDX-License-Identifier: Apache-2.0
"""Telling the user what became of a snapshot, among an instance's events.

Nova's own event of a snapshot is over, with success, as soon as the task has
begun that takes it.
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

# Of the name, in Nova's table instance_actions_events.
NAME_LENGTH = 255


@contextlib.contextmanager
def reported(context: nova_context.RequestContext,
             instance: objects.Instance) -> Iterator[None]:
    """Have an event that begins and ends with the snapshot, and fails with it.

    Why something failed is in an event's details, which by Nova's default
    policy are for operators alone, as they may tell of the host. Why a
    strategy is refused is for whoever asked for it: an event of its own says
    so by its name.
    """
    with contextlib.ExitStack() as stack:
        # There is no action where no user asked: Nova's periodic tasks.
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
