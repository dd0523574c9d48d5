# SPDX-License-Identifier: Apache-2.0
"""What an image tells of its snapshot, as properties in Glance.

An image hands its properties on to the guests that boot from it, and those to
their snapshots: each snapshot has to set all of these.
"""

from __future__ import annotations

from collections.abc import Mapping
import typing as ty

from nova import context as nova_context
from nova.image import glance

from nova_snapext import choose
from nova_snapext import freeze

STRATEGY = 'snapshot_strategy'
CONSISTENCY = 'snapshot_consistency'
INSTANT = 'snapshot_instant'
# What asks for a strategy, and is of no use to the image.
ASKED = (choose.PROPERTY,)
# Nova's own name for it: its API sets it, too.
INSTANCE = 'instance_uuid'


def of_snapshot(strategy: str, instance_uuid: str,
                frozen: freeze.FrozenDisk) -> dict[str, str]:
    """Give the properties that tell how an image was made."""
    return {
        STRATEGY: strategy,
        CONSISTENCY: str(frozen.consistency),
        INSTANT: f'{frozen.instant.isoformat(timespec="milliseconds")}Z',
        INSTANCE: instance_uuid,
    }


def take_off_stale(context: nova_context.RequestContext, image_id: str,
                   properties: Mapping[str, ty.Any]) -> None:
    """Take off what asked for this snapshot, or tells of an earlier one.

    For Nova's own snapshot, which sets none of them.

    :param properties: that the image has
    """
    stale = sorted({*ASKED, STRATEGY, CONSISTENCY, INSTANT} &
                   properties.keys())
    if stale:
        # Nova's image API can only remove all that it isn't given.
        glance.GlanceClientWrapper().call(
            context, 2, 'update', args=(image_id,),
            kwargs={'remove_props': stale})
