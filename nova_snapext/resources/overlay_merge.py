# SPDX-License-Identifier: Apache-2.0
"""The merge of an overlay into its disk, and the table that drives it.

Each step of a merge finds the guest's condition, reads the overlay's state and
takes the action of that cell of :data:`ACTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable
import contextlib
import dataclasses
import enum
import os
import pathlib
import typing as ty

import libvirt
from nova import exception as nova_exception
from nova.virt.libvirt import host as libvirt_host
from oslo_concurrency import processutils
from oslo_log import log as logging
import psutil

from nova_snapext import checks
from nova_snapext import exception
from nova_snapext.hypervisor import block_commit
from nova_snapext.hypervisor import chain
from nova_snapext.hypervisor import connection
from nova_snapext.hypervisor import domain
from nova_snapext.hypervisor import errors
from nova_snapext.hypervisor import io_error_pause
from nova_snapext.hypervisor import qemu_img
from nova_snapext import plan as planning
from nova_snapext.resources import disk_definition
from nova_snapext.resources import offline_commit

LOG = logging.getLogger(__name__)

# Errors that libvirt, QEMU's programs, the host or the guest cause. A bug of
# ours is none of them: it propagates as it is.
MERGE_ERRORS: tuple[type[Exception], ...] = (
    *errors.HYPERVISOR_ERRORS,
    *connection.UNREACHABLE,
    nova_exception.InstanceNotFound,
)


class MergeState(enum.Enum):
    """What is known of an overlay. Its name is written into the journal.

    It is written down because a guest that has left the overlay looks like a
    guest that somebody started from the disk alone.
    """

    FOREIGN = enum.auto()       # an earlier snapshot left it: never merged
    OUTSTANDING = enum.auto()   # it may contain data that the disk does not
    PIVOTING = enum.auto()      # QEMU may have been told to leave it
    MERGED = enum.auto()        # QEMU has left it: the disk has all guest data


class GuestState(enum.Enum):
    """What the guest uses when a step of the merge begins."""

    # A QEMU process exists. The block commit reads its chain.
    RUNNING = enum.auto()
    # The block commit saw this QEMU leave the overlay for the disk.
    RUNNING_LEFT = enum.auto()
    # This QEMU uses the disk, and the block commit never saw it elsewhere.
    RUNNING_ON_DISK = enum.auto()
    # Shut off. The next start, or the resume, uses the overlay.
    OFF_ON_OVERLAY = enum.auto()
    # Shut off. The next start uses the disk.
    OFF_ON_DISK = enum.auto()
    # Shut off. The next start uses an overlay that somebody else created.
    OFF_ON_OTHER = enum.auto()
    # No domain, but the overlay's file exists.
    UNDEFINED = enum.auto()
    # Neither the domain nor the overlay's file exists.
    DELETED = enum.auto()


class Action(enum.Enum):
    """What a step of the merge does."""

    NOTHING = enum.auto()
    # QEMU commits the overlay and leaves it. Then the cell of RUNNING_LEFT or
    # RUNNING_ON_DISK applies, or the guest has ended and the next step begins.
    BLOCK_COMMIT = enum.auto()
    # Write MERGED into the journal, put the definition back, remove the file.
    FINISH = enum.auto()
    # FINISH if this QEMU was on the overlay, otherwise REMOVE_IF_EMPTY.
    FINISH_IF_LEFT = enum.auto()
    # qemu-img commits, then MOVE_BACK.
    OFFLINE_COMMIT = enum.auto()
    # Put definition and saved memory back, remove the file.
    MOVE_BACK = enum.auto()
    # qemu-img commits, and the disk replaces the overlay in the chain below
    # the overlay of somebody else.
    REMOVE_FROM_CHAIN = enum.auto()
    # qemu-img commits, no definition is there to be put back.
    COMMIT_UNDEFINED = enum.auto()
    REMOVE = enum.auto()
    # Fail if the overlay contains data, otherwise REMOVE.
    REMOVE_IF_EMPTY = enum.auto()
    # Touch nothing, and leave it to the operator.
    REFUSE = enum.auto()


# A FOREIGN overlay has no cell: it is not touched, whatever the guest does.
ACTIONS: dict[GuestState, dict[MergeState, Action]] = {
    GuestState.RUNNING: {
        MergeState.OUTSTANDING: Action.BLOCK_COMMIT,
        MergeState.PIVOTING: Action.BLOCK_COMMIT,
        MergeState.MERGED: Action.BLOCK_COMMIT,
    },
    GuestState.RUNNING_LEFT: {
        MergeState.OUTSTANDING: Action.FINISH,
        MergeState.PIVOTING: Action.FINISH,
        MergeState.MERGED: Action.FINISH,
    },
    GuestState.RUNNING_ON_DISK: {
        # It was never switched to the overlay, or was started from the disk.
        MergeState.OUTSTANDING: Action.REMOVE_IF_EMPTY,
        MergeState.PIVOTING: Action.FINISH_IF_LEFT,
        MergeState.MERGED: Action.FINISH,
    },
    GuestState.OFF_ON_OVERLAY: {
        MergeState.OUTSTANDING: Action.OFFLINE_COMMIT,
        MergeState.PIVOTING: Action.OFFLINE_COMMIT,
        MergeState.MERGED: Action.MOVE_BACK,
    },
    GuestState.OFF_ON_DISK: {
        MergeState.OUTSTANDING: Action.REMOVE_IF_EMPTY,
        # Only libvirt puts the definition back, when QEMU has left the
        # overlay. Nova defines no guest while it has an overlay.
        MergeState.PIVOTING: Action.REMOVE,
        MergeState.MERGED: Action.REMOVE,
    },
    GuestState.OFF_ON_OTHER: {
        MergeState.OUTSTANDING: Action.REMOVE_FROM_CHAIN,
        MergeState.PIVOTING: Action.REMOVE_FROM_CHAIN,
        MergeState.MERGED: Action.REMOVE_FROM_CHAIN,
    },
    # When Nova deletes an instance, it deletes the files before it undefines
    # the domain. So an overlay that still exists is needed, as in a hard
    # reboot.
    GuestState.UNDEFINED: {
        MergeState.OUTSTANDING: Action.COMMIT_UNDEFINED,
        # The guest may have written to the disk alone since then.
        MergeState.PIVOTING: Action.REFUSE,
        MergeState.MERGED: Action.REMOVE,
    },
    GuestState.DELETED: {
        MergeState.OUTSTANDING: Action.NOTHING,
        MergeState.PIVOTING: Action.NOTHING,
        MergeState.MERGED: Action.NOTHING,
    },
}


class OverlayMerge:
    """The merge of one overlay, which may be repeated in another process.

    :ivar state: what is known of the overlay
    """

    def __init__(self, host: libvirt_host.Host, target: planning.Target,
                 path: str, save: Callable[[], None]):
        """Create a merge that has not begun.

        :param path: the overlay's file
        :param save: writes the state into the journal
        """
        self.state = MergeState.OUTSTANDING
        self._host = host
        self._target = target
        self._instance = target.instance
        self._disk = target.disk
        self._path = path
        self._overlay = overlay_of(target.disk, path)
        self._save = save
        self._commit = block_commit.ActiveCommit(
            target, path, self._before_pivot)
        self._pause = io_error_pause.IoErrorPause(target.instance)
        self._qemu = ''

    def record(self) -> dict[str, ty.Any]:
        """Return the journal's part of the record of the overlay."""
        return {'state': self.state.name, 'qemu': self._qemu,
                'was_running': self._pause.was_running}

    def restore(self, record: dict[str, ty.Any]) -> None:
        """Take over the values of an overlay's record.

        :raises JournalRecordError: the state is unknown
        """
        try:
            self.state = MergeState[record['state']]
        except KeyError as error:
            raise exception.JournalRecordError(
                reason=f'the overlay {self._path} has no state that this '
                       f'version knows: {error}') from error
        self._qemu = record['qemu']
        self._pause.was_running = record['was_running']

    def capture_state(self, guest: domain.Domain) -> None:
        """Remember the guest as it is before the overlay is created."""
        self._pause.capture_state(guest)
        self._qemu = qemu_identity(guest)

    def run(self) -> None:
        """Merge the overlay into the disk, and remove it.

        See :meth:`nova_snapext.resources.overlay.Overlay.merge`.

        :raises ReleaseFailed: the overlay could not be merged
        """
        if self.state is MergeState.FOREIGN:
            return
        try:
            while not connection.retry_on_disconnect(
                    self._host, self._step, self._instance):
                LOG.info('The guest was started or stopped while the overlay '
                         'was merged: checking it again',
                         instance=self._instance)
        except MERGE_ERRORS as error:
            if _is_being_deleted(self._target, self._path):
                LOG.info('The overlay is not merged: Nova is deleting the '
                         'instance with all its files',
                         instance=self._instance)
                return
            raise exception.ReleaseFailed(
                instance=self._instance.uuid,
                reason=f'the overlay {self._path} could not be merged into '
                       f'the root disk {self._disk.path}: {error}. '
                       f'{remedy(self._host, self._target, self._path)}',
            ) from error

    def _step(self) -> bool:
        """Take the action for the guest as it is.

        :returns: whether the merge is done; False if the guest has changed
        """
        guest = domain.find(self._host, self._instance)
        running = _is_running(guest)
        try:
            return self._act(self._guest_state(guest, running), guest)
        except libvirt.libvirtError:
            if _is_running(
                    domain.find(self._host, self._instance)) == running:
                raise
            return False

    def _guest_state(self, guest: domain.Domain | None,
                     running: bool | None) -> GuestState:
        if guest is None:
            return (GuestState.UNDEFINED if os.path.exists(self._path)
                    else GuestState.DELETED)
        if running:
            return GuestState.RUNNING
        paths = {chain.path_of(disk) for disk in
                 disk_definition.next_start_disks(guest, self._disk.target)}
        if not paths <= {self._path, self._disk.path}:
            return GuestState.OFF_ON_OTHER
        return (GuestState.OFF_ON_OVERLAY if self._path in paths
                else GuestState.OFF_ON_DISK)

    def _act(self, guest_state: GuestState,
             guest: domain.Domain | None) -> bool:
        """Take the action of a cell of the table.

        :param guest: None if it is undefined
        :returns: whether the merge is done
        """
        action = ACTIONS[guest_state][self.state]
        LOG.debug('Merging the overlay %(path)s: it is %(state)s, the guest '
                  'is %(guest)s, the action is %(action)s',
                  {'path': self._path, 'state': self.state.name,
                   'guest': guest_state.name, 'action': action.name},
                  instance=self._instance)
        handlers: dict[Action, Callable[[ty.Any], bool]] = {
            Action.NOTHING: lambda _guest: True,
            Action.BLOCK_COMMIT: self._block_commit,
            Action.FINISH: self._finish,
            Action.FINISH_IF_LEFT: self._finish_if_left,
            Action.OFFLINE_COMMIT: self._offline_commit,
            Action.MOVE_BACK: self._move_back,
            Action.REMOVE_FROM_CHAIN: self._remove_from_chain,
            Action.COMMIT_UNDEFINED: lambda _guest: self._commit_undefined(),
            Action.REMOVE: lambda _guest: self._remove(),
            Action.REMOVE_IF_EMPTY: lambda _guest: self._remove_if_empty(),
            Action.REFUSE: lambda _guest: self._refuse(),
        }
        return handlers[action](guest)

    def _block_commit(self, guest: domain.Domain) -> bool:
        # libvirt may still execute a call of a connection that was lost. It
        # answers this call when it has finished.
        guest.block_job_info(self._disk.target)
        outcome = self._commit.run(guest)
        if outcome is block_commit.CommitState.ENDED:
            return False
        return self._act(
            GuestState.RUNNING_LEFT
            if outcome is block_commit.CommitState.MERGED
            else GuestState.RUNNING_ON_DISK, guest)

    def _finish(self, guest: domain.Domain) -> bool:
        self._advance_to(MergeState.MERGED)
        disk_definition.move_persistent(guest, self._overlay, self._disk)
        target = self._disk.target
        if disk_definition.live_chain(guest, target)[0] == self._disk.path:
            disk_definition.check_guest_uses(self._disk, guest)
        else:
            disk_definition.remove_chain(guest, target, self._path)
        self._remove()
        self._pause.resume(guest, os.path.dirname(self._path))
        return True

    def _finish_if_left(self, guest: domain.Domain) -> bool:
        return (self._finish(guest) if self._has_left(guest)
                else self._remove_if_empty())

    def _has_left(self, guest: domain.Domain) -> bool:
        """Return whether a guest that uses the disk was on the overlay."""
        # The QEMU that was on the overlay can have come to the disk only by
        # the pivot; and libvirt puts the definition back after the pivot.
        return (qemu_identity(guest) == self._qemu or self._disk.path == (
            chain.path_of(chain.find_disk(
                guest.get_xml_desc(dump_inactive=True),
                self._disk.target))))

    def _offline_commit(self, guest: domain.Domain) -> bool:
        offline_commit.run(self._path, self._target)
        return self._move_back(guest)

    def _move_back(self, guest: domain.Domain) -> bool:
        disk_definition.move_persistent(guest, self._overlay, self._disk)
        disk_definition.move_saved_memory(guest, self._overlay, self._disk)
        # From now on the guest starts from the disk. If it was started
        # before, it uses the overlay again, which is empty and still needed.
        if guest.is_active():
            return False
        disk_definition.check_guest_uses(self._disk, guest)
        return self._remove()

    def _remove_from_chain(self, guest: domain.Domain) -> bool:
        target = self._disk.target
        for disk in disk_definition.next_start_disks(guest, target):
            top = chain.path_of(disk)
            if top in (None, self._path, self._disk.path):
                raise exception.UnexpectedState(
                    reason=f'the guest is defined on {top} and on others')
            offline_commit.remove_from_chain(
                str(top), disk.find('driver').get('type'), self._path,
                self._target)
        disk_definition.remove_chain(guest, target, self._path)
        return self._remove()

    def _commit_undefined(self) -> bool:
        try:
            offline_commit.run(self._path, self._target)
        except (processutils.ProcessExecutionError, FileNotFoundError):
            # Nova may have deleted the instance in this moment.
            if os.path.exists(self._path):
                raise
        return self._remove()

    def _refuse(self) -> ty.NoReturn:
        raise exception.UnexpectedState(
            reason='the guest vanished while it was leaving the overlay, and '
                   'it is unknown whether it has written to the disk alone '
                   'since then')

    def _remove_if_empty(self) -> bool:
        """Remove the overlay if nothing was ever written to it.

        :raises UnexpectedState: it contains data
        :raises ProcessExecutionError: somebody has opened it
        """
        if os.path.exists(self._path) and qemu_img.holds_data(self._path):
            raise exception.UnexpectedState(
                reason='the guest does not use the overlay any more, and has '
                       'written to it')
        return self._remove()

    def _remove(self) -> bool:
        # Nova deletes it together with the instance.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
            LOG.debug('The overlay %s is removed', self._path,
                      instance=self._instance)
        return True

    def _before_pivot(self) -> None:
        if self.state is MergeState.OUTSTANDING:
            self._advance_to(MergeState.PIVOTING)

    def _advance_to(self, state: MergeState) -> None:
        """Change the state, and write it into the journal."""
        self.state = state
        try:
            self._save()
        except (OSError, exception.JournalFailed) as error:
            # To leave the guest on the overlay, on a host without space, is
            # worse than a crash in exactly this moment.
            LOG.warning('The state of the overlay %(path)s, %(state)s, could '
                        'not be written into the journal: %(error)s',
                        {'path': self._path, 'state': state.name,
                         'error': error}, instance=self._instance)


