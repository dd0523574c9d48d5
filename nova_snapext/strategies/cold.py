# SPDX-License-Identifier: Apache-2.0
"""The strategy ``cold``: the root disk of a guest that does not run.

The disk of a guest that is already shut off is read as it is. During that,
Nova's task state prevents a start by its users, and QEMU's image lock a start
by anybody (https://www.qemu.org/docs/master/system/qemu-block-drivers.html,
"Disk image file locking"). Block devices are an exception: the guest has
another node of the device, in its own /dev, and each node has its own lock.
The snapshot fails if the guest of such a device is started.

A running guest is suspended in the way of Nova's suspend, only for the freeze:
it is switched to an overlay over its disk while it is suspended, and resumed
on it. The disk below is read, and the overlay merged afterwards, as in
``external``.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import datetime

import libvirt
from nova.compute import power_state
from nova.virt.libvirt import utils as libvirt_utils
from oslo_utils import timeutils

from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.hypervisor import block_device
from nova_snapext.hypervisor import domain
from nova_snapext.hypervisor import known_defects
from nova_snapext import journal
from nova_snapext import plan as planning
from nova_snapext import reason as reasons
from nova_snapext.resources import managed_save
from nova_snapext.resources import nbd_export
from nova_snapext.resources import overlay as overlay_resource
from nova_snapext.resources import passthrough_devices
from nova_snapext.resources import work_directory
from nova_snapext.strategies import base
from nova_snapext.strategies import native

CONF = conf.CONF


class ColdStrategy(base.FreezingStrategy):

    name = 'cold'
    mechanisms = frozenset({known_defects.Mechanism.SUSPEND_AND_RESUME,
                            known_defects.Mechanism.ACTIVE_COMMIT})
    resource_types = (work_directory.WorkDirectory,
                      overlay_resource.Overlay,
                      passthrough_devices.PassthroughDevices,
                      managed_save.ManagedSave,
                      nbd_export.NbdExport)

    def unsupported_guest_reason(self, plan: planning.Plan) -> str | None:
        if not plan.running:
            base.check_headers(plan)
            return None
        if plan.instance.image_meta.properties.get(
                'os_require_quiesce', False):
            # Filesystems that are frozen in the saved memory are still frozen
            # when it is restored, and there may be no agent then to thaw them.
            return reasons.UserReason(
                'its image has os_require_quiesce, and a guest is not '
                'quiesced while it is suspended')
        devices = passthrough_devices.PassthroughDevices(self.driver, plan)
        reason = (base.state_reason(plan, self.host) or
                  base.overlay_reason(plan) or
                  base.memory_reason(plan, self.host) or
                  base.memory_space_reason(
                      plan, CONF.snapext.libvirt_save_directory) or
                  devices.unsupported_reason(plan.guest))
        if reason is None:
            overlay_resource.Overlay(self.host, plan).check(plan.guest)
        return reason

    def stops_guest(self, plan: planning.Plan) -> bool:
        return plan.running

    def auto_skip_reason(self, plan: planning.Plan) -> str | None:
        if native.would_be_live(plan):
            return ('it suspends the guest for a moment, and Nova\'s own '
                    'snapshot does not')
        return None

    def growing_paths(self, plan: planning.Plan) -> tuple[str, ...]:
        # The overlay of a running guest grows there.
        if not plan.running:
            return ()
        return (libvirt_utils.get_instance_path(plan.instance),)

    def freeze_disk(self, plan: planning.Plan,
                    stack: journal.ReleaseStack) -> base.FrozenDisk:
        directory = self.create_work_directory(plan, stack)
        with timeutils.StopWatch() as watch:
            if plan.running:
                frozen_at = self._switch_to_overlay(plan, stack)
                consistency = planning.Consistency.CRASH
            else:
                frozen_at = timeutils.utcnow()
                consistency = base.consistency_of_shut_off(plan)
        with self.failing_as(exception.FreezeFailedForGood if plan.running
                             else exception.FreezeFailed, plan):
            # Before the first byte is read.
            lost_reason = _watch_unlocked(plan)
            frozen = self.export_disk(
                plan, stack, directory, consistency=consistency,
                freeze_seconds=watch.elapsed(), frozen_at=frozen_at)
        return dataclasses.replace(frozen, lost_reason=lost_reason)

    def _switch_to_overlay(self, plan: planning.Plan,
                           stack: journal.ReleaseStack) -> datetime.datetime:
        """Suspend a guest, and resume it on an overlay over its disk.

        :returns: when it was suspended
        """
        guest = plan.guest
        was_running = guest.get_power_state(self.host) == power_state.RUNNING
        overlay = overlay_resource.Overlay(self.host, plan)
        overlay.prepare(guest)
        stack.add(overlay)
        overlay.create(guest)
        devices = passthrough_devices.PassthroughDevices(self.driver, plan)
        devices.capture_state(guest)
        stack.add(devices)
        memory = managed_save.ManagedSave(
            self.driver, plan, overlay, was_running)
        stack.add(memory)
        # LibvirtDriver.suspend() and resume() can't do this: they check only
        # once whether a device is gone, and they wait indefinitely for a
        # guest that was paused to run.
        with self.failing_as(exception.FreezeFailedForGood, plan), \
                devices.detached(guest):
            # The guest's CPUs stop here.
            frozen_at = timeutils.utcnow()
            with self.failing_as(base.failure_of_save(devices), plan):
                memory.save_memory(guest)
            try:
                overlay.switch_suspended(guest)
                overlay.sync_definition()
                memory.resume(guest)
            except BaseException as error:
                memory.resume_on_disk(error)
                raise
            stack.mark_released(memory)
        stack.mark_released(devices)
        memory.set_clock(guest)
        return frozen_at


def _watch_unlocked(plan: planning.Plan) -> Callable[[], str | None]:
    """Return a function that tells whether a disk without a lock has changed.

    :returns: see :attr:`base.FrozenDisk.lost_reason`
    :raises UnexpectedState: the guest runs already
    :raises OSError: the device is gone
    """
    if plan.running or plan.disk.storage != 'block':
        return lambda: None
    path, guest = plan.disk.path, plan.guest
    changed = block_device.changed_sectors(path)
    if guest.is_active():
        raise exception.UnexpectedState(
            reason='the guest has just been started')
    return lambda: _lost_reason(path, guest, changed)


def _lost_reason(path: str, guest: domain.Domain,
                 changed: int) -> str | None:
    """Return why a block device that was read may have changed.

    :param changed: its changed sectors before the first byte was read
    """
    try:
        # What it has written may still be in the page cache.
        was_started = guest.is_active()
    except libvirt.libvirtError:
        # libvirtd has restarted. Hardly a guest starts without a write.
        was_started = False
    try:
        if not was_started and block_device.changed_sectors(path) == changed:
            return None
    except OSError as error:
        return f'it is not known whether {path} has changed: {error}'
    return (f'its guest {guest.name} was started, or something else has '
            f'written to {path}, before all was read. Take the snapshot '
            f'again, and start no guest outside Nova ("virsh start") during '
            f'its snapshot')
