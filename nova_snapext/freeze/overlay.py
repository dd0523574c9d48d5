# SPDX-License-Identifier: Apache-2.0
"""An overlay over the root disk, for the time of one snapshot.

What the guest writes goes to the overlay, and the disk below it holds still.
Afterwards the overlay is committed into the disk: by QEMU while the guest runs
(an active commit), by qemu-img while it does not.

The overlay is ``disk.snapext`` in Nova's directory of the instance, whatever
storage the disk is on. There Nova's user can make and remove it, whoever owns
it meanwhile: QEMU's user does while the guest runs. QEMU finds its way there
as it does to disks of Nova's. And with the instance Nova deletes it.

While it is outstanding, disk and overlay are one. The disk alone is the guest
of some time ago, and half-way through a commit not even that. So whatever is
found is recognized by the chain itself, before anything is touched, and what
is not recognized is left to the operator.
"""

from __future__ import annotations

import os
import typing as ty

import libvirt
from lxml import etree
from nova import exception as nova_exception
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt import host as libvirt_host
from nova.virt.libvirt import utils as libvirt_utils
from oslo_log import log as logging

from nova_snapext import exception
from nova_snapext.freeze import active_commit
from nova_snapext.freeze import base
from nova_snapext.freeze import chain
from nova_snapext.freeze import jobs
from nova_snapext.freeze import qemu_img
from nova_snapext.freeze import starved
from nova_snapext import plan as planning

LOG = logging.getLogger(__name__)

# https://libvirt.org/html/libvirt-libvirt-domain-snapshot.html: without
# metadata nothing is left in libvirt that would keep a guest from being
# undefined; the file exists, empty, and is Nova's.
SNAPSHOT = (libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY |
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC |
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA |
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT)


