# SPDX-License-Identifier: Apache-2.0
"""A snapshot inside the qcow2 files of a guest.

libvirt keeps no metadata of it: Nova can't undefine a domain whose snapshots
libvirt knows, and so could not delete the instance.
"""

from __future__ import annotations

import typing as ty

import libvirt
from lxml import etree
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import host as libvirt_host
from oslo_concurrency import processutils
from oslo_log import log as logging
from oslo_utils import excutils

from nova_snapext import exception
from nova_snapext.hypervisor import connection
from nova_snapext.hypervisor import domain
from nova_snapext.hypervisor import io_error_pause
from nova_snapext.hypervisor import qemu_img
from nova_snapext import journal
from nova_snapext.journal import schema
from nova_snapext import plan as planning

LOG = logging.getLogger(__name__)

# The guest may start or stop between the check of its state and the
# deletion, and libvirtd may restart.
ATTEMPTS = 3

# Errors of libvirt, of qemu-img, and of the files themselves.
DELETE_ERRORS = (libvirt.libvirtError,
                 processutils.ProcessExecutionError,
                 OSError)


class LibvirtConfigSystemSnapshot(vconfig.LibvirtConfigGuestSnapshot):
    """A snapshot of disks and memory, all of it inside the disks.

    https://libvirt.org/formatsnapshot.html
    """

    def __init__(self, name: str, targets: list[str]):
        super().__init__()
        self.name = name
        for target in targets:
            disk = vconfig.LibvirtConfigGuestSnapshotDisk()
            disk.name = target
            disk.snapshot = 'internal'
            self.add_disk(disk)

    def format_dom(self) -> etree._Element:
        snapshot = super().format_dom()
        etree.SubElement(snapshot, 'memory', snapshot='internal')
        return snapshot


class LibvirtConfigKnownSnapshot(vconfig.LibvirtConfigObject):
    """A snapshot that exists, as metadata for libvirt.

    :ivar domain: definition of the guest
    """

    def __init__(self, name: str, domain: str):
        super().__init__(root_name='domainsnapshot')
        self.name = name
        self.domain = domain

    def format_dom(self) -> etree._Element:
        snapshot = super().format_dom()
        snapshot.append(self._text_node('name', self.name))
        # libvirt requires both. Neither matters to the deletion. If libvirtd
        # restarts during it, it does not load metadata with this time again
        # (seen with 9.0).
        snapshot.append(self._text_node('state', 'shutoff'))
        snapshot.append(self._text_node('creationTime', 0))
        snapshot.append(etree.fromstring(self.domain))
        return snapshot


