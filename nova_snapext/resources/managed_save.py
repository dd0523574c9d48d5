# SPDX-License-Identifier: Apache-2.0
"""The saved memory of a guest, for the duration of its freeze."""

from __future__ import annotations

import typing as ty

import libvirt
from nova import exception as nova_exception
from nova.virt.libvirt import driver as libvirt_driver
from oslo_log import log as logging

from nova_snapext import conf
from nova_snapext import durable
from nova_snapext import exception
from nova_snapext.hypervisor import connection
from nova_snapext.hypervisor import domain
from nova_snapext.hypervisor import errors
from nova_snapext.hypervisor import io_error_pause
from nova_snapext.hypervisor import jobs
from nova_snapext.hypervisor import libvirt_files
from nova_snapext import journal
from nova_snapext.journal import schema
from nova_snapext import plan as planning
from nova_snapext.resources import disk_definition
from nova_snapext.resources import overlay as overlay_resource

CONF = conf.CONF
LOG = logging.getLogger(__name__)

# Why libvirt has a guest shut off that was not resumed from its saved memory:
# it was saved, its start failed, or libvirtd has restarted since then.
NOT_RUN_REASONS = (libvirt.VIR_DOMAIN_SHUTOFF_SAVED,
                   libvirt.VIR_DOMAIN_SHUTOFF_FAILED,
                   libvirt.VIR_DOMAIN_SHUTOFF_UNKNOWN)

RESUME_ERRORS: tuple[type[Exception], ...] = (
    *errors.HYPERVISOR_ERRORS,
    *connection.UNREACHABLE,
    nova_exception.InstanceNotFound,
)


