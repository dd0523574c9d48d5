# SPDX-License-Identifier: Apache-2.0
"""The directory of a running snapshot: its NBD socket and scratch file."""

from __future__ import annotations

import os
import shutil
import tempfile

from nova import objects
import nova.privsep.path
from oslo_utils import fileutils

from nova_snapext import conf

CONF = conf.CONF

# sun_path of sockaddr_un holds 108 bytes, the closing zero included; unix(7).
SOCKET_PATH_LIMIT = 107


class Directory:
    """A directory that nobody but Nova, and QEMU where it must, can enter."""

    def __init__(self, path: str):
        self.path = path
        self.socket = os.path.join(path, 'nbd')
        self.scratch = os.path.join(path, 'scratch')
        self.pid_file = os.path.join(path, 'pid')

    @classmethod
    def make(cls, instance: objects.Instance) -> Directory:
        """Make the directory of a snapshot, mode 0700.

        :raises ValueError: the path is too long for a Unix socket
        :raises OSError: the directory can't be made
        """
        parent = CONF.snapext.freeze_directory
        fileutils.ensure_tree(parent)
        directory = cls(tempfile.mkdtemp(
            prefix=f'{instance.uuid[:8]}-', dir=parent))
        excess = len(os.fsencode(directory.socket)) - SOCKET_PATH_LIMIT
        if excess > 0:
            directory.remove()
            raise ValueError(
                f'[snapext]freeze_directory {parent} is {excess} bytes too '
                f'long for a Unix socket in it')
        return directory

    def share_with(self, uid: int) -> None:
        """Let another user make files here, which Nova can still remove.

        :param uid: of the user, who becomes the owner; the group stays
            Nova's, and goes to everything that is made here
        """
        if uid == os.geteuid():
            return
        # In this order: a chmod after the chown would have to be privileged,
        # and without CAP_FSETID drops the setgid bit silently.
        os.chmod(self.path, 0o2770)  # noqa: S103
        nova.privsep.path.chown(self.path, uid=uid)

    def remove(self) -> None:
        """Remove the directory with all that is still in it.

        :raises OSError: something can't be removed
        """
        def gone_already(_function, _path, error):  # type: ignore
            # libvirt and QEMU remove their own files, perhaps just now.
            if not issubclass(error[0], FileNotFoundError):
                raise error[1]

        shutil.rmtree(self.path, onerror=gone_already)
