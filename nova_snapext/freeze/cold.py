# SPDX-License-Identifier: Apache-2.0
"""The strategy ``cold``: the root disk of a guest that does not run.

A guest that is shut off already is read as it is. Nova's task state keeps its
users from starting it meanwhile, and QEMU's image locks anybody
(https://www.qemu.org/docs/master/system/qemu-block-drivers.html, "Disk image
file locking"): but for a block device, which a guest has another node of, in
its own /dev, and which can be locked by each.

A guest that runs is suspended as Nova suspends, and for the freeze alone:
while it is, its disk is put below an overlay, on which it is resumed. What
then lies below is read, and the overlay committed afterwards, as with
``external``.
"""

from __future__ import annotations

import contextlib
import datetime

from nova.compute import power_state
from nova.virt.libvirt import utils as libvirt_utils
from oslo_log import log as logging
from oslo_utils import timeutils

from nova_snapext import exception
from nova_snapext.freeze import base
from nova_snapext.freeze import directory as snapshot_directory
from nova_snapext.freeze import libvirtd
from nova_snapext.freeze import native
from nova_snapext.freeze import overlay as disk_overlay
from nova_snapext.freeze import passthrough
from nova_snapext.freeze import qemu_nbd
from nova_snapext.freeze import quiesce
from nova_snapext import plan as planning
from nova_snapext import read

LOG = logging.getLogger(__name__)


class ColdStrategy(base.FreezingStrategy):

    name = 'cold'

    def _reason_against(self, plan: planning.Plan) -> str | None:
        if not plan.running:
            return None
        if plan.instance.image_meta.properties.get(
                'os_require_quiesce', False):
            # Frozen in the saved memory, filesystems are frozen still when
            # it is restored, and there may be no agent then to thaw them.
            return ('its image has os_require_quiesce, and a guest is not '
                    'quiesced while it is suspended')
        return passthrough.PassthroughDevices(
            self._driver, plan).reason_to_stay()

    def reason_against_unasked(self, plan: planning.Plan) -> str | None:
        if native.would_be_live(plan):
            return ('it suspends the guest for a moment, which Nova\'s own '
                    'does not')
        return None

    def filling(self, plan: planning.Plan) -> tuple[str, ...]:
        # Of the overlay, where there is one.
        if not plan.running:
            return ()
        return (libvirt_utils.get_instance_path(plan.instance),)

    def _freeze(self, plan: planning.Plan,
                stack: contextlib.ExitStack) -> base.FrozenDisk:
        directory = snapshot_directory.Directory.make(plan.instance)
        stack.callback(directory.remove)
        with timeutils.StopWatch() as watch:
            if plan.running:
                instant = self._put_on_overlay(plan, stack)
                consistency = base.Consistency.CRASH
            else:
                instant = timeutils.utcnow()
                consistency = base.consistency_of_shut_off(plan)
            server = qemu_nbd.serve(plan.disk, directory, plan.instance.uuid)
        stack.callback(server.end)
        return base.FrozenDisk(
            uri=read.unix_uri(directory.socket, plan.disk.target),
            consistency=consistency, freeze_seconds=watch.elapsed(),
            instant=instant)

    def _put_on_overlay(self, plan: planning.Plan,
                        stack: contextlib.ExitStack) -> datetime.datetime:
        """Suspend a guest, and resume it on an overlay over its disk.

        :returns: when it was suspended
        """
        guest = plan.guest
        runs = guest.get_power_state(self._host) == power_state.RUNNING
        overlay = disk_overlay.Overlay(self._host, plan)
        overlay.create(guest)
        stack.callback(overlay.merge)
        devices = passthrough.PassthroughDevices(self._driver, plan)
        # Not LibvirtDriver.suspend() and resume(): they look only once
        # whether a device has gone, and wait for ever for a guest that was
        # paused to run.
        with devices.detached():
            # From here on its CPUs stand.
            instant = timeutils.utcnow()
            guest.save_memory_state()
            try:
                overlay.take_suspended(guest)
                self._resume(plan)
            except BaseException as error:
                self._resume_on_disk(plan, overlay, error)
                raise
        if runs:
            with quiesce.bounded_agent(plan):
                guest.sync_guest_time()
        return instant

    def _resume(self, plan: planning.Plan) -> None:
        """Start a guest from its saved memory, as it was: paused if it was.

        With its CPUs powered up, and the secret of its TPM.
        """
        self._driver._create_guest(
            plan.context, plan.guest.get_xml_desc(dump_inactive=True),
            plan.instance)

    def _resume_on_disk(self, plan: planning.Plan,
                        overlay: disk_overlay.Overlay,
                        cause: BaseException) -> None:
        """Bring back a guest that was not resumed on its overlay.

        :raises ReleaseFailed: it is still suspended
        """
        if base.domain_is_gone(cause):
            return
        LOG.warning('The guest could not be resumed on an overlay (%s), and '
                    'is resumed on its disk', cause, instance=plan.instance)
        try:
            overlay.merge()
            if not plan.guest.is_active():
                self._resume(plan)
        except (*base.FREEZE_ERRORS, *libvirtd.UNREACHABLE,
                exception.ReleaseFailed) as error:
            name = plan.instance.name
            raise exception.ReleaseFailed(
                instance=plan.instance.uuid,
                reason=f'it was suspended for its snapshot, and can\'t be '
                       f'resumed: {error}. Its memory is saved: resume it '
                       f'with "virsh start {name}". A reboot through Nova '
                       f'would begin without it') from error