class ManagedSave(journal.Resource):
    """A guest whose memory is saved while it is switched to an overlay.

    Recorded: the overlay, whether the guest was running, the boot of the host,
    and whether a resume was requested. Restored: as recorded. Released: the
    guest is resumed, on its disk.

    Saved memory belongs to the disk of the same moment. If a loss of power
    brings back memory that the guest was resumed from, or leaves a part of
    it, the guest is started without it, as after any loss of power.
    """

    kind = 'managed save'
    record_schema = schema.object_of(
        overlay=overlay_resource.Overlay.record_schema,
        was_running=schema.FLAG, boot=schema.TEXT,
        resume_requested=schema.FLAG)
    blocks_start = True
    moves_with_disk = True

    def __init__(self, driver: libvirt_driver.LibvirtDriver,
                 target: planning.Target, overlay: overlay_resource.Overlay,
                 was_running: bool):
        """Create the resource; no memory is saved yet.

        :param overlay: the overlay that the guest is switched to
        :param was_running: whether the guest was running, and not paused
        """
        self._driver = driver
        self._target = target
        self._instance = target.instance
        self._overlay = overlay
        self._was_running = was_running
        self._boot = durable.boot_id()
        self._resume_requested = False

    def record(self) -> dict[str, ty.Any]:
        return {'overlay': self._overlay.record(),
                'was_running': self._was_running,
                'boot': self._boot,
                'resume_requested': self._resume_requested}

    @classmethod
    def restore(cls, driver: libvirt_driver.LibvirtDriver,
                target: planning.Target, record: dict[str, ty.Any]) -> ty.Self:
        overlay = overlay_resource.Overlay.restore(
            driver, target, record['overlay'])
        memory = cls(driver, target, overlay, record['was_running'])
        memory._boot = record['boot']
        memory._resume_requested = record['resume_requested']
        return memory

    def release(self) -> None:
        """Resume the guest, if it is still suspended.

        :raises GuestBusy: libvirtd still saves its memory, and does not end
        :raises ReleaseFailed: it can't be resumed
        """
        guest = domain.find(self._driver._host, self._instance)
        if guest is None:
            return
        if guest.is_active():
            # libvirtd saves the memory to the end, also if the process that
            # requested it has died.
            jobs.wait_for_no_job(guest, self._instance)
        if guest.is_active():
            self._resume_if_halted(guest)
        elif guest.has_managed_save():
            if self._may_have_run(guest):
                self._discard(guest, 'the guest may have run since then')
            elif (self._has_rebooted() and
                    disk_definition.saved_definition(guest) is None):
                self._discard(guest, 'only a part of it is left')
            else:
                self._resume_or_discard(guest)
        libvirt_files.sync_saved_memory()

    def save_memory(self, guest: domain.Domain) -> None:
        """Save the guest's memory, and end its QEMU.

        :raises libvirtError: libvirt refuses
        """
        guest.save_memory_state()
        LOG.debug('Saved the guest\'s memory', instance=self._instance)

    def resume(self, guest: domain.Domain) -> None:
        """Start a guest from its saved memory, running or paused as it was.

        Its CPUs are powered up, and it gets the secret of its TPM.
        """
        self._resume_requested = True
        try:
            self.save()
        except (OSError, exception.JournalFailed) as error:
            # To leave the guest suspended, on a host without space, is worse
            # than a loss of power in the moment of the resume.
            LOG.warning('The journal of the saved memory could not be '
                        'written: %s. The guest is resumed all the same',
                        error, instance=self._instance)
        if isinstance(self._instance, planning.UnknownInstance):
            guest.launch()
        else:
            self._driver._create_guest(
                self._target.context, guest.get_xml_desc(dump_inactive=True),
                self._instance)
        # Only now can the journal forget it: see the class.
        libvirt_files.sync_saved_memory()
        LOG.debug('Resumed the guest from its saved memory',
                  instance=self._instance)

    def resume_on_disk(self, error: BaseException) -> None:
        """Resume a guest on its disk that was not resumed on the overlay.

        :param error: why it was not
        :raises ReleaseFailed: it is still suspended
        """
        if domain.is_gone(error):
            return
        LOG.warning('The guest could not be resumed on an overlay (%s), and '
                    'is resumed on its disk', error, instance=self._instance)
        self._resume_on_disk()

    def set_clock(self, guest: domain.Domain) -> None:
        """Set the clock of a guest that was suspended."""
        if self._was_running:
            with guest.agent_timeout(CONF.snapext.agent_timeout):
                guest.sync_guest_time()

    def _resume_on_disk(self) -> domain.Domain:
        try:
            self._overlay.merge()
            guest = domain.get(self._driver._host, self._instance)
            if not guest.is_active():
                self.resume(guest)
        except RESUME_ERRORS as error:
            raise exception.ReleaseFailed(
                instance=self._instance.uuid,
                reason=f'it was suspended for its snapshot, and can\'t be '
                       f'resumed: {error}. Its memory is saved: resume it '
                       f'with "virsh start {self._instance.name}". A reboot '
                       f'through Nova would start it without this '
                       f'memory') from error
        return guest

    def _may_have_run(self, guest: domain.Domain) -> bool:
        """Return whether the guest may have run since its memory was saved."""
        if not self._resume_requested:
            return False
        _state, reason = guest.state()
        return (self._has_rebooted() or reason not in NOT_RUN_REASONS)

    def _has_rebooted(self) -> bool:
        return durable.boot_id() != self._boot

    def _resume_or_discard(self, guest: domain.Domain) -> None:
        try:
            self.set_clock(self._resume_on_disk())
        except exception.ReleaseFailed as error:
            guest = domain.get(self._driver._host, self._instance)
            if (not self._has_rebooted() or guest.is_active() or
                    self._overlay.is_outstanding()):
                raise
            self._discard(guest, f'the memory can\'t be restored ({error})')

    def _discard(self, guest: domain.Domain, why: str) -> None:
        LOG.warning('The host went down during a snapshot, after the memory '
                    'of the guest was saved, and %s. The saved memory is '
                    'removed: the guest starts from its disk, as after a loss '
                    'of power', why, instance=self._instance)
        guest.remove_managed_save()

    def _resume_if_halted(self, guest: domain.Domain) -> None:
        # libvirtd has died while it saved the memory.
        if self._was_running:
            io_error_pause.resume_if_halted(
                guest, self._instance, io_error_pause.HALTED_REASONS,
                'it was halted since its memory was saved for a snapshot')
