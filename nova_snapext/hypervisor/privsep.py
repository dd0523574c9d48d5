# SPDX-License-Identifier: Apache-2.0
"""The steps that Nova's user may not do, as entry points of privsep.

A function without ``unprivileged_`` in its name runs as root, in a daemon that
oslo.privsep starts. The daemon imports this module in a new process: import
neither Nova nor libvirt here, and pass options as arguments.

The daemon runs no program. QEMU's programs follow what an image says, and a
guest may have written that: they run as Nova's user, always.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import errno
import logging
import os
import stat
import threading
import typing as ty

from oslo_privsep import capabilities
from oslo_privsep import daemon
from oslo_privsep import priv_context

LOG = logging.getLogger(__name__)


class Context(priv_context.PrivContext):
    """A context whose daemon can start before its first step."""

    def __init__(self, *args: ty.Any, **kwargs: ty.Any):
        super().__init__(*args, **kwargs)
        self._starting = threading.Lock()
        self._failed_ahead = False

    def start(self, method: priv_context.Method =
              priv_context.Method.ROOTWRAP) -> None:
        # A second thread waits until the daemon runs. oslo.privsep's own lock
        # does the same, but then it logs a warning.
        with self._starting:
            if self.channel is None:
                super().start(method)

    def start_ahead(self) -> None:
        """Start the daemon in the background, if it does not run.

        The first step would wait 0.4 s for it. If the daemon does not start,
        the step tries it again and raises the error.
        """
        if (self.client_mode and self.channel is None and
                not self._failed_ahead):
            threading.Thread(target=self._start_ahead, name='snapext-privsep',
                             daemon=True).start()

    def _start_ahead(self) -> None:
        try:
            self.start()
        except (daemon.FailedToDropPrivileges, OSError) as error:
            # oslo.privsep has an error in the log for each attempt: one is
            # enough if there is never a step.
            self._failed_ahead = True
            LOG.debug('The privileged helper %s did not start: %s',
                      self.pypath, error)


# CAP_CHOWN lends files to Nova's user, and gives scratch files and directories
# to QEMU's.
# CAP_DAC_READ_SEARCH reads the headers of images that belong to QEMU's user,
# and finds paths in directories that only this user may enter.
context = Context(
    'nova_snapext',
    cfg_section='nova_snapext_privileged',
    pypath=__name__ + '.context',
    capabilities=[capabilities.CAP_CHOWN,
                  capabilities.CAP_DAC_READ_SEARCH],
)

# CAP_SYS_ADMIN reads and writes trusted attributes: xattr(7). It has a context
# of its own, whose daemon starts with the first external snapshot of a block
# device.
label_context = Context(
    'nova_snapext',
    cfg_section='nova_snapext_label_privileged',
    pypath=__name__ + '.label_context',
    capabilities=[capabilities.CAP_SYS_ADMIN],
)

# libvirt's src/security/security_util.c: the owner of a disk before its guest
# started, as +UID:+GID, how many guests use the disk, and when the host
# booted.
LABEL = 'trusted.libvirt.security.'
LABEL_PARTS = ('dac', 'ref_dac', 'timestamp_dac')

# The first bytes of a qcow2: QEMU's docs/interop/qcow2.txt, "Header".
QCOW2_MAGIC = b'QFI\xfb'


@context.entrypoint
def chown(path: str, uid: int, gid: int | None = None) -> None:
    """Change the owner of a file, a block device or a directory.

    A symbolic link at the end of the path is refused: who can write in the
    directory could have put it there.

    :param gid: the new group; None keeps the group
    :raises OSError: the path does not exist or is something else, or its file
        system refuses
    """
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode) or
                stat.S_ISDIR(mode)):
            raise OSError(errno.EPERM, f'The owner of {path} is not changed, '
                                       f'as it is {stat.filemode(mode)}')
        # This descriptor can't be given to fchown(2): open(2), "O_PATH".
        os.chown(f'/proc/self/fd/{descriptor}', uid,
                 -1 if gid is None else gid)
    finally:
        os.close(descriptor)


@label_context.entrypoint
def read_owner_label(path: str) -> dict[str, str]:
    """Return what libvirt has noted of the owner of a block device.

    :returns: the parts of the note by their names, none if there is none
    :raises OSError: the path does not exist
    """
    with _block_device(path) as device:
        found = {}
        for part in LABEL_PARTS:
            try:
                found[part] = os.getxattr(device, LABEL + part).decode()
            except OSError as error:
                if error.errno not in (errno.ENODATA, errno.ENOTSUP):
                    raise
        return found


@label_context.entrypoint
def write_owner_label(path: str, label: dict[str, str]) -> None:
    """Let libvirt find a note again that it has lost.

    :param label: as from :func:`read_owner_label`
    :raises OSError: the path is no block device
    """
    with _block_device(path) as device:
        for part in LABEL_PARTS:
            os.setxattr(device, LABEL + part, label[part].encode())


@label_context.entrypoint
def remove_owner_label(path: str) -> None:
    """Remove a note that libvirt has no use for: its guest has ended.

    :raises OSError: the path is no block device
    """
    with _block_device(path) as device:
        for part in LABEL_PARTS:
            try:
                os.removexattr(device, LABEL + part)
            except OSError as error:
                if error.errno != errno.ENODATA:
                    raise


@contextlib.contextmanager
def _block_device(path: str) -> Iterator[str]:
    """Open a block device for nothing but its attributes.

    :returns: a path that nobody can replace
    """
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISBLK(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENOTBLK, f'{path} is no block device')
        yield f'/proc/self/fd/{descriptor}'
    finally:
        os.close(descriptor)


@context.entrypoint
def read_qcow2(path: str, offset: int, length: int) -> bytes:
    return unprivileged_read_qcow2(path, offset, length)


def unprivileged_read_qcow2(path: str, offset: int, length: int) -> bytes:
    """Read from a qcow2, which a guest may be using.

    Of another file it returns nothing, so that it can't be used to read what
    is secret.

    :param offset: position in the file, in bytes
    :param length: in bytes
    :returns: at most that many bytes
    :raises OSError: the file can't be opened or read
    """
    with _opened(path, stat.S_ISREG, stat.S_ISBLK) as descriptor:
        if (descriptor is None or
                os.pread(descriptor, len(QCOW2_MAGIC), 0) != QCOW2_MAGIC):
            return b''
        return os.pread(descriptor, length, offset)


@context.entrypoint
def sync(path: str) -> None:
    """Make the content of a file, or the entries of a directory, durable.

    :raises OSError: the path does not exist or is something else, or its
        storage has failed
    """
    with _opened(path, stat.S_ISREG, stat.S_ISDIR) as descriptor:
        if descriptor is None:
            raise OSError(errno.EPERM, f'{path} is not synced, as it is '
                                       f'neither a file nor a directory')
        os.fsync(descriptor)


@contextlib.contextmanager
def _opened(path: str,
            *types: Callable[[int], bool]) -> Iterator[int | None]:
    """Open a path to read it, if it has one of some types.

    It may be that of a pipe, whose open would wait, or of a device that does
    something when it is opened.

    :param types: functions of :mod:`stat`
    :returns: a file descriptor; None if it is something else
    """
    found = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        mode = os.fstat(found).st_mode
        descriptor = os.open(
            f'/proc/self/fd/{found}', os.O_RDONLY | os.O_CLOEXEC,
        ) if any(is_type(mode) for is_type in types) else None
    finally:
        os.close(found)
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)
