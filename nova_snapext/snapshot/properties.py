# SPDX-License-Identifier: Apache-2.0
"""Image properties that describe how a snapshot was taken.

They only inform: Glance may refuse each of them, and the snapshot goes on.

A guest that boots from an image inherits its properties, and so do the guest's
snapshots. Each snapshot therefore sets or removes all of these properties.

Glance counts the properties of an image (``image_property_quota``), and lets
operators protect names. It can refuse them only before the guest is touched:
all of them are set then, and afterwards only values change.
"""

from __future__ import annotations

from collections.abc import Collection

from nova_snapext.snapshot import selection
from nova_snapext.snapshot import trim
from nova_snapext import strategies

STRATEGY = 'snapext_strategy_used'
CONSISTENCY = 'snapext_consistency'
FROZEN_AT = 'snapext_frozen_at'
# Nova's own property. Nova's API sets it too.
INSTANCE = 'instance_uuid'

#: Value of a property until the disk is frozen. It stays in an image if
#: Glance accepts the property, but later no other value of it.
UNKNOWN = 'unknown'

#: Values by name; None: the image must not have the property.
Properties = dict[str, str | None]


def before_freeze(strategy: str, instance_uuid: str) -> Properties:
    """Return the properties of a snapshot whose disk is not frozen yet."""
    return {
        # They asked for this snapshot, and are of no use to the image.
        selection.PROPERTY: None,
        trim.PROPERTY: None,
        STRATEGY: strategy,
        CONSISTENCY: UNKNOWN,
        FROZEN_AT: UNKNOWN,
        INSTANCE: instance_uuid,
    }


def of_frozen(frozen: strategies.FrozenDisk) -> Properties:
    """Return the properties that were not known before the freeze."""
    return {
        CONSISTENCY: str(frozen.consistency),
        FROZEN_AT: f'{frozen.frozen_at.isoformat(timespec="milliseconds")}Z',
    }


def of_native(strategy: str) -> Properties:
    """Return the properties of Nova's own snapshot.

    Nova sets none of them, so that those of an earlier snapshot would stay.
    """
    return {
        selection.PROPERTY: None,
        trim.PROPERTY: None,
        CONSISTENCY: None,
        FROZEN_AT: None,
        STRATEGY: strategy,
    }


def without(described: Properties, names: Collection[str]) -> Properties:
    """Return the properties with other names than these."""
    return {name: value for name, value in described.items()
            if name not in names}