def overlay_of(disk: planning.RootDisk, path: str) -> planning.RootDisk:
    """Return the description of an overlay over a disk."""
    return dataclasses.replace(
        disk, storage='file', path=path, format='qcow2')


def _is_running(guest: domain.Domain | None) -> bool | None:
    """Return whether the guest is running; None if it is undefined."""
    return None if guest is None else bool(guest.is_active())


def _is_being_deleted(target: planning.Target, path: str) -> bool:
    """Return whether Nova is deleting the instance, its files first.

    :param path: the overlay's file
    """
    # Missing files alone may only be out of reach.
    if os.path.exists(os.path.dirname(path)):
        return False
    try:
        return checks.InstanceDeletedCheck(
            target.context, target.instance).run() is not None
    except Exception as error:
        LOG.warning('Could not find out whether the instance is being '
                    'deleted: %s', error, instance=target.instance)
        return False


def qemu_identity(guest: domain.Domain) -> str:
    """Return a text that no other QEMU of this guest ever has."""
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    # libvirt's own number starts again when libvirtd has no guests. It must
    # do where processes of other users are hidden.
    started = [process.info['create_time'] for process
               in psutil.process_iter(['cmdline', 'create_time'])
               if guest.uuid in (process.info['cmdline'] or ())]
    return f'{boot} {guest.id} {started}'


