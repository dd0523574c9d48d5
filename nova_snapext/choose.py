# SPDX-License-Identifier: Apache-2.0
"""The second stage: the strategy that a snapshot is taken by."""

from __future__ import annotations

from collections.abc import Iterable


from nova_snapext import conf
from nova_snapext import encode
from nova_snapext import exception
from nova_snapext import freeze
from nova_snapext import plan as planning

CONF = conf.CONF

STORAGES = ('file', 'block')
DISK_FORMATS = ('qcow2', 'raw')


def _reason_for_native(plan: planning.Plan) -> str | None:
    """Say why none of the strategies can serve; None when one may."""
    disk = plan.disk
    if disk.encrypted:
        return 'its root disk is encrypted'
    if disk.storage not in STORAGES:
        return f'its root disk is on {disk.storage} storage'
    if disk.format not in DISK_FORMATS:
        return f'its root disk has the format {disk.format}'
    if plan.image_format not in encode.FORMATS:
        return f'images of the format {plan.image_format} are not streamed'
    if plan.image_format == 'qcow2' and CONF.libvirt.snapshot_compression:
        return 'compressed images are not streamed'
    return None


def choose(plan: planning.Plan,
           strategies: Iterable[freeze.Strategy]) -> freeze.Strategy:
    """Take the first strategy that can serve a plan.

    :raises NotServed: none can; the reason says why, for each
    """
    native = _reason_for_native(plan)
    if native:
        raise exception.NotServed(reason=native)
    reasons = []
    for strategy in strategies:
        reason = strategy.reason_against(plan)
        if reason is None:
            return strategy
        reasons.append(f'{strategy.name}: {reason}')
    raise exception.NotServed(reason='; '.join(reasons))