class InternalSnapshot(journal.Resource):
    """The internal snapshot of one guest.

    Recorded: the paths of all files that may contain it, and whether the
    guest ran. Restored: as recorded. Released: deleted from all files, by
    libvirt if the guest is active, by qemu-img otherwise; and the guest is
    resumed if it ran and was halted.

    :ivar name: tells operators that it is ours, and which image it is for
    """

    kind = 'internal snapshot'
    record_schema = schema.object_of(
        paths=schema.list_of(schema.PATH), was_running=schema.FLAG)
    moves_with_disk = True

    def __init__(self, host: libvirt_host.Host, target: planning.Target,
                 paths: list[str]):
        """Name the snapshot.

        :param paths: of all files that may contain it
        """
        self.name = f'snapext-{target.image_id}'
        self._host = host
        self._instance = target.instance
        self._disk = target.disk
        self._paths = paths
        self._was_running = False

    def record(self) -> dict[str, ty.Any]:
        return {'paths': self._paths, 'was_running': self._was_running}

    @classmethod
    def restore(cls, driver: libvirt_driver.LibvirtDriver,
                target: planning.Target,
                record: dict[str, ty.Any]) -> InternalSnapshot:
        snapshot = cls(driver._host, target, record['paths'])
        snapshot._was_running = record['was_running']
        return snapshot

    def __str__(self) -> str:
        return f'the snapshot {self.name} inside {" and ".join(self._paths)}'

    def capture_state(self, guest: domain.Domain) -> None:
        """Remember whether the guest runs before its memory is saved."""
        state, _reason = guest.state()
        self._was_running = state == libvirt.VIR_DOMAIN_RUNNING

    def create(self) -> None:
        """Create it, inside the root disk of a guest that is shut off.

        :raises ProcessExecutionError: the disk is in use, or full
        :raises UnexpectedHeader: its header is not as expected
        """
        qemu_img.create_snapshot(self.name, self._disk.path)

    def create_with_memory(self, guest: domain.Domain,
                           targets: list[str]) -> None:
        """Create it, inside all disks of a guest that runs or is paused.

        :param targets: the guest's names of these disks
        :raises libvirtError: it can't be created
        """
        guest.snapshot(LibvirtConfigSystemSnapshot(self.name, targets),
                       no_metadata=True)
        LOG.debug('The internal snapshot %s is created, with the memory',
                  self.name, instance=self._instance)

    def release(self) -> None:
        """Delete it from all files, and resume the guest if it ran.

        The guest may be in any state. libvirtd may be restarting: if it died
        while it saved the memory, it does not resume the guest.

        :raises ReleaseFailed: the snapshot still exists, or the guest is
            halted
        """
        try:
            self._delete()
        finally:
            self._resume_if_halted()

    def _delete(self) -> None:
        reason = 'QEMU reported no error'
        for _attempt in range(ATTEMPTS):
            try:
                if self._delete_once():
                    return
            except exception.UnexpectedHeader as error:
                raise exception.ReleaseFailed(
                    instance=self._instance.uuid,
                    reason=f'its snapshot {self.name} is not deleted. {error}',
                ) from error
            except DELETE_ERRORS as error:
                LOG.warning('Could not delete the snapshot %(snapshot)s: '
                            '%(error)s',
                            {'snapshot': self.name, 'error': error},
                            instance=self._instance)
                reason = str(error)
        raise exception.ReleaseFailed(
            instance=self._instance.uuid,
            reason=f'its snapshot {self.name} can\'t be deleted ({reason}). '
                   f'It may still be inside {" or ".join(self._paths)}, and '
                   f'use space there. Shut the guest off, then run "qemu-img '
                   f'snapshot -d {self.name} FILE" for each file that '
                   f'contains it and, if libvirt lists it, "virsh '
                   f'snapshot-delete {self._instance.name} {self.name} '
                   f'--metadata"')

    def _delete_once(self) -> bool:
        """Try to delete it.

        :returns: whether no file contains it any more, and libvirt does not
            know it
        """
        guest = self._wait_for_guest()
        active = guest if guest is not None and guest.is_active() else None
        if active is not None:
            # This call waits for the guest's monitor. A creation that
            # libvirt still carries out is over after it.
            active.get_block_device(self._disk.target).get_job_info()
        containing = self._files_with_it()
        if containing and active is not None:
            self._delete_from_guest(active)
        elif containing:
            for path in containing:
                qemu_img.delete_snapshot(self.name, path)
        if self._files_with_it():
            return False
        if guest is not None:
            # An earlier deletion from the guest may have been interrupted.
            guest.forget_snapshot(self.name)
        if containing:
            LOG.debug('The internal snapshot %(snapshot)s is deleted from '
                      '%(paths)s', {'snapshot': self.name,
                                    'paths': ' and '.join(containing)},
                      instance=self._instance)
        return True

    def _resume_if_halted(self) -> None:
        if not self._was_running:
            return
        guest = self._wait_for_guest()
        if guest is None:
            return
        try:
            io_error_pause.resume_if_halted(
                guest, self._instance, io_error_pause.HALTED_REASONS,
                f'it was halted since its snapshot, because libvirtd died '
                f'while it saved the guest\'s memory, or because '
                f'{" and ".join(self._paths)} had no space for its writes')
        except libvirt.libvirtError as error:
            raise exception.ReleaseFailed(
                instance=self._instance.uuid,
                reason=f'the guest is halted, and could not be resumed: '
                       f'{error}. Resume it with "virsh resume '
                       f'{self._instance.name}"') from error

    def _delete_from_guest(self, guest: domain.Domain) -> None:
        """Delete it through libvirt, which needs its metadata for this.

        A QEMU command that bypasses libvirt would taint the domain.
        """
        known = guest.create_snapshot(
            LibvirtConfigKnownSnapshot(
                self.name, guest.get_xml_desc()).to_xml(),
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)
        try:
            known.delete()
        except libvirt.libvirtError:
            with excutils.save_and_reraise_exception():
                known.delete(libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)

    def _wait_for_guest(self) -> domain.Domain | None:
        """Return the guest, as soon as libvirtd answers; None without one.

        :raises ReleaseFailed: libvirtd does not answer
        """
        try:
            return connection.call_when_reachable(
                lambda: domain.find(self._host, self._instance),
                self._instance)
        except connection.UNREACHABLE as error:
            raise exception.ReleaseFailed(
                instance=self._instance.uuid,
                reason=f'libvirtd does not answer ({error}). The snapshot '
                       f'{self.name} stays inside '
                       f'{" and ".join(self._paths)}, and the guest may be '
                       f'halted. When libvirtd answers, resume a halted '
                       f'guest with "virsh resume {self._instance.name}"',
            ) from error

    def _files_with_it(self) -> list[str]:
        return [path for path in self._paths
                if qemu_img.holds_snapshot(self.name, path)]
