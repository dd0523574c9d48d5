# SPDX-License-Identifier: Apache-2.0
"""The strategy ``native``: Nova's own snapshot, untouched."""

from __future__ import annotations

from nova_snapext import conf
from nova_snapext.freeze import base
from nova_snapext import plan as planning

CONF = conf.CONF


class NativeStrategy(base.Strategy):

    name = 'native'

    def reason_against(self, plan: planning.Plan) -> str | None:
        return None

    def reason_against_unasked(self, plan: planning.Plan) -> str | None:
        if plan.running and plan.direct_refused:
            return ('it would suspend the guest, as the direct snapshot is '
                    f'not possible: {plan.direct_refused}')
        return None


def may_be_direct(plan: planning.Plan) -> bool:
    """Tell whether Nova's own may do it within the storage, moving nothing."""
    return plan.disk.storage == 'network' and not plan.direct_refused


def would_be_live(plan: planning.Plan) -> bool:
    """Tell whether Nova's own snapshot would let the guest run.

    As LibvirtDriver.snapshot decides it.
    """
    return (plan.running and
            plan.disk.storage == 'file' and
            not CONF.ephemeral_storage_encryption.enabled and
            not CONF.workarounds.disable_libvirt_livesnapshot)
