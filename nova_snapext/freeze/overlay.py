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

import contextlib
import dataclasses
import os
import pathlib
import typing as ty

import libvirt
from lxml import etree
from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
import nova.privsep.path
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt import host as libvirt_host
from nova.virt.libvirt import utils as libvirt_utils
from oslo_concurrency import processutils
from oslo_log import log as logging
import psutil

from nova_snapext import exception
from nova_snapext.freeze import active_commit
from nova_snapext.freeze import base
from nova_snapext.freeze import chain
from nova_snapext.freeze import jobs
from nova_snapext.freeze import libvirtd
from nova_snapext.freeze import qemu_img
from nova_snapext.freeze import starved
from nova_snapext import journal
from nova_snapext import monitor
from nova_snapext import plan as planning

LOG = logging.getLogger(__name__)

# https://libvirt.org/html/libvirt-libvirt-domain-snapshot.html: without
# metadata nothing is left in libvirt that would keep a guest from being
# undefined; the file exists, empty, and is Nova's.
SNAPSHOT = (libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY |
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC |
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA |
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT)

# In Nova's directory of the instance.
NAME = 'disk.snapext'

MERGE_ERRORS = (*base.FREEZE_ERRORS,
                *libvirtd.UNREACHABLE,
                exception.CommitFailed,
                nova_exception.InstanceNotFound)


