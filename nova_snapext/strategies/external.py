# SPDX-License-Identifier: Apache-2.0
"""The strategy ``external``: libvirt's disk-only external snapshot.

From the snapshot on the guest writes to an overlay. The disk below it does not
change, and is read through qemu-nbd while the guest runs. Then the overlay is
merged into the disk, and the guest uses its disk again as before. libvirt
keeps no metadata of it.

https://libvirt.org/formatsnapshot.html, and virDomainBlockCommit.
"""

from __future__ import annotations

from nova.virt.libvirt import utils as libvirt_utils
from oslo_utils import timeutils

from nova_snapext import exception
from nova_snapext.hypervisor import known_defects
from nova_snapext import journal
from nova_snapext import plan as planning
from nova_snapext import reason as reasons
from nova_snapext.resources import guest_filesystems
from nova_snapext.resources import nbd_export
from nova_snapext.resources import overlay as overlay_resource
from nova_snapext.resources import work_directory
from nova_snapext.strategies import base


class ExternalStrategy(base.FreezingStrategy):

    name = 'external'
    mechanisms = frozenset({known_defects.Mechanism.ACTIVE_COMMIT})
    resource_types = (work_directory.WorkDirectory,
                      guest_filesystems.GuestFilesystems,
                      overlay_resource.Overlay,
                      nbd_export.NbdExport)

    def unsupported_guest_reason(self, plan: planning.Plan) -> str | None:
        if not plan.running:
            return reasons.UserReason(
                'the guest is shut off, and has no QEMU that could do it')
        reason = (base.state_reason(plan, self.host) or
                  base.overlay_reason(plan))
        if reason is None:
            overlay_resource.Overlay(self.host, plan).check(plan.guest)
        return reason

    def growing_paths(self, plan: planning.Plan) -> tuple[str, ...]:
        # The overlay grows there.
        return (libvirt_utils.get_instance_path(plan.instance),)

    def freeze_disk(self, plan: planning.Plan,
                    stack: journal.ReleaseStack) -> base.FrozenDisk:
        directory = self.create_work_directory(plan, stack)
        filesystems = guest_filesystems.GuestFilesystems(self.host, plan)
        # Thawed again after the merge: if QEMU pauses the guest because the
        # overlay can't grow, the agent can't answer before the merge.
        stack.add(filesystems)
        overlay = overlay_resource.Overlay(self.host, plan)
        overlay.prepare(plan.guest)
        stack.add(overlay)
        overlay.create(plan.guest)
        with filesystems.frozen() as consistency, \
                timeutils.StopWatch() as watch:
            overlay.switch_to_overlay(plan.guest)
        frozen_at = timeutils.utcnow()
        with self.failing_as(exception.FreezeFailedForGood, plan):
            overlay.check_switched(plan.guest)
            overlay.sync_definition()
            stack.mark_released(filesystems)
            return self.export_disk(
                plan, stack, directory, consistency=consistency,
                freeze_seconds=watch.elapsed(), frozen_at=frozen_at)
