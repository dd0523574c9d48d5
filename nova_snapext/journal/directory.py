# SPDX-License-Identifier: Apache-2.0
"""The journal's directory: its lock, and how its files are read and written.

Reading changes nothing. What can't be read is reported, and only nova-compute
sets it aside, when it starts.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import datetime
import errno
import fcntl
import os
import stat

from oslo_log import log as logging
from oslo_utils import fileutils
from oslo_utils import units

from nova_snapext import conf
from nova_snapext import durable
from nova_snapext import exception

CONF = conf.CONF
LOG = logging.getLogger(__name__)

# A file that is being written, until it replaces the previous one.
NEW = durable.NEW
SET_ASIDE = '.unreadable'
LOCK = 'lock'

# Bytes. An entry has a few KiB; one with the definitions of a hundred devices
# has 100 KiB.
MAX_SIZE = units.Mi

# Without waiting for the other end of a FIFO, and without following a link.
READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

# Whether this process has the lock. flock(2) does not tell: it refuses a
# second descriptor of the same process as it refuses another process.
_is_locked_here = False


def names() -> list[str]:
    """List the names in the directory; none if it does not exist.

    :raises JournalFailed: it can't be read
    """
    try:
        return sorted(os.listdir(CONF.snapext.journal_directory))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise failed(error) from error


def path_of(name: str) -> str:
    """Return the path of a file in the directory."""
    return os.path.join(CONF.snapext.journal_directory, name)


def create() -> None:
    """Create the directory, readable by Nova's user alone.

    :raises OSError: it can't be created
    """
    fileutils.ensure_tree(CONF.snapext.journal_directory, 0o700)


def read(path: str) -> bytes:
    """Return the content of a file that only Nova's user could write.

    :raises FileNotFoundError: there is none
    :raises JournalFileInvalid: it is too large, or no regular file
    :raises JournalFileInaccessible: it can't be read, or others can write it
    """
    try:
        descriptor = os.open(path, READ_FLAGS)
    except FileNotFoundError:
        raise
    except OSError as error:
        # A link, and a socket or device without a driver.
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENODEV):
            raise exception.JournalFileInvalid(
                reason='it is no regular file') from error
        raise exception.JournalFileInaccessible(reason=str(error)) from error
    try:
        _check(os.fstat(descriptor))
        with open(descriptor, 'rb', closefd=False) as file:
            return file.read(MAX_SIZE)
    except OSError as error:
        raise exception.JournalFileInaccessible(reason=str(error)) from error
    finally:
        os.close(descriptor)


def _check(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise exception.JournalFileInvalid(reason='it is no regular file')
    if status.st_size > MAX_SIZE:
        raise exception.JournalFileInvalid(
            reason=f'it has more than {MAX_SIZE} bytes')
    trusted = {0, os.geteuid(),
               os.stat(CONF.snapext.journal_directory).st_uid}
    if status.st_uid not in trusted:
        raise exception.JournalFileInaccessible(
            reason=f'it belongs to user {status.st_uid}. If its content is '
                   f'right, give it to the user of nova-compute')
    if status.st_mode & stat.S_IWOTH:
        raise exception.JournalFileInaccessible(
            reason='every user may write it. If its content is right, run '
                   '"chmod o-w" on it')


def write(path: str, content: bytes, exclusive: bool = False) -> None:
    """Write a file, and return when it is safe on disk.

    :param exclusive: fail if there is a file already
    :raises FileExistsError: there is a file already
    :raises OSError: the file can't be written; the previous one is unchanged
    """
    if len(content) > MAX_SIZE:
        # Nobody would read it.
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
    new = f'{path}{NEW}'
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)
    descriptor = os.open(
        new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        if exclusive:
            os.link(new, path)
        else:
            os.rename(new, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
    durable.sync(CONF.snapext.journal_directory)


def set_aside(path: str, why: object, hint: str) -> None:
    """Rename what can't be read, and report it. Nothing is lost or replaced.

    :param hint: what may be left, and where to look
    """
    number, aside = 0, f'{path}{SET_ASIDE}'
    while os.path.lexists(aside):
        number += 1
        aside = f'{path}{SET_ASIDE}.{number}'
    try:
        os.rename(path, aside)
        durable.sync(CONF.snapext.journal_directory)
    except OSError as error:
        LOG.error('%(path)r in the journal can\'t be read (%(why)s), and '
                  'can\'t be set aside (%(error)s). %(hint)s',
                  {'path': path, 'why': why, 'error': error, 'hint': hint})
    else:
        LOG.error('%(path)r in the journal can\'t be read (%(why)s), and is '
                  'set aside as %(aside)r. %(hint)s',
                  {'path': path, 'why': why, 'aside': aside, 'hint': hint})


@contextlib.contextmanager
def locked(wait: bool = False) -> Iterator[None]:
    """Lock the journal against other processes of this host.

    The lock ends with the process.

    :param wait: wait while another process has the lock
    :raises JournalLocked: another process has the lock
    :raises JournalFailed: the journal can't be used at all
    """
    global _is_locked_here
    path = path_of(LOCK)
    with contextlib.ExitStack() as stack:
        try:
            create()
            descriptor = _open_lock(path)
            stack.callback(os.close, descriptor)
        except OSError as error:
            raise failed(error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise failed(error) from error
            is_locked = exception.JournalLocked(path=path)
            if not wait:
                raise is_locked from error
            LOG.warning('%s Waiting until it has ended', is_locked)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if not _is_at(path, descriptor):
            # Its last owner has removed it: see remove_if_empty().
            raise exception.JournalLocked(path=path)
        # For locked_since(), which only informs.
        with contextlib.suppress(OSError):
            os.utime(descriptor)
        LOG.debug('Locked the journal %s', path)
        _is_locked_here = True
        stack.callback(_unlocked)
        yield


def _is_at(path: str, descriptor: int) -> bool:
    """Return whether an open file is the one that has a path now."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def remove_if_empty() -> None:
    """Remove the directory, if it has nothing but the lock of this process."""
    with contextlib.suppress(OSError):
        if names() == [LOCK]:
            os.unlink(path_of(LOCK))
            os.rmdir(CONF.snapext.journal_directory)


def _unlocked() -> None:
    global _is_locked_here
    _is_locked_here = False


def is_locked_by_another() -> bool:
    """Return whether another process has the lock. This writes nothing.

    Nova-compute has it as long as it runs. The check has the lock for a
    moment: a command that starts in that moment is refused.

    :raises JournalFailed: the lock can't be read
    """
    if _is_locked_here:
        return False
    try:
        descriptor = os.open(path_of(LOCK), READ_FLAGS)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            return False  # it is no lock, see _open_lock()
        raise failed(error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def locked_since() -> str | None:
    """Return when the lock was taken last, UTC, in ISO 8601.

    :returns: None if it never was
    """
    try:
        seconds = os.lstat(path_of(LOCK)).st_mtime
    except OSError:
        return None
    return datetime.datetime.fromtimestamp(
        seconds, datetime.UTC).replace(tzinfo=None).isoformat()


def _open_lock(path: str) -> int:
    """Open the lock's file, and create it if necessary.

    :raises OSError: it can't be opened
    """
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(path).st_mode):
            set_aside(path, 'it is no regular file', 'It was no lock.')
    return os.open(
        path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def failed(error: OSError) -> exception.JournalFailed:
    """Return the error for a journal that can't be used."""
    return exception.JournalFailed(
        path=CONF.snapext.journal_directory, reason=str(error))
