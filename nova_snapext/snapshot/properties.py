# SPDX-License-Identifier: Apache-2.0
"""Image properties that describe how a snapshot was taken.

A guest that boots from an image inherits its properties, and so do the guest's
snapshots. Each snapshot therefore sets or removes all of these properties.
"""

from __future__ import annotations

import dataclasses

from nova_snapext.snapshot import selection
from nova_snapext import strategies

STRATEGY = 'snapext_strategy_used'
CONSISTENCY = 'snapext_consistency'
FROZEN_AT = 'snapext_frozen_at'
# Nova's own property. Nova's API sets it too.
INSTANCE = 'instance_uuid'


@dataclasses.dataclass(frozen=True)
class SnapshotProperties:
    """What one snapshot changes in the properties of its image.

    :ivar values: values by name
    :ivar removed: names of properties that the image must not have
    """

    values: dict[str, str]
    removed: tuple[str, ...]


def of_frozen(strategy: str, instance_uuid: str,
              frozen: strategies.FrozenDisk) -> SnapshotProperties:
    """Return the properties of a snapshot that a frozen disk was read for."""
    return SnapshotProperties(
        values={
            STRATEGY: strategy,
            CONSISTENCY: str(frozen.consistency),
            FROZEN_AT:
                f'{frozen.frozen_at.isoformat(timespec="milliseconds")}Z',
            INSTANCE: instance_uuid,
        },
        # It asked for this snapshot, and is of no use to the image.
        removed=(selection.PROPERTY,))


def of_native(strategy: str) -> SnapshotProperties:
    """Return the properties of Nova's own snapshot.

    Nova sets none of them, so that those of an earlier snapshot would stay.
    """
    return SnapshotProperties(
        values={STRATEGY: strategy},
        removed=(selection.PROPERTY, CONSISTENCY, FROZEN_AT))