def remedy(host: libvirt_host.Host, target: planning.Target,
           path: str) -> str:
    """Return what the guest uses, and what the operator can do.

    :param path: the overlay's file
    """
    name, disk = target.instance.name, target.disk
    try:
        guest = domain.get(host, target.instance)
        running = guest.is_active()
        paths = disk_definition.live_chain(guest, disk.target)
    except MERGE_ERRORS as error:
        return (f'The state of the guest is unknown ({error}). Do not start '
                f'it from {disk.path} before its state is known')
    if paths[0] != path:
        return (f'The guest, which is {"running" if running else "off"}, '
                f'uses {chain.text(paths)}, and nothing was touched. If it '
                f'was not started from {disk.path} since the snapshot, stop '
                f'it and run "qemu-img commit -f qcow2 {path}"; otherwise '
                f'disk and overlay contain two histories, and only one of '
                f'them can be kept. Then remove {path}')
    if running:
        return (f'The guest continues to run, on {chain.text(paths)}, and '
                f'nothing is lost. End any job that is in the way ("virsh '
                f'blockjob {name} {disk.target}"), then run "virsh '
                f'blockcommit {name} {disk.target} --base {disk.path} --top '
                f'{path} --active --pivot", and remove {path}')
    return (f'The guest is off and defined on {path}, and nothing is lost: it '
            f'can be started like this. Or run "qemu-img commit -f qcow2 '
            f'{path}", replace the source of {disk.target} by {disk.path} '
            f'("virsh edit {name}"; its format is {disk.format}), and remove '
            f'{path}')
