# SPDX-License-Identifier: Apache-2.0
"""A snapshot inside the qcow2 files of a guest, and how it goes again.

libvirt is not told of it in any lasting way: a domain with snapshots that
libvirt knows of can't be undefined, and so the instance not be deleted.
"""

from __future__ import annotations

import typing as ty

import libvirt
from lxml import etree
from nova import exception as nova_exception
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt import host as libvirt_host
from oslo_concurrency import processutils
from oslo_log import log as logging
from oslo_utils import excutils

from nova_snapext import exception
from nova_snapext.freeze import libvirtd
from nova_snapext.freeze import qemu_img
from nova_snapext import journal
from nova_snapext import plan as planning

LOG = logging.getLogger(__name__)

# A guest may come up, or go, between the look at it and the deletion, and
# libvirtd may restart.
ATTEMPTS = 3

# What libvirt, qemu-img, and Nova's way to ask the latter, answer with.
DELETE_ERRORS = (libvirt.libvirtError,
                 processutils.ProcessExecutionError,
                 nova_exception.InvalidDiskInfo)

# Why libvirt stops a guest for a snapshot, and QEMU one that can't write. A
# libvirtd that has died meanwhile does not resume it when it is back (seen
# with 9.0).
HALTED = (libvirt.VIR_DOMAIN_PAUSED_SAVE,
          libvirt.VIR_DOMAIN_PAUSED_SNAPSHOT,
          libvirt.VIR_DOMAIN_PAUSED_IOERROR)


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
    """A snapshot that there is, for libvirt to know of it.

    :ivar domain: definition of the guest
    """

    def __init__(self, name: str, domain: str):
        super().__init__(root_name='domainsnapshot')
        self.name = name
        self.domain = domain

    def format_dom(self) -> etree._Element:
        snapshot = super().format_dom()
        snapshot.append(self._text_node('name', self.name))
        # libvirt wants both. Neither matters to the deletion.
        snapshot.append(self._text_node('state', 'shutoff'))
        snapshot.append(self._text_node('creationTime', 0))
        snapshot.append(etree.fromstring(self.domain))
        return snapshot