class Overlay(journal.Resource):
    """The overlay of one snapshot.

    :ivar path: of its file
    """

    kind = 'overlay'
    vital = True

    def __init__(self, host: libvirt_host.Host, plan: planning.Plan):
        self._host = host
        self._plan = plan
        self._instance = plan.instance
        self._disk = plan.disk
        self.path = os.path.join(
            libvirt_utils.get_instance_path(plan.instance), NAME)
        self._overlay = dataclasses.replace(
            plan.disk, storage='file', path=self.path, format='qcow2')
        self._below: list[str | None] = []
        self._commit = active_commit.ActiveCommit(
            plan, self.path, self._note_pivot)
        self._starvation = starved.Starvation(plan.instance)
        self._qemu = ''
        # A guest that has left the overlay looks like one that was started
        # from the disk beside it, when nobody remembers.
        self._is_another_s = False
        self._pivoting = False
        self._merged_by_qemu = False

    def record(self) -> dict[str, ty.Any]:
        return {'path': self.path, 'below': self._below,
                'ran': self._starvation.ran, 'qemu': self._qemu,
                'pivoting': self._pivoting, 'merged': self._merged_by_qemu}

    @classmethod
    def restore(cls, driver: libvirt_driver.LibvirtDriver,
                plan: planning.Plan, record: dict[str, ty.Any]) -> Overlay:
        overlay = cls(driver._host, plan)
        if record['path'] != overlay.path:
            raise ValueError(f'the overlay is {record["path"]}, and the '
                             f'instance\'s would be {overlay.path}')
        overlay._below = record['below']
        overlay._starvation.ran = record['ran']
        overlay._qemu = record['qemu']
        overlay._pivoting = record['pivoting']
        overlay._merged_by_qemu = record['merged']
        return overlay

    def __str__(self) -> str:
        return f'the overlay {self.path} over {self._disk.path}'

    @classmethod
    def found(cls, driver: libvirt_driver.LibvirtDriver,
              instance: objects.Instance) -> Overlay | None:
        """Find the overlay of an instance, which no journal tells of.

        :raises ValueError: it is there, and not over a disk of the instance
        :raises ProcessExecutionError: it can't be read
        """
        directory = libvirt_utils.get_instance_path(instance)
        path = os.path.join(directory, NAME)
        if not os.path.exists(path):
            return None
        below, below_format = qemu_img.backing_file(path)
        if (os.path.dirname(below) != directory and
                instance.uuid not in os.path.basename(below)):
            raise ValueError(f'{path} is over {below}, which is not of this '
                             f'instance. It may hold what the guest wrote: '
                             f'find out whose it is, and move it away')
        disk = planning.RootDisk(
            target='', path=below, format=below_format,
            storage='block' if pathlib.Path(below).is_block_device()
            else 'file')
        try:
            guest = driver._host.get_guest(instance)
            disk = dataclasses.replace(
                disk, target=planning.root_disk(guest).target)
        except nova_exception.InstanceNotFound:
            guest = ty.cast(libvirt_guest.Guest, None)
        return cls(driver._host, planning.Plan(
            context=nova_context.get_admin_context(), instance=instance,
            guest=guest, running=False, disk=disk, image_id='',
            image_format='', image_properties={}, metadata={}))

    def prepare(self, guest: libvirt_guest.Guest) -> None:
        """See that the running guest can be put on it, and note how it is.

        :raises GuestBusy: the guest, or its root disk, has a job
        :raises ValueError: it can't be put there
        """
        jobs.check_none_runs(guest, self._instance)
        jobs.check_none_runs_on(self._disk.target, guest, self._instance)
        self._below = self._live_chain(guest)
        self._check_stands_on(self._disk, guest)
        self._starvation.note(guest)
        self._qemu = _qemu_of(guest)

    def create(self, guest: libvirt_guest.Guest) -> None:
        """Make the file.

        Apart from :meth:`take`, as that is the moment that counts.

        :raises ValueError: there is one already
        :raises ProcessExecutionError: it can't be made
        """
        capacity, _allocation, _physical = guest._domain.blockInfo(
            self._disk.target)
        try:
            qemu_img.create_overlay(self.path, self._disk, capacity)
        except FileExistsError as error:
            self._is_another_s = True
            raise ValueError(
                f'{self.path} is there already. It is of an earlier snapshot, '
                f'and the guest is not on it; yet it may hold what the guest '
                f'wrote. "qemu-img map" shows whether it holds anything: if '
                f'not, remove it') from error

    def take(self, guest: libvirt_guest.Guest) -> None:
        """Put the running guest on it: this is the instant of the snapshot.

        :raises libvirtError: libvirt does not do it
        :raises ValueError: it has done something else
        """
        guest._domain.snapshotCreateXML(self._snapshot(guest).to_xml(),
                                        SNAPSHOT)
        self._check_stands_on(self._overlay, guest)
        paths = self._live_chain(guest)
        if paths != [self.path, *self._below]:
            raise ValueError(f'the guest runs on {chain.text(paths)}, and '
                             f'was on {chain.text(self._below)}')

    def take_suspended(self, guest: libvirt_guest.Guest) -> None:
        """Put a guest whose memory is saved on it, for when it is resumed.

        :raises libvirtError: libvirt does not do it
        :raises ValueError: it has done something else
        """
        # The definition first: a guest that is started from it has all that
        # was written, wherever its saved memory leads.
        self._move_definition(guest, self._disk, self._overlay)
        self._move_saved_state(guest, self._disk, self._overlay)
        paths = {chain.path_of(disk) for disk in self._startable(guest)}
        if paths != {self.path}:
            raise ValueError(f'the guest, suspended, is on {paths} and not '
                             f'on {self.path} alone')

    def release(self) -> None:
        if not self._is_another_s:
            self.merge()

    def merge(self) -> None:
        """Bring all that was written to it into the disk, and remove it.

        Whatever has become of the guest meanwhile, however often this was
        begun before, and also when the guest was never put on it. The guest,
        and what it is started from, are then on the disk again.

        :raises ReleaseFailed: that is not so; it says what is, and what to
            do. Nothing that the guest has written is lost.
        """
        try:
            while not libvirtd.outlived(self._host, self._merged,
                                        self._instance):
                LOG.info('The guest was started or stopped while the overlay '
                         'was merged: looking again', instance=self._instance)
        except MERGE_ERRORS as error:
            if self._is_being_deleted():
                LOG.info('The overlay is not merged: Nova is deleting the '
                         'instance, and it with it', instance=self._instance)
                return
            raise exception.ReleaseFailed(
                instance=self._instance.uuid,
                reason=f'the overlay {self.path} could not be merged into '
                       f'the root disk {self._disk.path}: {error}. '
                       f'{self._remedy()}') from error

    def _is_being_deleted(self) -> bool:
        """Tell whether Nova is deleting the instance, and has its files."""
        # Files alone may only be out of reach.
        if os.path.exists(os.path.dirname(self.path)):
            return False
        try:
            return monitor.InstanceLook(
                self._plan.context, self._instance)() is not None
        except Exception as error:
            LOG.warning('Whether the instance is being deleted can\'t be '
                        'told: %s', error, instance=self._instance)
            return False

    def _merged(self) -> bool:
        """Merge it, with the guest as it is.

        :returns: whether it is done; or else the guest has changed meanwhile
        """
        running = self._is_running()
        if running is None:
            self._merge_of_undefined()
            return True
        try:
            guest = self._host.get_guest(self._instance)
            return (self._merge_of_running(guest) if running else
                    self._merge_of_shut_off(guest))
        except libvirt.libvirtError:
            if self._is_running() == running:
                raise
            return False

    def _is_running(self) -> bool | None:
        """Tell whether the guest is running; None when it is undefined."""
        try:
            return bool(self._host.get_guest(self._instance).is_active())
        except nova_exception.InstanceNotFound:
            return None

    def _merge_of_running(self, guest: libvirt_guest.Guest) -> bool:
        # What libvirt was told by a connection that is lost it may still be
        # doing: it answers this when it has nothing else to do.
        guest._domain.blockJobInfo(self._disk.target)
        state = self._commit.run(guest)
        if state is active_commit.State.ENDED:
            return False
        if (state is active_commit.State.NOT_THERE and
                not self._has_left(guest)):
            self._remove_unwritten()
            return True
        self._merged_by_qemu = True
        self._note()
        self._move_definition(guest, self._overlay, self._disk)
        if self._live_chain(guest)[0] == self._disk.path:
            self._check_stands_on(self._disk, guest)
        else:
            self._forget_chain(guest)
        self._remove()
        self._starvation.end(guest, os.path.dirname(self.path))
        return True

    def _merge_of_shut_off(self, guest: libvirt_guest.Guest) -> bool:
        disks = self._startable(guest)
        paths = {chain.path_of(disk) for disk in disks}
        if not paths <= {self.path, self._disk.path}:
            self._merge_below(guest, disks)
            return True
        if self.path not in paths:
            # Only libvirt brings the definition back, when QEMU has left the
            # overlay; Nova never writes one while there is an overlay.
            if self._pivoting or self._merged_by_qemu:
                self._remove()
            else:
                self._remove_unwritten()
            return True
        if not self._merged_by_qemu:
            self._commit_without_guest()
        self._move_definition(guest, self._overlay, self._disk)
        self._move_saved_state(guest, self._overlay, self._disk)
        # From now on it starts from the disk. If it was started before, it is
        # on the overlay again, which is empty then, and still needed.
        if guest.is_active():
            return False
        self._check_stands_on(self._disk, guest)
        self._remove()
        return True

    def _merge_below(self, guest: libvirt_guest.Guest,
                     disks: list[etree._Element]) -> None:
        """Take it out from below overlays of somebody else's."""
        for disk in disks:
            top = chain.path_of(disk)
            if top in (None, self.path, self._disk.path):
                raise ValueError(f'the guest is defined on {top} and others')
            self._take_out(str(top), disk.find('driver').get('type'))
        self._forget_chain(guest)
        self._remove()

    def _forget_chain(self, guest: libvirt_guest.Guest) -> None:
        """Have libvirt find the chain anew when the guest is started."""
        disk = chain.find_disk(guest.get_xml_desc(dump_inactive=True),
                               self._disk.target)
        if self.path in chain.paths_of(disk):
            for below in disk.findall('backingStore'):
                disk.remove(below)
            guest._domain.updateDeviceFlags(
                etree.tostring(disk, encoding='unicode', with_tail=False),
                libvirt.VIR_DOMAIN_AFFECT_CONFIG)

    def _take_out(self, top: str, top_format: str) -> None:
        paths = qemu_img.backing_chain(top, top_format)
        if self.path not in paths:
            if self._disk.path in paths and not os.path.exists(self.path):
                return
            raise ValueError(f'the guest is defined on {chain.text(paths)}, '
                             f'which the overlay is not part of')
        self._commit_without_guest()
        # Emptied by the commit, it reads as the disk does.
        qemu_img.put_below(paths[paths.index(self.path) - 1], 'qcow2',
                           self._disk)

    def _merge_of_undefined(self) -> None:
        """Merge it into a disk that is no guest's at the moment.

        When Nova deletes an instance, its files go before its definition: an
        overlay that is there is one that is needed, as in a hard reboot.
        """
        if not os.path.exists(self.path):
            return
        if self._merged_by_qemu:
            self._remove()
            return
        if self._pivoting:
            raise ValueError(
                'the guest was leaving it when it vanished: whether it has '
                'written to the disk alone since then can\'t be told')
        try:
            self._commit_without_guest()
        except (processutils.ProcessExecutionError, FileNotFoundError):
            if os.path.exists(self.path):
                raise
        self._remove()

    def _note_pivot(self) -> None:
        if not self._pivoting:
            self._pivoting = True
            self._note()

    def _note(self) -> None:
        """Have the journal know how far the merge is."""
        try:
            self.renew()
        except OSError as error:
            # A guest that stays on the overlay, on a host without room, is
            # worse than a crash in just this moment.
            LOG.warning('How far the merge of the overlay %(path)s is could '
                        'not be written down: %(error)s',
                        {'path': self.path, 'error': error},
                        instance=self._instance)

    def _has_left(self, guest: libvirt_guest.Guest) -> bool:
        """Tell whether a guest that runs on the disk was on the overlay."""
        if self._merged_by_qemu:
            return True
        if not self._pivoting:
            return False
        # The QEMU that was on it can't be on the disk by any other way; and
        # libvirt brings the definition back when QEMU has left the overlay.
        return (_qemu_of(guest) == self._qemu or self._disk.path == (
            chain.path_of(chain.find_disk(
                guest.get_xml_desc(dump_inactive=True),
                self._disk.target))))

    def _commit_without_guest(self) -> None:
        # libvirt remembers whose a guest's disk was. The snapshot takes this
        # from the disk to the overlay, which is therefore given back when the
        # guest ends, and not the disk.
        owned, left = os.stat(self.path), os.stat(self._disk.path)
        if (left.st_uid, left.st_gid) != (owned.st_uid, owned.st_gid):
            nova.privsep.path.chown(
                self._disk.path, uid=owned.st_uid, gid=owned.st_gid)
        qemu_img.commit(self.path, self._disk)

    def _startable(self, guest: libvirt_guest.Guest) -> list[etree._Element]:
        """List the root disks that a guest may get at its next start."""
        definitions = [guest.get_xml_desc(dump_inactive=True)]
        if guest._domain.hasManagedSaveImage(0):
            definitions.append(guest._domain.managedSaveGetXMLDesc(0))
        return [chain.find_disk(definition, self._disk.target)
                for definition in definitions]

    def _move_definition(self, guest: libvirt_guest.Guest,
                         old: planning.RootDisk,
                         new: planning.RootDisk) -> None:
        """Put what the guest is started from on another disk."""
        disk = chain.find_disk(guest.get_xml_desc(dump_inactive=True),
                               self._disk.target)
        path = chain.path_of(disk)
        # libvirt may have brought it back itself, with a chain that it had
        # found in the live one; what is written down can become wrong.
        chained = path == new.path and disk.find('backingStore') is not None
        if path != old.path and not chained:
            return
        chain.put_on(disk, new)
        # Unlike the definition of a domain, this can't bring one back that is
        # being undefined at the same time.
        guest._domain.updateDeviceFlags(
            etree.tostring(disk, encoding='unicode', with_tail=False),
            libvirt.VIR_DOMAIN_AFFECT_CONFIG)

    def _move_saved_state(self, guest: libvirt_guest.Guest,
                          old: planning.RootDisk,
                          new: planning.RootDisk) -> None:
        """Put what a suspended guest is resumed from on another disk."""
        if not guest._domain.hasManagedSaveImage(0):
            return
        disk = chain.find_disk(
            guest._domain.managedSaveGetXMLDesc(
                libvirt.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE), self._disk.target)
        if chain.path_of(disk) != old.path:
            return
        chain.put_on(disk, new)
        guest._domain.managedSaveDefineXML(
            etree.tostring(disk.getroottree(), encoding='unicode'), 0)

    def _live_chain(self, guest: libvirt_guest.Guest) -> list[str | None]:
        return chain.paths_of(
            chain.find_disk(guest.get_xml_desc(), self._disk.target))

    def _check_stands_on(self, disk: planning.RootDisk,
                         guest: libvirt_guest.Guest) -> None:
        """See that a guest has a root disk now, and at its next start.

        :raises ValueError: it has another one
        """
        for when, inactive in (('now', False), ('when it is started', True)):
            path = chain.path_of(chain.find_disk(
                guest.get_xml_desc(dump_inactive=inactive),
                self._disk.target))
            if path != disk.path:
                raise ValueError(f'the guest has {path} as {disk.target} '
                                 f'{when}, and should have {disk.path}')

    def _snapshot(
        self, guest: libvirt_guest.Guest,
    ) -> vconfig.LibvirtConfigGuestSnapshot:
        snapshot = vconfig.LibvirtConfigGuestSnapshot()
        # libvirt also takes one of every disk that is not named here.
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

    def _remove_unwritten(self) -> None:
        """Remove it, if nothing was ever written to it.

        :raises ValueError: something was
        :raises ProcessExecutionError: somebody has it open
        """
        if not os.path.exists(self.path):
            return
        if qemu_img.holds_data(self.path):
            raise ValueError('the guest is not on the overlay any more, which '
                             'it has written to')
        self._remove()

    def _remove(self) -> None:
        # With the instance Nova deletes it.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)

    def _remedy(self) -> str:
        """Say how the guest stands, and what the operator can do about it."""
        name, target, disk = (
            self._instance.name, self._disk.target, self._disk.path)
        try:
            guest = self._host.get_guest(self._instance)
            running = guest.is_active()
            paths = self._live_chain(guest)
        except MERGE_ERRORS as error:
            return (f'How the guest stands can\'t be told ({error}). Do not '
                    f'start it from {disk} before that is known')
        if paths[0] != self.path:
            return (f'The guest, which is {"running" if running else "off"}, '
                    f'is on {chain.text(paths)}, and nothing was touched. If '
                    f'it has not been started from {disk} since the snapshot, '
                    f'stop it and run "qemu-img commit -f qcow2 {self.path}"; '
                    f'otherwise disk and overlay hold two histories, and only '
                    f'one of them can be kept. Then remove {self.path}')
        if running:
            return (f'The guest runs on, on {chain.text(paths)}, and nothing '
                    f'is lost. End what is in the way, if anything ("virsh '
                    f'blockjob {name} {target}"), then "virsh blockcommit '
                    f'{name} {target} --base {disk} --top {self.path} '
                    f'--active --pivot", and remove {self.path}')
        return (f'The guest is off, and defined on {self.path}, and nothing '
                f'is lost: it can be started so. Or run "qemu-img commit -f '
                f'qcow2 {self.path}", replace the source of {target} by '
                f'{disk} ("virsh edit {name}"; its format is '
                f'{self._disk.format}), and remove {self.path}')


def _qemu_of(guest: libvirt_guest.Guest) -> str:
    """Tell a guest's QEMU from any other that it has had, or will have."""
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    # libvirt's own number begins anew where it has no guests. Where other
    # users' processes are hidden, it has to do.
    began = [process.info['create_time'] for process
             in psutil.process_iter(['cmdline', 'create_time'])
             if guest.uuid in (process.info['cmdline'] or ())]
    return f'{boot} {guest.id} {began}'
