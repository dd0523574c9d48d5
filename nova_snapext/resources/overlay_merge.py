# SPDX-License-Identifier: Apache-2.0
"""The merge of an overlay into its disk, and the table that drives it.

Each step of a merge finds the guest's condition, reads the overlay's state and
takes the action of that cell of :data:`ACTIONS`. Two rules hold in all cells:

* An overlay that may be older than its disk is never merged.
* A merged overlay can't look unmerged, whatever a loss of power undoes.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import enum
import os
import typing as ty

import libvirt
from lxml import etree
from nova.compute import task_states
from nova import exception as nova_exception
from nova.virt.libvirt import host as libvirt_host
from oslo_concurrency import processutils
from oslo_log import log as logging
from oslo_utils import excutils

from nova_snapext import bounded
from nova_snapext import checks
from nova_snapext import durable
from nova_snapext import exception
from nova_snapext.hypervisor import block_commit
from nova_snapext.hypervisor import chain
from nova_snapext.hypervisor import confinement
from nova_snapext.hypervisor import connection
from nova_snapext.hypervisor import domain
from nova_snapext.hypervisor import errors
from nova_snapext.hypervisor import io_error_pause
from nova_snapext.hypervisor import known_defects
from nova_snapext.hypervisor import libvirt_files
from nova_snapext.hypervisor import ownership
from nova_snapext.hypervisor import qemu_img
from nova_snapext.hypervisor import qemu_process
from nova_snapext.hypervisor import write_limit
from nova_snapext import plan as planning
from nova_snapext.resources import disk_definition
from nova_snapext.resources import offline_commit
from nova_snapext.resources import overlay_files
from nova_snapext.resources.overlay_files import MergeState

LOG = logging.getLogger(__name__)

# Errors that libvirt, QEMU's programs, the host or the guest cause. A bug of
# ours is none of them: it propagates as it is.
MERGE_ERRORS: tuple[type[Exception], ...] = (
    *errors.HYPERVISOR_ERRORS,
    *connection.UNREACHABLE,
    nova_exception.InstanceNotFound,
)


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
    # No domain, but the directory of the instance exists.
    UNDEFINED = enum.auto()
    # Neither the domain nor the directory of the instance exists.
    DELETED = enum.auto()


class Action(enum.Enum):
    """What a step of the merge does."""

    # QEMU commits the overlay and leaves it. Then the cell of RUNNING_LEFT or
    # RUNNING_ON_DISK applies, or the guest has ended and the next step begins.
    BLOCK_COMMIT = enum.auto()
    # Remove the file, put the definition back.
    FINISH = enum.auto()
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
    # Fail, and touch nothing, unless all that the overlay contains is the
    # same in the disk. The disk is then right in any case. For guests that
    # are off: nobody writes while the two are compared.
    MOVE_BACK_IF_SAME = enum.auto()
    REMOVE_FROM_CHAIN_IF_SAME = enum.auto()
    REMOVE_IF_SAME = enum.auto()
    # Fail, and touch nothing: the disk lacks data, and nobody else has it.
    REFUSE = enum.auto()


ACTIONS: dict[GuestState, dict[MergeState, Action]] = {
    # A QEMU on the overlay reads all data through it, and the commit is
    # right whatever is known of the overlay. A file that was removed is still
    # open there.
    GuestState.RUNNING: {
        MergeState.OUTSTANDING: Action.BLOCK_COMMIT,
        MergeState.PIVOTING: Action.BLOCK_COMMIT,
        MergeState.MERGED: Action.BLOCK_COMMIT,
        MergeState.LOST: Action.BLOCK_COMMIT,
    },
    GuestState.RUNNING_LEFT: {
        MergeState.OUTSTANDING: Action.FINISH,
        MergeState.PIVOTING: Action.FINISH,
        MergeState.MERGED: Action.FINISH,
        MergeState.LOST: Action.FINISH,
    },
    GuestState.RUNNING_ON_DISK: {
        # It was never switched to the overlay, or was started from the disk.
        MergeState.OUTSTANDING: Action.REMOVE_IF_EMPTY,
        MergeState.PIVOTING: Action.REMOVE_IF_EMPTY,
        MergeState.MERGED: Action.FINISH,
        MergeState.LOST: Action.REFUSE,
    },
    GuestState.OFF_ON_OVERLAY: {
        MergeState.OUTSTANDING: Action.OFFLINE_COMMIT,
        # QEMU may have left the overlay without anybody seeing it, and may
        # have written to the disk since then.
        MergeState.PIVOTING: Action.MOVE_BACK_IF_SAME,
        MergeState.MERGED: Action.MOVE_BACK,
        MergeState.LOST: Action.REFUSE,
    },
    GuestState.OFF_ON_DISK: {
        # A loss of power can put back an earlier definition.
        MergeState.OUTSTANDING: Action.REMOVE_IF_SAME,
        # The guest has left the overlay. Or it has not, and somebody has
        # started it from the disk.
        MergeState.PIVOTING: Action.REMOVE_IF_SAME,
        MergeState.MERGED: Action.REMOVE,
        MergeState.LOST: Action.REFUSE,
    },
    GuestState.OFF_ON_OTHER: {
        MergeState.OUTSTANDING: Action.REMOVE_FROM_CHAIN,
        MergeState.PIVOTING: Action.REMOVE_FROM_CHAIN_IF_SAME,
        MergeState.MERGED: Action.REMOVE_FROM_CHAIN,
        MergeState.LOST: Action.REFUSE,
    },
    # When Nova deletes an instance, it deletes the files before it undefines
    # the domain. So an overlay that still exists is needed, as in a hard
    # reboot, and one that is missing alone was not deleted by Nova, which
    # renames the directory first (LibvirtDriver.delete_instance_files).
    GuestState.UNDEFINED: {
        MergeState.OUTSTANDING: Action.COMMIT_UNDEFINED,
        MergeState.PIVOTING: Action.REMOVE_IF_SAME,
        MergeState.MERGED: Action.REMOVE,
        MergeState.LOST: Action.REFUSE,
    },
    GuestState.DELETED: {
        MergeState.OUTSTANDING: Action.REMOVE,
        MergeState.PIVOTING: Action.REMOVE,
        MergeState.MERGED: Action.REMOVE,
        MergeState.LOST: Action.REMOVE,
    },
}


class OverlayMerge:
    """The merge of one overlay, which may be repeated in another process.

    :ivar files: the overlay and its companions
    :ivar foreign: an earlier snapshot left the overlay: it is never touched
    """

    def __init__(self, host: libvirt_host.Host, target: planning.Target,
                 path: str, save: Callable[[], None]):
        """Create a merge that has not begun.

        :param path: the overlay's file
        :param save: writes the record into the journal
        """
        self.files = overlay_files.OverlayFiles(path)
        self.foreign = False
        self._host = host
        self._target = target
        self._instance = target.instance
        self._disk = target.disk
        self._path = path
        self._overlay = overlay_of(target.disk, path)
        self._save = save
        self._limit = write_limit.WriteLimit(target, save)
        self._commit = block_commit.ActiveCommit(
            target, path, before_pivot=self._before_pivot,
            pivot_failed=self._pivot_failed, write_limit=self._limit,
            misses_writes=lambda guest: qemu_process.may_have(
                known_defects.MISSED_WRITES, host, guest))
        self._pause = io_error_pause.IoErrorPause(target.instance)
        self._owner = ownership.OwnerNote()
        self._base_chain: list[str | None] = []
        self._qemu = ''

    def record(self) -> dict[str, ty.Any]:
        """Return the journal's part of the record of the overlay."""
        return {'base_chain': self._base_chain, 'qemu': self._qemu,
                'may_resume': self._pause.may_resume,
                'write_limit': self._limit.record(),
                'owner_label': self._owner.label}

    def restore(self, record: dict[str, ty.Any]) -> None:
        """Take over the values of an overlay's record."""
        self._base_chain = record['base_chain']
        self._qemu = record['qemu']
        self._pause.may_resume = record['may_resume']
        self._limit.restore(record['write_limit'])
        self._owner.label = record['owner_label']

    def capture_state(self, guest: domain.Domain) -> None:
        """Remember the guest as it is before the overlay is created."""
        self._pause.capture_state(guest)
        self._base_chain = disk_definition.live_chain(
            guest, self._disk.target)
        self._owner.capture(self._disk)

    def is_expected(self, paths: list[str | None]) -> bool:
        """Return whether a backing chain is the overlay over the disk.

        :param paths: the active path first
        """
        return paths == [self._path, *self._base_chain]

    @property
    def base_chain(self) -> list[str | None]:
        """The backing chain of the disk before the overlay, the disk first.

        It is empty if no journal knows the overlay.
        """
        return self._base_chain

    def run(self) -> None:
        """Merge the overlay into the disk, and remove it.

        See :meth:`nova_snapext.resources.overlay.Overlay.merge`.

        :raises ReleaseFailed: the overlay could not be merged
        """
        if self.foreign:
            return
        try:
            while not connection.retry_on_disconnect(
                    self._host, self._step, self._instance):
                LOG.info('The guest was started or stopped while the overlay '
                         'was merged: checking it again',
                         instance=self._instance)
        except MERGE_ERRORS as error:
            # Missing files alone may only be out of reach, or lost.
            if (not os.path.exists(self._path) and
                    self._is_being_deleted()):
                return
            # An unexpected header has a remedy of its own.
            advice = '' if isinstance(
                error, exception.UnexpectedHeader) else remedy(
                    self._host, self._target, self._path)
            raise exception.ReleaseFailed(
                instance=self._instance.uuid,
                reason=f'the overlay {self._path} could not be merged into '
                       f'the root disk {self._disk.path}: {error}. {advice}',
            ) from error

    def _step(self) -> bool:
        """Take the action for the guest as it is.

        :returns: whether the merge is done; False if the guest has changed
        """
        guest = domain.find(self._host, self._instance)
        running = _is_running(guest)
        if not running:
            write_limit.PAUSES.end(self._instance.uuid)
        # Nova may be clearing the volume: what is merged into it now would
        # stay on the storage, for the next owner of its space.
        if (not running and self._disk.storage == 'block' and
                self._is_being_deleted()):
            return True
        try:
            return self._act(self._guest_state(guest, running), guest)
        except libvirt.libvirtError:
            if _is_running(
                    domain.find(self._host, self._instance)) == running:
                raise
            return False

    def _is_being_deleted(self) -> bool:
        """Return whether Nova deletes the instance, or has deleted it."""
        try:
            # A guest may wait for this merge, and RabbitMQ may be away.
            deletion = bounded.call(lambda: checks.find_deletion(
                self._target.context, self._instance.uuid,
                (task_states.DELETING,)), bounded.NOVA_TIMEOUT)
        except Exception as error:
            LOG.warning('Could not find out whether the instance is being '
                        'deleted: %s', error, instance=self._instance)
            return False
        if deletion is not None:
            LOG.info('The overlay is not merged: Nova deletes the instance '
                     'with its disks (%s)', deletion, instance=self._instance)
        return deletion is not None

    def _guest_state(self, guest: domain.Domain | None,
                     running: bool | None) -> GuestState:
        if guest is None:
            return (GuestState.UNDEFINED
                    if os.path.isdir(os.path.dirname(self._path))
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
        # Nothing is out of reach.
        state = (MergeState.MERGED if guest_state is GuestState.DELETED
                 else self.files.state)
        action = ACTIONS[guest_state][state]
        LOG.debug('Merging the overlay %(path)s: it is %(state)s, the guest '
                  'is %(guest)s, the action is %(action)s',
                  {'path': self._path, 'state': state.name,
                   'guest': guest_state.name, 'action': action.name},
                  instance=self._instance)
        handlers: dict[Action, Callable[[ty.Any], bool]] = {
            Action.BLOCK_COMMIT: self._block_commit,
            Action.FINISH: self._finish,
            Action.OFFLINE_COMMIT: self._offline_commit,
            Action.MOVE_BACK: self._move_back,
            Action.REMOVE_FROM_CHAIN: self._remove_from_chain,
            Action.COMMIT_UNDEFINED: self._commit_undefined,
            Action.REMOVE: self._remove,
            Action.REMOVE_IF_EMPTY: self._remove_if_empty,
            Action.MOVE_BACK_IF_SAME: self._if_same(self._move_back),
            Action.REMOVE_FROM_CHAIN_IF_SAME: self._if_same(
                self._remove_from_chain),
            Action.REMOVE_IF_SAME: self._if_same(self._remove),
            Action.REFUSE: self._refuse,
        }
        return handlers[action](guest)

    def _block_commit(self, guest: domain.Domain) -> bool:
        # libvirt may still execute a call of a connection that was lost. It
        # answers this call when it has finished.
        guest.block_job_info(self._disk.target)
        self._note_qemu_on_overlay(guest)
        outcome = self._commit.run(guest)
        if outcome is block_commit.CommitState.ENDED:
            return False
        try:
            # The QEMU that was on the overlay can have come to the disk only
            # by the pivot. The definition tells nothing: an operator may have
            # changed it, to start the guest from the disk.
            has_left = (outcome is block_commit.CommitState.MERGED or
                        qemu_identity(guest) == self._qemu)
            done = self._act(
                GuestState.RUNNING_LEFT if has_left
                else GuestState.RUNNING_ON_DISK, guest)
        except Exception:
            with excutils.save_and_reraise_exception():
                self._commit.remove_limit(guest)
        self._commit.remove_limit(guest)
        return done

    def _note_qemu_on_overlay(self, guest: domain.Domain) -> None:
        """Write down which QEMU will leave the overlay."""
        identity = qemu_identity(guest)
        paths = disk_definition.live_chain(guest, self._disk.target)
        if paths[0] != self._path or identity == self._qemu:
            return
        self._qemu = identity
        try:
            self._save()
        except (OSError, exception.JournalFailed) as error:
            # To leave the guest on the overlay, on a host without space, is
            # worse: the merge needs no journal unless it is interrupted in
            # the moment of the pivot.
            LOG.warning('The journal of the overlay %(path)s could not be '
                        'written: %(error)s. If nova-compute ends while the '
                        'guest leaves the overlay, the overlay may have to be '
                        'removed by hand',
                        {'path': self._path, 'error': error},
                        instance=self._instance)

    def _pivot_failed(self) -> None:
        try:
            self.files.mark_unmerged()
        except OSError as error:
            # Without the marker the overlay is only treated more carefully.
            LOG.warning('The overlay %(path)s could not be marked as newer '
                        'than its disk: %(error)s. If the host loses power '
                        'now, the overlay has to be merged by hand',
                        {'path': self._path, 'error': error},
                        instance=self._instance)

    def _finish(self, guest: domain.Domain) -> bool:
        target = self._disk.target
        with self.files.space_kept():
            # From here on nothing can take the overlay for newer than the
            # disk, even if a loss of power puts an earlier definition back.
            self.files.remove_overlay()
            self._commit.remove_limit(guest)
        disk_definition.move_persistent(guest, self._overlay, self._disk)
        is_top = disk_definition.live_chain(
            guest, target)[0] == self._disk.path
        if is_top:
            disk_definition.check_guest_uses(self._disk, guest)
        else:
            disk_definition.remove_chain(guest, target, self._path)
        # It raises an error if the guest could not be resumed above.
        self._limit.remove(guest)
        if is_top:
            self._owner.put_back(self._disk, guest.is_active)
        self._remove_fence()
        self._pause.resume(guest, os.path.dirname(self._path))
        return True

    def _offline_commit(self, guest: domain.Domain) -> bool:
        offline_commit.run(self._path, self._target, self._base_chain,
                           self._owner.owner())
        return self._move_back(guest)

    def _move_back(self, guest: domain.Domain) -> bool:
        disk_definition.move_persistent(guest, self._overlay, self._disk)
        if disk_definition.move_saved_memory(
                guest, self._overlay, self._disk):
            libvirt_files.sync_saved_definition(self._instance.name)
        # From now on the guest starts from the disk. If it was started
        # before, it uses the overlay again, which is empty and still needed.
        if guest.is_active():
            return False
        disk_definition.check_guest_uses(self._disk, guest)
        return self._remove(guest)

    def _remove_from_chain(self, guest: domain.Domain) -> bool:
        target = self._disk.target
        for disk in disk_definition.next_start_disks(guest, target):
            top = chain.path_of(disk)
            if top in (None, self._path, self._disk.path):
                raise exception.UnexpectedState(
                    reason=f'the guest is defined on {top} and on others')
            offline_commit.remove_from_chain(
                str(top), disk.find('driver').get('type'), self._path,
                self._target, self._base_chain, self._owner.owner())
        disk_definition.remove_chain(guest, target, self._path)
        return self._remove(guest)

    def _commit_undefined(self, _guest: None) -> bool:
        try:
            offline_commit.run(self._path, self._target, self._base_chain,
                               self._owner.owner())
        except (processutils.ProcessExecutionError, FileNotFoundError):
            # Nova may have deleted the instance in this moment.
            if os.path.isdir(os.path.dirname(self._path)):
                raise
        return self._remove(None)

    def _if_same(self, action: Callable[[ty.Any], bool],
                 ) -> Callable[[ty.Any], bool]:
        """Return a function that takes an action if the merge is not needed.

        It raises UnexpectedState if the disk lacks data of the overlay.
        """
        def act(guest: domain.Domain | None) -> bool:
            if not qemu_img.holds_data(self._path):
                return action(guest)
            LOG.info('It is unknown whether the overlay %(path)s or its disk '
                     '%(disk)s has newer data. They are compared',
                     {'path': self._path, 'disk': self._disk.path},
                     instance=self._instance)
            if not qemu_img.holds_same_data(self._path, self._disk):
                raise exception.UnexpectedState(
                    reason='the overlay and the disk contain different data, '
                           'and it is unknown which of them is newer')
            return action(guest)

        return act

    def _remove_if_empty(self, guest: domain.Domain) -> bool:
        """Remove the overlay if nothing was ever written to it.

        :raises UnexpectedState: it contains data
        :raises ProcessExecutionError: somebody has opened it
        """
        if os.path.exists(self._path) and qemu_img.holds_data(self._path):
            # Both may have data now that the other lacks.
            self.files.unmark()
            raise exception.UnexpectedState(
                reason='the guest does not use the overlay any more, and has '
                       'written to it')
        return self._remove(guest)

    def _refuse(self, _guest: domain.Domain | None) -> ty.NoReturn:
        raise self.files.lost()

    def _remove(self, guest: domain.Domain | None) -> bool:
        # The guest may have ended right after the pivot.
        if (self._owner.label and guest is not None and
                not guest.is_active()):
            self._owner.put_owner_back(self._disk)
        self.files.remove_overlay()
        if guest is not None:
            # libvirt leaves the chain there after a pivot.
            disk_definition.move_persistent(guest, self._overlay, self._disk)
        self._remove_fence()
        return True

    def _remove_fence(self) -> None:
        libvirt_files.sync_definition(self._instance.name)
        self.files.remove_fence()

    def _before_pivot(self) -> None:
        self.files.unmark()


def overlay_of(disk: planning.RootDisk, path: str) -> planning.RootDisk:
    """Return the description of an overlay over a disk."""
    return dataclasses.replace(
        disk, storage='file', path=path, format='qcow2')


def _is_running(guest: domain.Domain | None) -> bool | None:
    """Return whether the guest is running; None if it is undefined."""
    return None if guest is None else bool(guest.is_active())


def qemu_identity(guest: domain.Domain) -> str:
    """Return a text that no other QEMU of this guest ever has."""
    # libvirt's own number starts again when libvirtd has no guests. It must
    # do where processes of other users are hidden.
    started = sorted(qemu_process.started(guest))
    return f'{durable.boot_id()} {guest.id} {started}'


def remedy(host: libvirt_host.Host, target: planning.Target,
           path: str) -> str:
    """Return what the guest uses, and what the operator can do.

    :param path: the overlay's file
    """
    name, disk = target.instance.name, target.disk
    state = _merge_state(path)
    try:
        guest = domain.find(host, target.instance)
        running, paths, forbidden = False, [], None
        images: Sequence[str | None] = ()
        if guest is not None:
            running = guest.is_active()
            paths = disk_definition.live_chain(guest, disk.target)
            images = paths if running else _images_of(guest, disk)
            forbidden = confinement.profile_that_forbids_write(
                etree.fromstring(guest.get_xml_desc()), disk.path)
    except MERGE_ERRORS as error:
        return (f'The state of the guest is unknown ({error}). Do not start '
                f'it from {disk.path} before its state is known')
    if images and path not in images and disk.path not in images:
        return _remedy_of_moved(running, images, target, path, state)
    if (state is MergeState.MERGED and path not in paths and
            (guest is None or disk.path in (*paths, *images))):
        return (f'All data is in {disk.path}, and the overlay is not needed '
                f'any more: only the end of the merge has failed. It is tried '
                f'again after [snapext]recovery_interval, and by a start or '
                f'stop of the guest. If the guest is paused until then, '
                f'"virsh resume {name}" resumes it')
    if state is MergeState.LOST:
        return _remedy_of_lost(guest, running, paths, disk, path)
    if (disk.path not in images if path in images
            else guest is None and not _has_backing_file(path)):
        return _remedy_of_pulled(running, target, path, state)
    copies = _copies(disk.path, path)
    both = _overlay_and_marker(path, state)
    discard = (f'If {disk.path} is right, move {both} to another directory, '
               f'and start the instance through Nova')
    if running and path not in paths:
        return (f'The guest runs on {chain.text(paths)}, without the overlay, '
                f'and nothing was touched. The overlay contains data that '
                f'this guest does not see. Do not commit it: that would '
                f'overwrite newer data. If the guest is right as it is, move '
                f'{both} to another directory; otherwise stop the guest, and '
                f'read the log again after the next start')
    if running and forbidden:
        # Known defect apparmor-profile-made-again.
        profile = os.path.splitext(forbidden)[0]
        return (f'The guest continues to run, on {chain.text(paths)}, and '
                f'nothing is lost. AppArmor forbids it to write to '
                f'{disk.path}: libvirt has made its profile again in the '
                f'meantime. The overlay is merged when the guest is shut off. '
                f'To merge it while the guest runs, remove the line that '
                f'begins with "deny" and names {disk.path} from {forbidden}, '
                f'and run "apparmor_parser -r {profile}": it is tried again '
                f'after [snapext]recovery_interval')
    if running:
        return (f'The guest continues to run, on {chain.text(paths)}, and '
                f'nothing is lost. nova-compute merges the overlay by itself '
                f'as soon as that is possible: when the guest is unpaused, '
                f'when a job that is in the way has ended ("virsh blockjob '
                f'{name} {disk.target}" shows it), or when the guest is '
                f'stopped. Otherwise it is tried again after '
                f'[snapext]recovery_interval')
    guest_is_off = _off(guest, paths)
    if state is MergeState.OUTSTANDING:
        return (f'{guest_is_off}, and nothing was touched. The overlay has '
                f'data that the disk lacks. If an error above says that a '
                f'lock can\'t be got, a QEMU still uses it, perhaps on '
                f'another host: stop that first. {copies}. If nobody has '
                f'started the guest from {disk.path} since the snapshot, run '
                f'"qemu-img commit -f qcow2 {path}" and start the instance '
                f'through Nova. {discard}')
    return (f'{guest_is_off}, and nothing was touched. Both contain data of '
            f'the guest, and only one of them has the newest. {copies}. '
            f'Then find out which is newer: look into both, for example with '
            f'"guestfish --ro -i -a FILE", and compare the newest entries of '
            f'the guest\'s logs. {discard}. If {path} is right, run "qemu-img '
            f'commit -f qcow2 {path}", and start the instance through Nova')


def _remedy_of_lost(guest: domain.Domain | None, running: bool,
                    paths: list[str | None], disk: planning.RootDisk,
                    path: str) -> str:
    marker = f'{path}{overlay_files.MARKER}'
    if running and path in paths:
        return (f'The guest continues to run, on {chain.text(paths)}: its '
                f'QEMU still has the file open, and loses nothing as long as '
                f'it runs. Do not stop it. nova-compute tries again to merge '
                f'the overlay after [snapext]recovery_interval')
    accept = (f'To accept that what the guest has written to the overlay '
              f'since the snapshot began is lost, remove {marker}')
    if running:
        return (f'The guest runs on {chain.text(paths)}, without the overlay, '
                f'and nothing was touched. {accept}. Otherwise stop the '
                f'guest, and read the log again after the next start')
    return (f'{_off(guest, paths)}, and nothing was touched. {disk.path} '
            f'alone is older than the guest, and if a merge had begun, only a '
            f'part of the overlay is in it. Find the overlay, as it was when '
            f'the guest ran last (in another directory, in lost+found), put '
            f'it back as {path}, with Nova\'s user as its owner, and start '
            f'the instance through Nova. {accept}, start the instance through '
            f'Nova, and check the guest\'s filesystems')


def _remedy_of_moved(running: bool, images: Sequence[str | None],
                     target: planning.Target, path: str,
                     state: MergeState | None) -> str:
    """Return what to do about a guest that somebody has moved to a copy.

    With "virsh blockcopy --pivot", for example. Nova does not know the copy.
    """
    name, disk = target.instance.name, target.disk
    where = (f'on {chain.text(images)}, and neither on {path} nor on '
             f'{disk.path}: somebody has moved it there, perhaps with "virsh '
             f'blockcopy". Nothing was touched. All that the guest has '
             f'written since then is there alone, and Nova would start the '
             f'guest from {disk.path}')
    clean_up = (f'If there is still an overlay, move '
                f'{_overlay_and_marker(path, state)} to another directory')
    if running:
        return (f'The guest runs {where}. To move it back to its disk, run '
                f'{_block_copy(target)}. {clean_up}')
    return (f'The guest is off, and is defined {where}. To move it back to '
            f'its disk, first make a copy of {disk.path}. Then run '
            f'"qemu-img convert -n -f FORMAT -O {disk.format} {images[0]} '
            f'{disk.path}", with the format of {images[0]} that "virsh '
            f'dumpxml {name}" shows as FORMAT, and change the source of '
            f'{disk.target} to {disk.path}, and its type to {disk.format}, '
            f'with "virsh edit {name}". {clean_up}, and start the instance '
            f'through Nova')


def _remedy_of_pulled(running: bool, target: planning.Target, path: str,
                      state: MergeState | None) -> str:
    """Return what to do about an overlay that has no disk below it.

    "virsh blockpull" has copied the disk into it.
    """
    disk = target.disk
    what = (f'{path} is the whole disk now: somebody has copied {disk.path} '
            f'into it, perhaps with "virsh blockpull". It can\'t be merged '
            f'any more, and nothing was touched')
    if running:
        return (f'The guest continues to run, and nothing is lost. {what}. To '
                f'move the guest back to its disk, run {_block_copy(target)}. '
                f'The overlay is then removed after '
                f'[snapext]recovery_interval')
    return (f'{what}. {_copies(disk.path, path)}. Then, while the guest is '
            f'off, run "qemu-img convert -n -f qcow2 -O {disk.format} {path} '
            f'{disk.path}", move {_overlay_and_marker(path, state)} to '
            f'another directory, and start the instance through Nova')


def _block_copy(target: planning.Target) -> str:
    """Return the command that moves a running guest to its disk.

    libvirt copies no disk of a persistent guest without --transient-job.
    """
    disk = target.disk
    device = '--blockdev ' if disk.storage == 'block' else ''
    return (f'"virsh blockcopy {target.instance.name} {disk.target} '
            f'{disk.path} --format {disk.format} {device}--reuse-external '
            f'--transient-job --wait --pivot"')


def _copies(*paths: str) -> str:
    return (f'First make copies of {" and of ".join(paths)} ("cp '
            f'--sparse=always"; for a block device "qemu-img convert")')


def _overlay_and_marker(path: str, state: MergeState | None) -> str:
    """Return what to move away: without its marker, or else it looks lost."""
    marker = f'{path}{overlay_files.MARKER}'
    if state is MergeState.OUTSTANDING:
        return f'{marker} and {path}'
    return marker if state is MergeState.LOST else path


def _images_of(guest: domain.Domain,
               disk: planning.RootDisk) -> Sequence[str | None]:
    """Return the backing chain of a guest that is off, as its images name it.

    :returns: empty if it is not known
    """
    defined = chain.find_disk(guest.get_xml_desc(), disk.target)
    try:
        return qemu_img.backing_chain(
            str(chain.path_of(defined)), defined.find('driver').get('type'))
    except (OSError, exception.SnapextError):
        return ()


def _has_backing_file(path: str) -> bool:
    """Return whether an overlay has a backing file, as far as is known."""
    try:
        qemu_img.backing_file(path)
    except exception.UnexpectedState:
        return False
    except (OSError, exception.SnapextError):
        return True
    return True


def _off(guest: domain.Domain | None, paths: list[str | None]) -> str:
    return ('No guest of the instance is defined on this host'
            if guest is None else
            f'The guest is off, uses {chain.text(paths)} at its next start')


def _merge_state(path: str) -> MergeState | None:
    """Return what is known of an overlay; None if it is out of reach."""
    try:
        return overlay_files.OverlayFiles(path).state
    except (OSError, exception.UnexpectedState):
        return None
