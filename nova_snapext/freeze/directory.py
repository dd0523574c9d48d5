# SPDX-License-Identifier: Apache-2.0
"""The directory of a running snapshot: its NBD socket and scratch file."""

from __future__ import annotations

import os
import secrets
import shutil
import typing as ty

from nova import objects
import nova.privsep.path
from nova.virt.libvirt import driver as libvirt_driver
from oslo_utils import fileutils

from nova_snapext import conf
from nova_snapext import journal
from nova_snapext import plan as planning

CONF = conf.CONF

# sun_path of sockaddr_un holds 108 bytes, the closing zero included; unix(7).
SOCKET_PATH_LIMIT = 107


class Directory(journal.Resource):
    """A directory that nobody but Nova, and QEMU where it must, can enter."""

    kind = 'directory'

    def __init__(self, path: str):
        self.path = path
        self.socket = os.path.join(path, 'nbd')
        self.scratch = os.path.join(path, 'scratch')
        self.pid_file = os.path.join(path, 'pid')

    @classmethod
    def choose(cls, instance: objects.Instance) -> Directory:
        """Name a directory for a snapshot, which does not exist yet.

        :raises ValueError: the path is too long for a Unix socket
        """
        parent = CONF.snapext.freeze_directory
        directory = cls(os.path.join(
            parent, f'{instance.uuid[:8]}-{secrets.token_hex(4)}'))
        excess = len(os.fsencode(directory.socket)) - SOCKET_PATH_LIMIT
        if excess > 0:
            raise ValueError(
                f'[snapext]freeze_directory {parent} is {excess} bytes too '
                f'long for a Unix socket in it')
        return directory

    def make(self) -> None:
        """Make it, mode 0700.

        :raises OSError: it can't be made
        """
        fileutils.ensure_tree(os.path.dirname(self.path))
        os.mkdir(self.path, 0o700)

    def record(self) -> dict[str, ty.Any]:
        return {'path': self.path}

    @classmethod
    def restore(cls, driver: libvirt_driver.LibvirtDriver,
                plan: planning.Plan, record: dict[str, ty.Any]) -> Directory:
        return cls(**record)

    def release(self) -> None:
        self.remove()

    def __str__(self) -> str:
        return f'the directory {self.path}'

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
