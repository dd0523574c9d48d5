# SPDX-License-Identifier: Apache-2.0
"""The work directory of one snapshot: its NBD socket and scratch file.

Below ``[snapext]work_directory``::

    libvirt-<instance uuid>/     0711, Nova's, for all snapshots of a guest
        <8 hex digits>/          0700, Nova's; 0710 while a job begins
            scratch              0600, QEMU's: old content of what is written
            qemu/                2770, QEMU's: only while a job begins
                nbd              the socket as QEMU creates it
            nbd                  the socket that Nova connects to
            pid                  PID file of qemu-nbd

Nobody but QEMU's user creates a file where QEMU's user can write, and nobody
but Nova's user where Nova connects to.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import errno
import glob
import os
import re
import secrets
import stat
import typing as ty
import uuid

from nova import objects
from nova.virt.libvirt import driver as libvirt_driver
from oslo_log import log as logging
from oslo_utils import fileutils
from oslo_utils import timeutils

from nova_snapext import conf
from nova_snapext import durable
from nova_snapext import exception
from nova_snapext.hypervisor import privsep
from nova_snapext.hypervisor import qemu_img
from nova_snapext import journal
from nova_snapext.journal import schema
from nova_snapext import plan as planning

CONF = conf.CONF
LOG = logging.getLogger(__name__)

# sun_path of sockaddr_un has 108 bytes, including the final zero: unix(7).
SOCKET_PATH_LIMIT = 107

# libvirt's name of a guest's AppArmor profile (AA_PREFIX in its
# src/security/security_apparmor.c). In a rule of the profile,
# @{profile_name} in a path then stands for the guest's own directory.
GUEST_PREFIX = 'libvirt-'

# No two snapshots of a guest share a directory. A longer name would leave less
# for the path of the work directory.
TOKEN_BYTES = 4

FORM = re.compile(
    rf'/(?!/)(?:.*/)?{GUEST_PREFIX}'
    r'([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})/'
    rf'[0-9a-f]{{{2 * TOKEN_BYTES}}}', re.DOTALL)

SOCKET, SCRATCH, PID_FILE, QEMU = 'nbd', 'scratch', 'pid', 'qemu'
# Names that an NFS client gives to removed files that are still open.
NFS = r'\.nfs[0-9a-f]+'
# Bytes of the names of directories that _remove() has moved to the top.
MOVED_BYTES = 8
NAME = re.compile('|'.join((SOCKET, SCRATCH, PID_FILE, QEMU, NFS,
                            rf'[0-9a-f]{{{2 * MOVED_BYTES}}}')))

# Bytes that a socket's path leaves for [snapext]work_directory.
PATH_LIMIT = SOCKET_PATH_LIMIT - len(
    f'/{GUEST_PREFIX}{uuid.UUID(int=0)}/{"0" * 2 * TOKEN_BYTES}/{QEMU}/'
    f'{SOCKET}')

# Each fails only if the release of another snapshot of the same guest has
# removed the guest's directory in this very moment.
CREATE_ATTEMPTS = 10


class WorkDirectory(journal.Resource):
    """A directory of Nova, in which QEMU can search while a job begins.

    Recorded: its path. Restored: as recorded, if it is a work directory of
    the instance. Released: removed, with all files that are still in it.

    :ivar path: path of the directory
    :ivar socket: path of the NBD server's Unix socket
    :ivar qemu_socket: path where QEMU creates its NBD server's Unix socket
    :ivar scratch: path of a backup job's scratch file
    :ivar pid_file: path of qemu-nbd's PID file
    """

    kind = 'work directory'
    blocks_snapshot = False
    record_schema = schema.object_of(path=schema.PATH)

    def __init__(self, path: str):
        self.path = path
        self.socket = os.path.join(path, SOCKET)
        self.scratch = os.path.join(path, SCRATCH)
        self.pid_file = os.path.join(path, PID_FILE)
        self._qemu = os.path.join(path, QEMU)
        self.qemu_socket = os.path.join(self._qemu, SOCKET)

    @classmethod
    def allocate(cls, instance: objects.Instance) -> WorkDirectory:
        """Return a directory for a snapshot. It does not exist yet.

        :raises WorkDirectoryError: the path is too long for a Unix socket
        """
        check_length()
        return cls(os.path.join(
            os.path.abspath(CONF.snapext.work_directory),
            f'{GUEST_PREFIX}{instance.uuid}', secrets.token_hex(TOKEN_BYTES)))

    def record(self) -> dict[str, ty.Any]:
        return {'path': self.path}

    @classmethod
    def restore(cls, driver: libvirt_driver.LibvirtDriver,
                target: planning.Target,
                record: dict[str, ty.Any]) -> WorkDirectory:
        return cls.of_record(record['path'], target)

    @classmethod
    def of_record(cls, path: ty.Any,
                  target: planning.Target) -> WorkDirectory:
        """Return the directory that a record names.

        :raises JournalRecordError: it is not one of this instance
        """
        if not is_ours(path, target.instance.uuid):
            raise exception.JournalRecordError(
                reason=f'the journal names {path!r}, which is not the work '
                       f'directory of a snapshot of this instance, or has '
                       f'something else in it. It is not touched. If a '
                       f'snapshot left it, remove it by hand')
        return cls(path)

    def __str__(self) -> str:
        return f'the work directory {self.path}'

    def create(self) -> None:
        """Create the directory, mode 0700.

        :raises WorkDirectoryError: somebody else has created its parent
        :raises OSError: it can't be created
        """
        parent = os.path.dirname(self.path)
        fileutils.ensure_tree(os.path.dirname(parent))
        for attempt in range(1, CREATE_ATTEMPTS + 1):
            try:
                _create_parent(parent)
                os.mkdir(self.path, 0o700)
                break
            except FileNotFoundError:
                if attempt == CREATE_ATTEMPTS:
                    raise
        LOG.debug('Work directory %s is created', self.path)

    def share_with(self, uid: int, gid: int) -> None:
        """Let QEMU find files here, and create its socket.

        QEMU can write in a directory of its own only, where nothing that has
        privileges creates or opens a file. Nova can remove what is there.

        :param uid: id of the user that QEMU runs as
        :param gid: id of its group
        :raises OSError: the owner or the group can't be changed
        """
        os.mkdir(self._qemu, 0o700)
        if uid == os.geteuid():
            return
        privsep.chown(self.path, os.geteuid(), gid)
        os.chmod(self.path, 0o710)  # noqa: S103  # nosec B103
        # Nova's group becomes the group of the socket. chmod comes first:
        # after chown it would need privileges, and without CAP_FSETID it
        # silently drops the setgid bit.
        os.chmod(self._qemu, 0o2770)  # noqa: S103  # nosec B103
        privsep.chown(self._qemu, uid)
        LOG.debug('Work directory %(path)s is shared with the user %(uid)d '
                  'and the group %(gid)d',
                  {'path': self.path, 'uid': uid, 'gid': gid})

    def create_scratch(self, size: int, uid: int, gid: int) -> None:
        """Create an empty scratch file that belongs to QEMU's user.

        libvirt would create it as root.

        :param size: virtual size of the disk, in bytes
        :param uid: id of the user that QEMU runs as
        :param gid: id of its group
        :raises ProcessExecutionError: it can't be created
        :raises OSError: its owner can't be changed
        """
        qemu_img.create_scratch(self.scratch, size)
        if uid != os.geteuid():
            # libvirt does the same, unless qemu.conf has dynamic_ownership=0.
            privsep.chown(self.scratch, uid, gid)

    def take_socket(self) -> None:
        """Move QEMU's socket to where only Nova can replace it.

        QEMU has no directory to write in afterwards, and can't open anything
        here. Its server ends all the same; QEMU's log then says that the
        socket was not removed.

        :raises UnexpectedState: something else is in its place
        :raises OSError: there is nothing in its place
        """
        # Nobody can change anything in it then.
        _take_over(self._qemu)
        mode = os.lstat(self.qemu_socket).st_mode
        if not stat.S_ISSOCK(mode):
            raise exception.UnexpectedState(
                reason=f'{self.qemu_socket} is not the socket of QEMU, but '
                       f'{stat.filemode(mode)}. Only QEMU\'s user can have '
                       f'done this: look for a guest that has taken over its '
                       f'QEMU')
        os.rename(self.qemu_socket, self.socket)
        remove_tree(self._qemu)
        # QEMU has opened its files. All guests of a host may have one user,
        # and all sockets are listed in /proc/net/unix.
        os.chmod(self.path, 0o700)
        LOG.debug('The socket of QEMU is now %s', self.socket)

    def release(self) -> None:
        self.remove()

    def remove(self) -> None:
        """Remove the directory with all that is still in it.

        :raises OSError: something can't be removed
        """
        remove_tree(self.path)
        parent = os.path.dirname(self.path)
        # Nothing would remove it if it came back after a loss of power.
        with contextlib.suppress(FileNotFoundError):
            durable.sync(parent)
        # It stays if there is another snapshot of the guest. Somebody else's
        # is none of ours.
        with contextlib.suppress(OSError):
            os.rmdir(parent)
            durable.sync_parent(parent)
        LOG.debug('Work directory %s is removed', self.path)


def check_length() -> None:
    """Check that [snapext]work_directory is short enough for a Unix socket.

    :raises WorkDirectoryError: it is too long
    """
    path = os.path.abspath(CONF.snapext.work_directory)
    length = len(os.fsencode(path))
    if length > PATH_LIMIT:
        raise exception.WorkDirectoryError(
            path=path,
            reason=f'the path of a Unix socket in it would have '
                   f'{length + SOCKET_PATH_LIMIT - PATH_LIMIT} bytes, and can '
                   f'have {SOCKET_PATH_LIMIT}. Set [snapext]work_directory to '
                   f'a path of at most {PATH_LIMIT} bytes; this one has '
                   f'{length}')


def find() -> Iterator[str]:
    """Find all work directories below ``[snapext]work_directory``.

    :returns: their paths, sorted
    """
    found = glob.glob(os.path.join(
        glob.escape(os.path.abspath(CONF.snapext.work_directory)),
        f'{GUEST_PREFIX}*', '*'))
    return iter(sorted(path for path in found if FORM.fullmatch(path)))


def is_socket(path: str) -> bool:
    """Return whether a path is that of a work directory's socket.

    :param path: of a server, as libvirt or a command line names it
    """
    directory = re.sub(rf'(/{QEMU})?/{SOCKET}$', '', path)
    return directory != path and FORM.fullmatch(directory) is not None


def is_ours(path: ty.Any, instance_uuid: str | None = None) -> bool:
    """Return whether a path is one that may be removed as a work directory.

    It need not be below ``[snapext]work_directory``: the option may have
    changed since the path was recorded. So it is ours if

    * it is absolute, has the form that :meth:`WorkDirectory.allocate` gives
      it, and no other spelling (no ``..``, no second slash), and
    * it does not exist; or it is a directory, its parent is one, and no
      symbolic link; both belong to Nova's user, who alone can write there;
      and it has nothing in it but what a snapshot creates.

    So whatever a journal names, only what Nova's user has made in this form
    can be removed.

    :param path: anything that JSON has
    :param instance_uuid: the instance that it must be of; None for any
    """
    if not isinstance(path, str) or os.path.normpath(path) != path:
        return False
    found = FORM.fullmatch(path)
    if found is None or instance_uuid not in (None, found.group(1)):
        return False
    return holds_only(path, NAME, os.path.dirname(path))


def holds_only(path: str, name: re.Pattern[str], *parents: str) -> bool:
    """Return whether a directory is Nova's, and has nothing unexpected in it.

    :param name: the names that may be in it
    :param parents: directories that must be Nova's too
    :returns: True also if one of the directories does not exist
    :raises OSError: the storage does not tell
    """
    try:
        return (all(map(_is_own, (*parents, path))) and
                all(map(name.fullmatch, os.listdir(path))))
    except FileNotFoundError:
        return True
    except (NotADirectoryError, ValueError):
        return False
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False


def _is_own(path: str) -> bool:
    """Return whether a path is a directory that only Nova can change.

    :raises OSError: it does not exist, or is in a directory that Nova's user
        can't search
    """
    status = os.lstat(path)
    return (stat.S_ISDIR(status.st_mode) and
            status.st_uid in _own_uids() and
            not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _own_uids() -> tuple[int, ...]:
    """Return the ids of Nova's user, as its directories show them.

    NFS may show one owner for everything (all_squash). The owner of
    instances_path can replace whatever is in it anyway.
    """
    try:
        return os.geteuid(), os.stat(CONF.instances_path).st_uid
    except OSError:
        return (os.geteuid(),)


def _create_parent(path: str) -> None:
    """Create the directory for all snapshots of a guest.

    :raises WorkDirectoryError: somebody else has created it
    :raises OSError: it can't be created
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    if not _is_own(path):
        raise exception.WorkDirectoryError(
            path=path,
            reason='it does not belong to Nova\'s user, or others can write '
                   'in it. Remove it, and let no other user write in '
                   '[snapext]work_directory')
    # Nova's umask must not keep QEMU's user out.
    os.chmod(path, 0o711)  # noqa: S103  # nosec B103


