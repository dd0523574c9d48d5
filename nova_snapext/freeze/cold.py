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

import datetime
import typing as ty

import libvirt
from nova.compute import power_state
from nova import exception as nova_exception
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt import utils as libvirt_utils
from oslo_log import log as logging
from oslo_utils import timeutils

from nova_snapext import exception
from nova_snapext.freeze import base
from nova_snapext.freeze import directory as snapshot_directory
from nova_snapext.freeze import internal_snapshot
from nova_snapext.freeze import jobs
from nova_snapext.freeze import libvirtd
from nova_snapext.freeze import native
from nova_snapext.freeze import overlay as disk_overlay
from nova_snapext.freeze import passthrough
from nova_snapext.freeze import qemu_nbd
from nova_snapext.freeze import quiesce
from nova_snapext import journal
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
                stack: journal.ReleaseStack) -> base.FrozenDisk:
        directory = snapshot_directory.Directory.choose(plan.instance)
        stack.hold(directory)
        directory.make()
        with timeutils.StopWatch() as watch:
            if plan.running:
                instant = self._put_on_overlay(plan, stack)
                consistency = base.Consistency.CRASH
            else:
                instant = timeutils.utcnow()
                consistency = base.consistency_of_shut_off(plan)
            export = qemu_nbd.Export(plan.instance.uuid, directory.socket)
            stack.hold(export)
            export.serve(plan.disk, directory)
        return base.FrozenDisk(
            uri=read.unix_uri(directory.socket, plan.disk.target),
            consistency=consistency, freeze_seconds=watch.elapsed(),
            instant=instant)

    def _put_on_overlay(self, plan: planning.Plan,
                        stack: journal.ReleaseStack) -> datetime.datetime:
        """Suspend a guest, and resume it on an overlay over its disk.

        :returns: when it was suspended
        """
        guest = plan.guest
        runs = guest.get_power_state(self._host) == power_state.RUNNING
        overlay = disk_overlay.Overlay(self._host, plan)
        overlay.prepare(guest)
        stack.hold(overlay)
        overlay.create(guest)
        devices = passthrough.PassthroughDevices(self._driver, plan)
        stack.hold(devices)
        suspension = Suspension(self._driver, plan, overlay, runs)
        stack.hold(suspension)
        # Not LibvirtDriver.suspend() and resume(): they look only once
        # whether a device has gone, and wait for ever for a guest that was
        # paused to run.
        with devices.detached():
            # From here on its CPUs stand.
            instant = timeutils.utcnow()
            guest.save_memory_state()
            try:
                overlay.take_suspended(guest)
                suspension.resume(guest)
            except BaseException as error:
                suspension.resume_on_disk(error)
                raise
            stack.settle(suspension)
        stack.settle(devices)
        suspension.set_clock(guest)
        return instant


class Suspension(journal.Resource):
    """A guest whose memory is saved, for the time of its freeze.

    :param overlay: that it is put on meanwhile
    :param runs: whether it ran; otherwise it was paused
    """

    kind = 'suspension'
    vital = True

    def __init__(self, driver: libvirt_driver.LibvirtDriver,
                 plan: planning.Plan, overlay: disk_overlay.Overlay,
                 runs: bool):
        self._driver = driver
        self._plan = plan
        self._overlay = overlay
        self._runs = runs

    def record(self) -> dict[str, ty.Any]:
        return {'overlay': self._overlay.record(), 'runs': self._runs}

    @classmethod
    def restore(cls, driver: libvirt_driver.LibvirtDriver,
                plan: planning.Plan, record: dict[str, ty.Any]) -> Suspension:
        return cls(driver, plan, disk_overlay.Overlay.restore(
            driver, plan, record['overlay']), record['runs'])

    def release(self) -> None:
        """Resume it, if it is suspended still.

        :raises ReleaseFailed: it can't be
        """
        try:
            guest = self._driver._host.get_guest(self._plan.instance)
        except nova_exception.InstanceNotFound:
            return
        if guest.is_active():
            # libvirtd saves its memory to the end, for whomever it began.
            jobs.await_none(guest, self._plan.instance)
        if guest.is_active():
            self._resume_if_halted(guest)
        elif guest._domain.hasManagedSaveImage(0):
            self._bring_back(guest)
            self.set_clock(guest)

    def resume(self, guest: libvirt_guest.Guest) -> None:
        """Start a guest from its saved memory, as it was: paused if it was.

        With its CPUs powered up, and the secret of its TPM.
        """
        if isinstance(self._plan.instance, planning.UnknownInstance):
            guest.launch()
            return
        self._driver._create_guest(
            self._plan.context, guest.get_xml_desc(dump_inactive=True),
            self._plan.instance)

    def resume_on_disk(self, cause: BaseException) -> None:
        """Bring back a guest that was not resumed on its overlay.

        :raises ReleaseFailed: it is still suspended
        """
        if base.domain_is_gone(cause):
            return
        LOG.warning('The guest could not be resumed on an overlay (%s), and '
                    'is resumed on its disk', cause,
                    instance=self._plan.instance)
        self._bring_back(self._plan.guest)

    def set_clock(self, guest: libvirt_guest.Guest) -> None:
        """Set the clock of a guest that has slept."""
        if self._runs:
            with quiesce.bounded_agent(guest):
                guest.sync_guest_time()

    def _bring_back(self, guest: libvirt_guest.Guest) -> None:
        try:
            self._overlay.merge()
            if not guest.is_active():
                self.resume(guest)
        except (*base.FREEZE_ERRORS, *libvirtd.UNREACHABLE,
                exception.ReleaseFailed) as error:
            name = self._plan.instance.name
            raise exception.ReleaseFailed(
                instance=self._plan.instance.uuid,
                reason=f'it was suspended for its snapshot, and can\'t be '
                       f'resumed: {error}. Its memory is saved: resume it '
                       f'with "virsh start {name}". A reboot through Nova '
                       f'would begin without it') from error

    def _resume_if_halted(self, guest: libvirt_guest.Guest) -> None:
        """Have a guest run that libvirtd, which has died, has left halted."""
        state, reason = guest._domain.state()
        if (self._runs and state == libvirt.VIR_DOMAIN_PAUSED and
                reason in internal_snapshot.HALTED):
            LOG.warning('The guest is resumed: it was halted since its '
                        'memory was saved for a snapshot',
                        instance=self._plan.instance)
            guest.resume()
