# SPDX-License-Identifier: Apache-2.0
"""The strategy ``native``: Nova's own snapshot, unchanged.

If nova-compute is killed, recovery cleans up after it as after all others.
"""

from __future__ import annotations

from nova_snapext import conf
from nova_snapext.hypervisor import chain
from nova_snapext import plan as planning
from nova_snapext import reason as reasons
from nova_snapext.resources import guest_filesystems
from nova_snapext.resources import native_snapshot
from nova_snapext.resources import passthrough_devices
from nova_snapext.resources import rbd_clone
from nova_snapext.resources import rbd_snapshot
from nova_snapext.strategies import base

CONF = conf.CONF


class NativeStrategy(base.Strategy):
    """Leave the whole snapshot to Nova."""

    name = 'native'
    resource_types = (guest_filesystems.GuestFilesystems,
                      native_snapshot.NativeSnapshot,
                      passthrough_devices.PassthroughDevices,
                      rbd_snapshot.NovaRbdSnapshot,
                      rbd_clone.RbdClone)

    def unsupported_reason(self, plan: planning.Plan) -> str | None:
        # Nova takes the first disk (libvirt_utils.find_disk).
        targets = chain.targets_of(plan.guest.get_xml_desc())
        if plan.disk.target in targets[1:]:
            return reasons.UserReason(
                f'Nova would take the first disk of the guest, {targets[0]}, '
                f'but its root disk is {plan.disk.target}')
        if (plan.running and not would_be_live(plan) and
                plan.instance.image_meta.properties.get(
                    'os_require_quiesce', False)):
            return reasons.UserReason(
                'its image has os_require_quiesce, and Nova freezes the '
                'filesystems for live snapshots of files only')
        return base.find_reason(plan, _job_reason)

    def stops_guest(self, plan: planning.Plan) -> bool:
        return (plan.running and not would_be_live(plan) and
                not may_be_direct(plan))

    def auto_skip_reason(self, plan: planning.Plan) -> str | None:
        if (plan.running and plan.disk.storage == 'network' and
                not may_be_direct(plan)):
            reason = plan.direct_refused or (
                f'it makes no {plan.image_format} images')
            return ('it would suspend the guest, because the direct snapshot '
                    f'is not possible: {reason}')
        return None


def _job_reason(plan: planning.Plan) -> str | None:
    # Nova aborts any job of the disk. It undefines the guest for its own job,
    # which waits for another job of the guest, and then fails.
    if would_be_live(plan):
        base.check_no_jobs(plan)
    return None


def may_be_direct(plan: planning.Plan) -> bool:
    """Return whether Nova's own snapshot may stay inside the storage.

    It then moves no data through the host.
    """
    return (plan.disk.storage == 'network' and plan.image_format == 'raw' and
            not plan.direct_refused)


def would_be_live(plan: planning.Plan) -> bool:
    """Return whether Nova's own snapshot would let the guest run.

    The conditions are those of LibvirtDriver.snapshot.
    """
    return (plan.running and
            plan.disk.storage == 'file' and
            not CONF.ephemeral_storage_encryption.enabled and
            not CONF.workarounds.disable_libvirt_livesnapshot)