def remove_tree(path: str) -> None:
    """Remove a directory, and whatever another user has put there.

    Other processes may remove their own files at the same time. No symbolic
    link is followed. Each directory becomes Nova's, and so nobody else's,
    before anything in it is touched; all that is below comes to the top, so
    that no depth is too deep. Files are not given to anybody: their owner may
    have linked them from elsewhere.

    :param path: of a directory whose parent nobody else can write in
    :raises OSError: something can't be removed
    """
    try:
        _take_over(path)
    except FileNotFoundError:
        return
    watch = timeutils.StopWatch(CONF.snapext.operation_timeout).start()
    while names := os.listdir(path):
        for name in names:
            if watch.expired():
                raise TimeoutError(
                    errno.ETIMEDOUT, 'Another user keeps adding files', path)
            with contextlib.suppress(FileNotFoundError):
                _remove(os.path.join(path, name), path)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(path)


def _remove(path: str, top: str) -> None:
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        os.unlink(path)
        return
    _take_over(path)
    for name in os.listdir(path):
        below = os.path.join(path, name)
        if stat.S_ISDIR(os.lstat(below).st_mode):
            # Only its owner may move a directory to another one.
            _take_over(below)
            os.rename(below, os.path.join(top, secrets.token_hex(MOVED_BYTES)))
        else:
            os.unlink(below)
    os.rmdir(path)


def _take_over(path: str) -> None:
    """Make a directory Nova's, whom nobody can disturb then.

    :raises OSError: it is not a directory, or does not exist
    """
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(f'{path} is not a directory')
    if status.st_uid != os.geteuid():
        privsep.chown(path, os.geteuid())
    os.chmod(path, 0o700)
