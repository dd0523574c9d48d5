# SPDX-License-Identifier: Apache-2.0
"""The work directory of one snapshot: its NBD socket and scratch file."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import typing as ty

from nova import objects
from nova.virt.libvirt import driver as libvirt_driver
from oslo_log import log as logging
from oslo_utils import fileutils

from nova_snapext import conf
from nova_snapext import durable
from nova_snapext import exception
from nova_snapext.hypervisor import privsep
from nova_snapext import journal
from nova_snapext import plan as planning

CONF = conf.CONF
LOG = logging.getLogger(__name__)

# sun_path of sockaddr_un has 108 bytes, including the final zero: unix(7).
SOCKET_PATH_LIMIT = 107


class WorkDirectory(journal.Resource):
    """A directory that only Nova can enter, and QEMU where it has to.

    Recorded: its path. Restored: as recorded. Released: removed, with all
    files that are still in it.

    :ivar path: path of the directory
    :ivar socket: path of the NBD server's Unix socket
    :ivar scratch: path of a backup job's scratch file
    :ivar pid_file: path of qemu-nbd's PID file
    """

    kind = 'work directory'

    def __init__(self, path: str):
        self.path = path
        self.socket = os.path.join(path, 'nbd')
        self.scratch = os.path.join(path, 'scratch')
        self.pid_file = os.path.join(path, 'pid')

    @classmethod
    def allocate(cls, instance: objects.Instance) -> WorkDirectory:
        """Return a directory for a snapshot. It does not exist yet.

        :raises WorkDirectoryError: the path is too long for a Unix socket
        """
        parent = CONF.snapext.work_directory
        directory = cls(os.path.join(
            parent, f'{instance.uuid[:8]}-{secrets.token_hex(4)}'))
        excess = len(os.fsencode(directory.socket)) - SOCKET_PATH_LIMIT
        if excess > 0:
            raise exception.WorkDirectoryError(
                path=parent,
                reason=f'the path is {excess} bytes too long for a Unix '
                       f'socket in it. Set [snapext]work_directory to a '
                       f'shorter one')
        return directory

    def record(self) -> dict[str, ty.Any]:
        return {'path': self.path}

    @classmethod
    def restore(cls, driver: libvirt_driver.LibvirtDriver,
                target: planning.Target,
                record: dict[str, ty.Any]) -> WorkDirectory:
        return cls(record['path'])

    def __str__(self) -> str:
        return f'the work directory {self.path}'

    def create(self) -> None:
        """Create the directory, mode 0700.

        :raises OSError: it can't be created
        """
        fileutils.ensure_tree(os.path.dirname(self.path))
        os.mkdir(self.path, 0o700)
        LOG.debug('Work directory %s is created', self.path)

    def share_with(self, uid: int) -> None:
        """Let another user create files here. Nova can still remove them.

        :param uid: id of the user, who becomes the owner. The group stays
            Nova's, and becomes the group of all new files.
        """
        if uid == os.geteuid():
            return
        # chmod comes first: after chown it would need privileges, and without
        # CAP_FSETID it silently drops the setgid bit.
        os.chmod(self.path, 0o2770)  # noqa: S103  # nosec B103
        privsep.chown(self.path, uid=uid)
        LOG.debug('Work directory %(path)s is shared with the user %(uid)d',
                  {'path': self.path, 'uid': uid})

    def release(self) -> None:
        self.remove()

    def remove(self) -> None:
        """Remove the directory with all that is still in it.

        :raises OSError: something can't be removed
        """
        remove_tree(self.path)
        # Nothing would remove it if it came back after a loss of power.
        with contextlib.suppress(FileNotFoundError):
            durable.sync_parent(self.path)
        LOG.debug('Work directory %s is removed', self.path)


def remove_tree(path: str) -> None:
    """Remove a directory that other processes may empty at the same time.

    libvirt, QEMU and Nova remove their own files.

    :raises OSError: something can't be removed
    """
    shutil.rmtree(path, onerror=_raise_unless_gone)


def _raise_unless_gone(_function: ty.Any, _path: str, error: ty.Any) -> None:
    if not issubclass(error[0], FileNotFoundError):
        raise error[1]