class InternalSnapshot(journal.Resource):
    """The snapshot of one guest.

    :ivar name: which tells an operator whose it is
    """

    kind = 'internal snapshot'

    def __init__(self, host: libvirt_host.Host, plan: planning.Plan,
                 paths: list[str]):
        """Name it.

        :param paths: of all files that it may come to be in
        """
        self.name = f'snapext-{plan.image_id}'
        self._host = host
        self._instance = plan.instance
        self._root = plan.disk.path
        self._target = plan.disk.target
        self._paths = paths
        self._runs_free = False

    def record(self) -> dict[str, ty.Any]:
        return {'paths': self._paths, 'runs_free': self._runs_free}

    @classmethod
    def restore(cls, driver: libvirt_driver.LibvirtDriver,
                plan: planning.Plan, record: dict[str, ty.Any],
                ) -> InternalSnapshot:
        snapshot = cls(driver._host, plan, record['paths'])
        snapshot._runs_free = record['runs_free']
        return snapshot

    def __str__(self) -> str:
        return f'the snapshot {self.name} inside {" and ".join(self._paths)}'

    def note(self, guest: libvirt_guest.Guest) -> None:
        """Note how the guest is before its memory is saved."""
        state, _reason = guest._domain.state()
        self._runs_free = state == libvirt.VIR_DOMAIN_RUNNING

    def create(self) -> None:
        """Make it, inside the root disk of a guest that is shut off.

        :raises ProcessExecutionError: the disk is in use, or full
        """
        qemu_img.create_snapshot(self.name, self._root)

    def create_with_memory(self, guest: libvirt_guest.Guest,
                           targets: list[str]) -> None:
        """Make it, inside all disks of a guest that runs or is paused.

        :param targets: the guest's names of these disks
        :raises libvirtError: it can't be made
        """
        guest.snapshot(LibvirtConfigSystemSnapshot(self.name, targets),
                       no_metadata=True)

    def release(self) -> None:
        """Delete it from all files, and have the guest run on if it ran.

        Whatever has become of the guest. libvirtd may be restarting: if it
        died while the memory was saved, nobody else resumes the guest.

        :raises ReleaseFailed: it is still there, or the guest halted
        """
        try:
            self._delete()
        finally:
            self._resume_if_halted()

    def _delete(self) -> None:
        reason = 'QEMU gave no reason'
        for _attempt in range(ATTEMPTS):
            try:
                if self._delete_once():
                    return
            except DELETE_ERRORS as error:
                LOG.warning('Deleting the snapshot %(snapshot)s failed: '
                            '%(error)s',
                            {'snapshot': self.name, 'error': error},
                            instance=self._instance)
                reason = str(error)
        raise exception.ReleaseFailed(
            instance=self._instance.uuid,
            reason=f'its snapshot {self.name} may still be inside '
                   f'{" or ".join(self._paths)}, where it costs space, and '
                   f'can\'t be deleted: {reason}. Shut the guest off, then '
                   f'run "qemu-img snapshot -d {self.name} FILE" for each '
                   f'that has it, and, if libvirt lists it, "virsh '
                   f'snapshot-delete {self._instance.name} {self.name} '
                   f'--metadata"')

    def _delete_once(self) -> bool:
        """Try it.

        :returns: whether no file has it any more
        """
        guest = self._await_active_guest()
        if guest is not None:
            # Whoever asks for this waits for the guest's monitor, where it
            # may just be in the making.
            guest.get_block_device(self._target).get_job_info()
        holders = self._holders()
        if holders and guest is not None:
            self._delete_from_guest(guest)
        elif holders:
            for path in holders:
                qemu_img.delete_snapshot(self.name, path)
        return not self._holders()

    def _resume_if_halted(self) -> None:
        if not self._runs_free:
            return
        guest = self._await_active_guest()
        if guest is None:
            return
        state, reason = guest._domain.state()
        if state == libvirt.VIR_DOMAIN_PAUSED and reason in HALTED:
            LOG.warning('The guest is resumed: it was halted since its '
                        'snapshot, because libvirtd died while its memory '
                        'was saved, or there was no more room for what it '
                        'writes into %s', ' and '.join(self._paths),
                        instance=self._instance)
            try:
                guest.resume()
            except libvirt.libvirtError as error:
                raise exception.ReleaseFailed(
                    instance=self._instance.uuid,
                    reason=f'it has left the guest halted, and resuming it '
                           f'failed: {error}. Resume it with "virsh resume '
                           f'{self._instance.name}"') from error

    def _delete_from_guest(self, guest: libvirt_guest.Guest) -> None:
        """Delete it through libvirt, which has to know of it for that long.

        To tell QEMU past libvirt would taint the domain.
        """
        known = guest._domain.snapshotCreateXML(
            LibvirtConfigKnownSnapshot(
                self.name, guest.get_xml_desc()).to_xml(),
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)
        try:
            known.delete()
        except libvirt.libvirtError:
            with excutils.save_and_reraise_exception():
                known.delete(libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)

    def _await_active_guest(self) -> libvirt_guest.Guest | None:
        """Find the guest, as soon as libvirtd answers.

        :returns: None where there is none, or it is shut off
        :raises ReleaseFailed: libvirtd does not
        """
        try:
            return libvirtd.answer_to(self._active_guest, self._instance)
        except libvirtd.UNREACHABLE as error:
            raise exception.ReleaseFailed(
                instance=self._instance.uuid,
                reason=f'libvirt does not answer '
                       f'({error}), so that the '
                       f'snapshot {self.name} stays inside '
                       f'{" and ".join(self._paths)}, and the guest may be '
                       f'halted. When it does, resume the guest with "virsh '
                       f'resume {self._instance.name}" if it is') from error

    def _active_guest(self) -> libvirt_guest.Guest | None:
        # A guest object of the time of the creation may hold a connection
        # that libvirtd's restart has closed.
        try:
            guest = self._host.get_guest(self._instance)
            return guest if guest.is_active() else None
        except nova_exception.InstanceNotFound:
            return None

    def _holders(self) -> list[str]:
        """List the files that it is in."""
        return [path for path in self._paths
                if qemu_img.holds_snapshot(self.name, path)]
