# SPDX-License-Identifier: Apache-2.0
"""Images that Nova's user may not open, lent to it.

libvirt changes the owner of a disk when its guest starts, and restores it when
the guest ends; where it can't, the disk belongs to root afterwards. QEMU's
programs never run as root: a privileged step changes the owner to Nova's user,
and back when the program has opened the image, or has ended.

A crash in between leaves the image to Nova's user. This does no harm: libvirt
changes the owner at the next start in any case.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import dataclasses
import os

from oslo_log import log as logging
from oslo_privsep import daemon

from nova_snapext.hypervisor import privsep
from nova_snapext import plan as planning

LOG = logging.getLogger(__name__)

# What a step of privsep raises.
ERRORS = (OSError, daemon.FailedToDropPrivileges)


@contextlib.contextmanager
def lent(path: str, mode: int) -> Iterator[None]:
    """Lend an image to Nova's user, who may not open it, for a while.

    Does nothing if the user may open it.

    :param mode: os.R_OK, os.W_OK or both
    :raises OSError: it does not exist, or its owner can't be changed, as on
        NFS with root_squash
    """
    if os.access(path, mode):
        yield
        return
    # A logical volume is a link of udev's. privsep follows none.
    path = os.path.realpath(path)
    owner, user = os.stat(path), os.geteuid()
    LOG.debug('Lending %(path)s of user %(owner)d to user %(user)d',
              {'path': path, 'owner': owner.st_uid, 'user': user})
    privsep.chown(path, user)
    try:
        yield
    finally:
        # If somebody starts the guest now, libvirt has changed the owner.
        if os.stat(path).st_uid == user:
            privsep.chown(path, owner.st_uid, owner.st_gid)


@dataclasses.dataclass
class OwnerNote:
    """libvirt's note of the owner of a disk before its guest has started.

    libvirt gives the disk back to that owner when the guest ends. A snapshot
    moves the note from the disk to the overlay, and the pivot moves it back.
    But libvirt 12.8 drops the note of a block device when the guest is
    switched to an overlay that is a file: the device would belong to root
    later. libvirt 9.0 and 11.3 move it. See virSecurityMoveRememberedLabel()
    in its src/security/security_util.c.

    :ivar label: the note of a block device; empty if libvirt has none
    """

    label: dict[str, str] = dataclasses.field(default_factory=dict)

    def capture(self, disk: planning.RootDisk) -> None:
        """Remember the note of the disk of a guest that runs on it."""
        if disk.storage != 'block':
            return
        try:
            label = privsep.read_owner_label(os.path.realpath(disk.path))
        except ERRORS as error:
            LOG.warning('libvirt\'s note of the owner of %(path)s can\'t be '
                        'read: %(error)s. If the device belongs to another '
                        'user after the snapshot, when the guest has ended, '
                        'change its owner back',
                        {'path': disk.path, 'error': error})
            return
        if set(label) == set(privsep.LABEL_PARTS):
            self.label = label

    def owner(self) -> tuple[int, int] | None:
        """Return the user and the group; None if they are unknown."""
        if not self.label:
            return None
        uid, gid = self.label['dac'].split(':')
        return int(uid), int(gid)

    def put_back(self, disk: planning.RootDisk,
                 is_active: Callable[[], bool]) -> None:
        """Make libvirt give a disk to its owner when its guest ends.

        Call it when the guest has come back to the disk. It may end at any
        moment: libvirt would take a note that is written after that for
        another guest that uses the disk. A failure is logged.

        :param is_active: returns whether the guest runs
        """
        if not self.label:
            return
        if is_active():
            is_written = self._put_label_back(disk)
            if is_active():
                return
            if is_written:
                self._remove_label(disk)
        self.put_owner_back(disk)

    def _remove_label(self, disk: planning.RootDisk) -> None:
        try:
            privsep.remove_owner_label(os.path.realpath(disk.path))
        except ERRORS as error:
            LOG.warning('libvirt\'s note of the owner of %(path)s, which no '
                        'guest uses, can\'t be removed: %(error)s. If the '
                        'guest can\'t be started, remove it: "setfattr -x '
                        'trusted.libvirt.security.ref_dac %(path)s"',
                        {'path': disk.path, 'error': error})

    def _put_label_back(self, disk: planning.RootDisk) -> bool:
        """Write the note if libvirt has lost it; return whether it had."""
        path = os.path.realpath(disk.path)
        try:
            found = privsep.read_owner_label(path)
            if found.get('dac') != self.label['dac']:
                LOG.debug('Noting for libvirt that %(path)s belongs to '
                          '%(owner)s, and not %(found)s',
                          {'path': path, 'owner': self.label['dac'],
                           'found': found})
                privsep.write_owner_label(
                    path, {**self.label, **found, 'dac': self.label['dac']})
                return True
        except ERRORS as error:
            self._log_failure(disk, error)
        return False

    def put_owner_back(self, disk: planning.RootDisk) -> None:
        """Give a disk that no guest uses to its owner. A failure is logged."""
        owner = self.owner()
        if owner is None:
            return
        path = os.path.realpath(disk.path)
        try:
            found = os.stat(path)
            if (found.st_uid, found.st_gid) != owner:
                privsep.chown(path, *owner)
        except ERRORS as error:
            self._log_failure(disk, error)

    def _log_failure(self, disk: planning.RootDisk, error: Exception) -> None:
        LOG.warning('%(path)s can\'t be given back to its owner: %(error)s. '
                    'When its guest has ended, run "chown %(owner)s %(path)s"',
                    {'path': disk.path, 'error': error,
                     'owner': self.label['dac'].replace('+', '')})
