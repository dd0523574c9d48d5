# SPDX-License-Identifier: Apache-2.0
"""An overlay over the root disk, for the duration of one snapshot.

The guest writes to the overlay, and the disk below it does not change.
Afterwards the overlay is merged into the disk: by QEMU while the guest runs
(an active commit), by qemu-img while it does not. See
:mod:`nova_snapext.resources.overlay_merge`.

The overlay is ``disk.snapext`` in Nova's directory of the instance, whatever
storage the disk is on. Nova's user can create and remove it there, even while
QEMU's user owns the file, as it does while the guest runs. QEMU can reach it
as it reaches Nova's disks. Nova deletes it together with the instance.

While it exists, disk and overlay are one. The disk alone is an older state of
the guest, and in the middle of a commit not even that. So the backing chain
itself is checked before anything is changed, and an unexpected chain is left
to the operator.
"""

from __future__ import annotations

import os
import pathlib
import typing as ty

import libvirt
from nova import context as nova_context
from nova import objects
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import host as libvirt_host
from nova.virt.libvirt import utils as libvirt_utils
from oslo_log import log as logging

from nova_snapext import exception
from nova_snapext.hypervisor import chain
from nova_snapext.hypervisor import domain
from nova_snapext.hypervisor import image_header
from nova_snapext.hypervisor import jobs
from nova_snapext.hypervisor import libvirt_files
from nova_snapext.hypervisor import qemu_img
from nova_snapext import journal
from nova_snapext.journal import schema
from nova_snapext import plan as planning
from nova_snapext.resources import disk_definition
from nova_snapext.resources import overlay_files
from nova_snapext.resources import overlay_merge

LOG = logging.getLogger(__name__)

# https://libvirt.org/html/libvirt-libvirt-domain-snapshot.html: without
# metadata nothing stays in libvirt that prevents undefining the guest. The
# file exists already, is empty, and belongs to Nova.
SNAPSHOT_FLAGS = (libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY |
                  libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC |
                  libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA |
                  libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT)

# In Nova's directory of the instance.
NAME = planning.OVERLAY_NAME


def _refuse_to_save() -> ty.NoReturn:
    raise FileNotFoundError('no journal knows the overlay')


def is_guest_paused(record: journal.JournalRecord) -> bool:
    """Return whether a guest may be paused until its overlay is removed.

    :param record: of any kind
    """
    return _write_limit(record).get('paused') is True


def is_guest_slowed(record: journal.JournalRecord) -> bool:
    """Return whether a guest may be paused, or its writes be limited.

    :param record: of any kind
    """
    return is_guest_paused(record) or bool(_write_limit(record).get('limits'))


def _write_limit(record: journal.JournalRecord) -> dict[str, ty.Any]:
    limit = record.data.get('write_limit')
    return (limit if record.kind == Overlay.kind and isinstance(limit, dict)
            else {})