class Overlay:
    """The overlay of one snapshot.

    :ivar path: of its file
    """

    def __init__(self, host: libvirt_host.Host, plan: planning.Plan):
        self._host = host
        self._plan = plan
        self._instance = plan.instance
        self._disk = plan.disk
        self._starvation = starved.Starvation(plan.instance)
        self.path = os.path.join(
            libvirt_utils.get_instance_path(plan.instance), 'disk.snapext')

    def create(self, guest: libvirt_guest.Guest) -> None:
        """Make the file, and see that the guest can be put on it.

        :raises GuestBusy: the guest, or its root disk, has a job
        :raises ValueError: it can't be put there
        :raises ProcessExecutionError: the file can't be made
        """
        jobs.check_none_runs(guest, self._instance)
        if guest.is_active():
            jobs.check_none_runs_on(self._disk.target, guest, self._instance)
        self._check_stands_on(self._disk.path, guest)
        capacity, _allocation, _physical = guest._domain.blockInfo(
            self._disk.target)
        try:
            qemu_img.create_overlay(self.path, self._disk, capacity)
        except FileExistsError as error:
            raise ValueError(
                f'{self.path} is there already, of an earlier snapshot. The '
                f'guest is not on it; yet where anything was written to it '
                f'("qemu-img map"), it is for you to decide what of it is '
                f'still needed. Then remove it') from error

    def take(self, guest: libvirt_guest.Guest) -> None:
        """Put a running guest on it: this is the instant of the snapshot.

        :raises libvirtError: libvirt does not do it
        :raises ValueError: it has not done it
        """
        self._starvation.note(guest)
        guest._domain.snapshotCreateXML(self._snapshot(guest).to_xml(),
                                        SNAPSHOT)
        self._check_stands_on(self.path, guest)

    def merge(self) -> None:
        """Bring all that was written to it into the disk, and remove it.

        Whatever has become of the guest meanwhile, and however often this was
        begun before; also when the guest was never put on it. The guest, and
        what it is started from, are then on the disk again.

        :raises ReleaseFailed: that is not so; it says what is and what to do.
            Nothing that the guest wrote is lost
        """
        try:
            while not self._merged():
                LOG.info('The guest was started or stopped while its '
                         'overlay was merged: looking again',
                         instance=self._instance)
        except exception.ReleaseFailed as failed:
            self._fail(failed.kwargs['reason'], failed)
        except (*base.FREEZE_ERRORS, nova_exception.HypervisorUnavailable,
                ) as error:
            self._fail(str(error), error)

    def _merged(self) -> bool:
        """Merge it, with the guest as it is.

        :returns: whether it is done; or else the guest is no longer so
        """
        try:
            guest = self._host.get_guest(self._instance)
            return (self._merge_of_running(guest) if guest.is_active() else
                    self._merge_of_shut_off(guest))
        except nova_exception.InstanceNotFound:
            self._merge_of_undefined()
            return True
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
            return False

    def _merge_of_running(self, guest: libvirt_guest.Guest) -> bool:
        live = chain.find_disk(guest.get_xml_desc(), self._disk.target)
        if chain.path_of(live) == self._disk.path:
            self._remove_unused()
        else:
            if not active_commit.ActiveCommit(
                    self._host, self._plan, self.path).run():
                return False
            guest = self._host.get_guest(self._instance)
            self._put_definition_on_disk(guest)
            self._check_stands_on(self._disk.path, guest)
            self._remove()
            self._starvation.end(guest, os.path.dirname(self.path))
        return True

    def _merge_of_shut_off(self, guest: libvirt_guest.Guest) -> bool:
        paths = {chain.path_of(disk) for disk in self._startable(guest)}
        if self.path not in paths:
            self._remove_unused()
            return True
        if not paths <= {self.path, self._disk.path}:
            raise ValueError(f'its definitions have {paths} as root disk')
        qemu_img.commit(self.path, self._disk)
        self._put_definition_on_disk(guest)
        self._put_saved_state_on_disk(guest)
        # Whoever starts it from now on starts it from the disk; one that was
        # started before is on the overlay again, if on an empty one.
        if guest.is_active():
            return False
        self._check_stands_on(self._disk.path, guest)
        self._remove()
        return True

    def _merge_of_undefined(self) -> None:
        """Merge it into a disk that belongs to no guest at the moment.

        When Nova deletes an instance the guest is undefined last, and there
        is no overlay any more. In a hard reboot the disk is used again.
        """
        if not os.path.exists(self.path):
            return
        if os.path.exists(self._disk.path):
            qemu_img.commit(self.path, self._disk)
        self._remove()

    def _startable(self, guest: libvirt_guest.Guest) -> list[ty.Any]:
        """List the root disks that a guest which is shut off would get."""
        definitions = [guest.get_xml_desc(dump_inactive=True)]
        if guest._domain.hasManagedSaveImage(0):
            definitions.append(guest._domain.managedSaveGetXMLDesc(0))
        return [chain.find_disk(definition, self._disk.target)
                for definition in definitions]

    def _put_definition_on_disk(self, guest: libvirt_guest.Guest) -> None:
        disk = chain.find_disk(
            guest.get_xml_desc(dump_inactive=True), self._disk.target)
        if chain.path_of(disk) == self.path:
            chain.put_on(disk, self._disk)
            # Unlike a definition, this does not bring back a guest that is
            # just being undefined.
            guest._domain.updateDeviceFlags(
                etree.tostring(disk, encoding='unicode', with_tail=False),
                libvirt.VIR_DOMAIN_AFFECT_CONFIG)

    def _put_saved_state_on_disk(self, guest: libvirt_guest.Guest) -> None:
        if not guest._domain.hasManagedSaveImage(0):
            return
        disk = chain.find_disk(guest._domain.managedSaveGetXMLDesc(
            libvirt.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE), self._disk.target)
        if chain.path_of(disk) == self.path:
            chain.put_on(disk, self._disk)
            guest._domain.managedSaveDefineXML(
                etree.tostring(disk.getroottree(), encoding='unicode'), 0)

    def _check_stands_on(self, path: str, guest: libvirt_guest.Guest) -> None:
        """See that the guest, and what it is started from, has a root disk.

        :raises ValueError: it has another one
        """
        for what, inactive in (('runs on', False), ('is defined on', True)):
            disk = chain.find_disk(guest.get_xml_desc(dump_inactive=inactive),
                                   self._disk.target)
            if chain.path_of(disk) != path:
                raise ValueError(
                    f'the guest {what} {chain.path_of(disk)} as '
                    f'{self._disk.target}, and not on {path}')

    def _snapshot(self, guest: libvirt_guest.Guest,
                  ) -> vconfig.LibvirtConfigGuestSnapshot:
        """Describe the snapshot, which leaves all other disks alone.

        libvirt takes one of every disk that is not named.
        """
        snapshot = vconfig.LibvirtConfigGuestSnapshot()
        for target in chain.targets_of(guest.get_xml_desc()):
            disk = vconfig.LibvirtConfigGuestSnapshotDisk()
            disk.name = target
            disk.snapshot = 'no'
            if target == self._disk.target:
                disk.snapshot = 'external'
                disk.source_type = 'file'
                disk.source_path = self.path
            snapshot.add_disk(disk)
        return snapshot

    def _remove_unused(self) -> None:
        """Remove it where nothing was ever written to it."""
        if not os.path.exists(self.path):
            return
        if qemu_img.holds_data(self.path):
            raise ValueError(
                f'the guest is on {self._disk.path} and not on the overlay, '
                f'which it has written to')
        self._remove()

    def _remove(self) -> None:
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            LOG.info('%s is gone already', self.path, instance=self._instance)

    def _fail(self, reason: str, error: Exception) -> ty.NoReturn:
        raise exception.ReleaseFailed(
            instance=self._instance.uuid, reason=reason) from error
