# SPDX-License-Identifier: Apache-2.0
"""The strategy ``native``: Nova's own snapshot, unchanged.

If nova-compute is killed, recovery cleans up after it as after all others.
"""

from __future__ import annotations

from nova_snapext import conf
from nova_snapext.hypervisor import chain
from nova_snapext import plan as planning
from nova_snapext.resources import guest_filesystems
from nova_snapext.resources import native_snapshot
from nova_snapext.strategies import base

CONF = conf.CONF


class NativeStrategy(base.Strategy):
    """Leave the whole snapshot to Nova."""

    name = 'native'
    resource_types = (guest_filesystems.GuestFilesystems,
                      native_snapshot.NativeSnapshot)

    def unsupported_reason(self, plan: planning.Plan) -> str | None:
        # Nova takes the first disk (libvirt_utils.find_disk).
        targets = chain.targets_of(plan.guest.get_xml_desc())
        if plan.disk.target in targets[1:]:
            return (f'Nova would take the first disk of the guest, '
                    f'{targets[0]}, but its root disk is {plan.disk.target}')
        return None

    def auto_skip_reason(self, plan: planning.Plan) -> str | None:
        if plan.running and plan.direct_refused:
            return ('it would suspend the guest, because the direct snapshot '
                    f'is not possible: {plan.direct_refused}')
        return None


def may_be_direct(plan: planning.Plan) -> bool:
    """Return whether Nova's own snapshot may stay inside the storage.

    It then copies no data.
    """
    return plan.disk.storage == 'network' and not plan.direct_refused


def would_be_live(plan: planning.Plan) -> bool:
    """Return whether Nova's own snapshot would let the guest run.

    The conditions are those of LibvirtDriver.snapshot.
    """
    return (plan.running and
            plan.disk.storage == 'file' and
            not CONF.ephemeral_storage_encryption.enabled and
            not CONF.workarounds.disable_libvirt_livesnapshot)