class Overlay(journal.Resource):
    """The overlay of one snapshot.

    :ivar path: the overlay's file
    """

    kind = 'overlay'
    record_schema = schema.object_of(
        path=schema.PATH,
        base_chain=schema.list_of(schema.OPTIONAL_TEXT), qemu=schema.TEXT,
        may_resume=schema.FLAG,
        # See WriteLimit.record().
        write_limit=schema.object_of(
            original=schema.OBJECT, limits=schema.list_of(schema.OBJECT),
            paused=schema.FLAG),
        # See ownership.OwnerNote.
        owner_label=schema.OWNER_LABEL)
    blocks_start = True
    moves_with_disk = True

    def __init__(self, host: libvirt_host.Host, target: planning.Target):
        self._instance = target.instance
        self._disk = target.disk
        self.path = os.path.join(
            libvirt_utils.get_instance_path(target.instance), NAME)
        self._overlay = overlay_merge.overlay_of(target.disk, self.path)
        # The journal binds save() later.
        self._merge = overlay_merge.OverlayMerge(
            host, target, self.path, lambda: self.save())

    def record(self) -> dict[str, ty.Any]:
        return {'path': self.path, **self._merge.record()}

    @classmethod
    def restore(cls, driver: libvirt_driver.LibvirtDriver,
                target: planning.Target,
                record: dict[str, ty.Any]) -> ty.Self:
        overlay = cls(driver._host, target)
        if record['path'] != overlay.path:
            raise exception.JournalRecordError(
                reason=f'the overlay in the journal is {record["path"]}, and '
                       f'that of the instance would be {overlay.path}')
        overlay._merge.restore(record)
        return overlay

    def __str__(self) -> str:
        return f'the overlay {self.path} over {self._disk.path}'

    @classmethod
    def find(cls, driver: libvirt_driver.LibvirtDriver,
             instance: objects.Instance) -> ty.Self | None:
        """Return the overlay of an instance that no journal knows.

        :returns: None if the instance has no overlay. It may be merged
            already, and only be defined or fenced.
        :raises UnexpectedState: it is not over a disk of the instance, or is
            lost
        :raises OSError: it can't be read
        :raises UnexpectedHeader: its header is not that of our overlay
        """
        directory = libvirt_utils.get_instance_path(instance)
        path = os.path.join(directory, NAME)
        files = overlay_files.OverlayFiles(path)
        if not files.exist():
            return None
        disk = files.base()
        if disk is None:
            state = files.state
            if state is overlay_files.MergeState.LOST:
                raise files.lost()
            if state is overlay_files.MergeState.MERGED:
                files.remove_overlay()
                files.remove_fence()
                return None
            disk = _disk_in_header(driver, instance, path)
        found = cls(driver._host, planning.Target(
            context=nova_context.get_admin_context(), instance=instance,
            disk=disk, image_id=''))
        found.save = _refuse_to_save
        return found

    def prepare(self, guest: domain.Domain) -> None:
        """Check that the guest can be switched, and remember its state.

        :raises GuestBusy: the guest, or its root disk, has a job
        :raises UnexpectedState: it does not use its disk
        :raises UnexpectedHeader: a header in its chain is not as expected
        """
        jobs.check_no_job(guest, self._instance)
        jobs.check_no_disk_job(self._disk.target, guest, self._instance)
        disk_definition.check_guest_uses(self._disk, guest)
        self._merge.capture_state(guest)
        # A QEMU that is started again, as after a suspend, follows them.
        image_header.checked_chain(self._disk, self._merge.base_chain[1:])

    def check(self, guest: domain.Domain) -> None:
        """Check beforehand that the guest could be switched.

        :raises GuestBusy: see :meth:`prepare`
        :raises UnexpectedState: see :meth:`prepare`; or the file exists
        :raises UnexpectedHeader: see :meth:`prepare`
        """
        self.prepare(guest)
        if os.path.lexists(self.path):
            raise self._left_by_another()

    def create(self, guest: domain.Domain) -> None:
        """Create the file.

        It is created before :meth:`switch_to_overlay`, to keep the freeze
        short.

        :raises UnexpectedState: the file exists already
        :raises ProcessExecutionError: it can't be created
        """
        try:
            self._merge.files.create(
                self._disk, guest.disk_size(self._disk.target))
        except FileExistsError as error:
            self._merge.foreign = True
            raise self._left_by_another() from error
        LOG.debug('Created the overlay %(path)s over %(disk)s',
                  {'path': self.path, 'disk': self._disk.path},
                  instance=self._instance)

    def switch_to_overlay(self, guest: domain.Domain) -> None:
        """Switch the running guest to it: this is the point in time.

        :raises libvirtError: libvirt refuses
        """
        guest.create_snapshot(self._snapshot_xml(guest), SNAPSHOT_FLAGS)

    def check_switched(self, guest: domain.Domain) -> None:
        """Check that the running guest uses it, and its disk below.

        :raises UnexpectedState: it uses something else
        """
        disk_definition.check_guest_uses(self._overlay, guest)
        paths = disk_definition.live_chain(guest, self._disk.target)
        if not self._merge.is_expected(paths):
            raise exception.UnexpectedState(
                reason=f'the guest uses {chain.text(paths)}, and used '
                       f'{chain.text(self._merge.base_chain)} before')
        self._log_switched()

    def switch_suspended(self, guest: domain.Domain) -> None:
        """Switch a guest whose memory is saved to it, for the resume.

        :raises libvirtError: libvirt refuses
        :raises UnexpectedState: the guest uses something else afterwards
        """
        # The persistent definition first: a guest that starts from it has all
        # data, whatever the definition in its saved memory says.
        disk_definition.move_persistent(guest, self._disk, self._overlay)
        disk_definition.move_saved_memory(guest, self._disk, self._overlay)
        paths = {chain.path_of(disk) for disk in
                 disk_definition.next_start_disks(guest, self._disk.target)}
        if paths != {self.path}:
            raise exception.UnexpectedState(
                reason=f'the suspended guest uses '
                       f'{", ".join(sorted(map(str, paths)))}, and should '
                       f'use {self.path} alone')
        self._log_switched()

    def sync_definition(self) -> None:
        """Make the definition on the overlay survive a loss of power.

        Call it after the switch, when the guest is no longer frozen.

        :raises OSError: it may be undone
        """
        libvirt_files.sync_definition(self._instance.name)

    def is_outstanding(self) -> bool:
        """Return whether its data may still have to be merged.

        :raises UnexpectedState: its directory is out of reach
        """
        return (self._merge.files.state is not
                overlay_files.MergeState.MERGED)

    def release(self) -> None:
        self.merge()

    def merge(self) -> None:
        """Merge all data of the overlay into the disk, and remove it.

        Afterwards the guest uses the disk, now and at its next start. It does
        not matter what happened to the guest, how often a merge was begun
        before, and whether the guest ever used the overlay. An overlay of an
        earlier snapshot is not touched.

        :raises ReleaseFailed: it could not be merged. The error says what the
            guest uses, and what to do. No guest data is lost.
        """
        self._merge.run()

    def _left_by_another(self) -> exception.UnexpectedState:
        return exception.UnexpectedState(
            reason=f'{self.path} exists already. It was left by an earlier '
                   f'snapshot. The guest does not use it, but it may contain '
                   f'guest data. "qemu-img map" shows whether it contains '
                   f'any: if not, remove {self._merge.files.marker}, if that '
                   f'exists, and then the overlay')

    def _log_switched(self) -> None:
        LOG.debug('Switched the guest from %(disk)s to the overlay %(path)s',
                  {'disk': self._disk.path, 'path': self.path},
                  instance=self._instance)

    def _snapshot_xml(self, guest: domain.Domain) -> str:
        """Return the description of a snapshot of the root disk alone."""
        snapshot = vconfig.LibvirtConfigGuestSnapshot()
        # libvirt includes every disk that is not named here.
        for target in chain.targets_of(guest.get_xml_desc()):
            disk = vconfig.LibvirtConfigGuestSnapshotDisk()
            disk.name = target
            disk.snapshot = 'no'
            if target == self._disk.target:
                disk.snapshot = 'external'
                disk.source_type = 'file'
                disk.source_path = self.path
            snapshot.add_disk(disk)
        return str(snapshot.to_xml())


def _disk_in_header(driver: libvirt_driver.LibvirtDriver,
                    instance: objects.Instance,
                    path: str) -> planning.RootDisk:
    """Return the disk that the header of an overlay names.

    :raises UnexpectedState: it is not a disk of the instance
    """
    base, base_format = qemu_img.backing_file(path)
    if (os.path.dirname(base) != os.path.dirname(path) and
            instance.uuid not in os.path.basename(base)):
        raise exception.UnexpectedState(
            reason=f'{path} is an overlay over {base}, which does not '
                   f'belong to this instance. It may contain guest data: '
                   f'find out whose it is, and move it away, together with '
                   f'{path}{overlay_files.MARKER}, if that exists')
    guest = domain.find(driver._host, instance)
    return planning.RootDisk(
        target='' if guest is None
        else planning.find_root_disk(guest, instance).target,
        storage='block' if pathlib.Path(base).is_block_device() else 'file',
        path=base, format=base_format)
