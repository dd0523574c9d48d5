# SPDX-License-Identifier: Apache-2.0
"""What a running snapshot holds, written down before it exists.

One small file for each snapshot, which goes with its end. What is in it when
nova-compute starts was left by a crash: :mod:`nova_snapext.recovery` releases
it then.

This is a stack of things to release, as contextlib.ExitStack is, but one that
outlives the process. It never holds a secret.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import typing as ty

from nova.virt.libvirt import driver as libvirt_driver
from oslo_log import log as logging
from oslo_utils import fileutils
from oslo_utils import timeutils
from oslo_utils import uuidutils

from nova_snapext import conf
from nova_snapext import exception
from nova_snapext import plan as planning

CONF = conf.CONF
LOG = logging.getLogger(__name__)

#: Of the files' format. One that is newer than this is set aside.
VERSION = 1

SUFFIX = '.json'
# What is being written, until it takes the place of what there was.
UNWRITTEN = '.new'
SET_ASIDE = '.unreadable'
LOCK = 'lock'

UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError)


class Resource(abc.ABC):
    """Something that a snapshot holds, and a crash would leave behind.

    :cvar kind: by which the journal knows it
    :cvar vital: whether a guest that was started or moved while it is there
        would lose what it has written
    """

    kind: ty.ClassVar[str]
    vital: ty.ClassVar[bool] = False

    #: Writes down anew what :meth:`record` gives, once it is in the journal.
    renew: ty.Callable[[], None] = staticmethod(lambda: None)

    @abc.abstractmethod
    def record(self) -> dict[str, ty.Any]:
        """Give all that is needed to release it, as JSON has it."""

    @classmethod
    @abc.abstractmethod
    def restore(cls, driver: libvirt_driver.LibvirtDriver,
                plan: planning.Plan, record: dict[str, ty.Any]) -> ty.Self:
        """Make one that can be released, from what was recorded.

        :param plan: of the snapshot, as far as the journal has it
        """

    @abc.abstractmethod
    def release(self) -> None:
        """Let go of it, whatever has become of it; it may not even exist.

        May be called again, in another process too, also when it was ended
        half-way before.

        :raises ReleaseFailed: it can't be; what is there is as it was
        """

    def __str__(self) -> str:
        return self.kind


@dataclasses.dataclass(eq=False)
class Record:
    """A resource, as it stands in the journal."""

    kind: str
    data: dict[str, ty.Any]


@dataclasses.dataclass(eq=False)
class Entry:
    """What the journal has of one snapshot.

    :ivar instance: its uuid
    :ivar name: of its domain
    :ivar disk: that is snapshotted
    :ivar image: its id in Glance
    :ivar strategy: by which the snapshot is taken
    :ivar began: when, UTC, in ISO 8601
    :ivar records: of what it holds, the last one to be released first
    """

    instance: str
    name: str
    disk: planning.RootDisk
    image: str
    strategy: str
    began: str
    records: list[Record] = dataclasses.field(default_factory=list)

    @property
    def path(self) -> str:
        return _path(self.instance)

    def add(self, resource: Resource) -> Record:
        """Write down a resource that does not exist yet.

        :raises OSError: it can't be written down, and must not be made
        """
        record = Record(resource.kind, resource.record())
        self.records.append(record)
        try:
            self.write()
        except OSError:
            self.records.remove(record)
            raise
        self.attach(record, resource)
        return record

    def attach(self, record: Record, resource: Resource) -> None:
        """Have what a resource notes of itself written down."""
        def renew() -> None:
            record.data = resource.record()
            self.write()

        resource.renew = renew

    def forget(self, record: Record) -> None:
        """Take off a resource that is released; again is no error."""
        if record not in self.records:
            return
        self.records.remove(record)
        try:
            self.write()
        except OSError as error:
            # Releasing it again does no harm.
            LOG.warning('The journal %(path)s could not be written (%(error)s)'
                        ', and goes on to have %(kind)s, which is released',
                        {'path': self.path, 'error': error,
                         'kind': record.kind})

    def write(self, exclusive: bool = False) -> None:
        """Write it down, for good when this returns.

        :param exclusive: it is new
        :raises FileExistsError: it is not
        :raises OSError: it could not be written; what there was is still there
        """
        content = {'version': VERSION, 'host': CONF.host,
                   **dataclasses.asdict(self)}
        beside = f'{self.path}{UNWRITTEN}'
        with open(beside, 'w') as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        if exclusive:
            try:
                os.link(beside, self.path)
            finally:
                os.unlink(beside)
        else:
            os.rename(beside, self.path)
        _sync_directory()

    def close(self) -> None:
        """End it, if it holds nothing any more.

        :raises OSError: the file can't be removed
        """
        if self.records:
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        _sync_directory()


class ReleaseStack(contextlib.ExitStack):
    """An ExitStack whose resources are in the journal while they are held."""

    def __init__(self, entry: Entry):
        super().__init__()
        self._entry = entry
        self._records: dict[Resource, Record] = {}

    def hold(self, resource: Resource) -> None:
        """Write down a resource that is about to be made, to be released.

        :raises OSError: it can't be written down, and must not be made
        """
        self._records[resource] = self._entry.add(resource)
        self.callback(self._release, resource)

    def settle(self, resource: Resource) -> None:
        """Take off a resource that is released already."""
        self._entry.forget(self._records.pop(resource))

    def _release(self, resource: Resource) -> None:
        if resource in self._records:
            resource.release()
            self.settle(resource)


@contextlib.contextmanager
def opened(plan: planning.Plan, strategy: str,
           *held: Resource) -> Iterator[Entry]:
    """Have an entry for a snapshot, for as long as it holds anything.

    :param held: what it holds from the first
    :raises SnapshotOutstanding: the instance has one already
    :raises JournalFailed: it can't be written
    """
    entry = Entry(
        instance=plan.instance.uuid, name=plan.instance.name, disk=plan.disk,
        image=plan.image_id, strategy=strategy,
        records=[Record(one.kind, one.record()) for one in held],
        began=timeutils.utcnow().isoformat())
    try:
        fileutils.ensure_tree(CONF.snapext.journal_directory, 0o700)
        entry.write(exclusive=True)
    except FileExistsError as error:
        raise exception.SnapshotOutstanding(
            instance=plan.instance.uuid, path=entry.path) from error
    except OSError as error:
        raise _failed(error) from error
    try:
        yield entry
    finally:
        entry.close()


def find(instance_uuid: str) -> Entry | None:
    """Give the entry of an instance, if it has one that can be read."""
    return _read(_path(instance_uuid))


def entries() -> list[Entry]:
    """List all that can be read."""
    found = (_read(os.path.join(CONF.snapext.journal_directory, name))
             for name in _names() if name.endswith(SUFFIX))
    return [entry for entry in found if entry is not None]


def finish_writes() -> None:
    """Finish the entries that a crash has left half-written, or undo them.

    While nobody else uses the journal.
    """
    for name in _names():
        if not name.endswith(f'{SUFFIX}{UNWRITTEN}'):
            continue
        beside = os.path.join(CONF.snapext.journal_directory, name)
        path = beside.removesuffix(UNWRITTEN)
        if os.path.exists(path) or not _is_readable(beside):
            os.unlink(beside)
        else:
            os.rename(beside, path)
    _sync_directory()


@contextlib.contextmanager
def locked(wait: bool = False) -> Iterator[None]:
    """Keep any other process of this host from using the journal.

    The lock goes with the process.

    :param wait: for the end of one that does
    :raises JournalLocked: one does
    :raises JournalFailed: it can't be used at all
    """
    path = os.path.join(CONF.snapext.journal_directory, LOCK)
    with contextlib.ExitStack() as stack:
        try:
            fileutils.ensure_tree(CONF.snapext.journal_directory, 0o700)
            file = stack.enter_context(open(path, 'a'))
        except OSError as error:
            raise _failed(error) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            locked = exception.JournalLocked(path=path)
            if not wait:
                raise locked from error
            LOG.warning('%s Its end is waited for', locked)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _failed(error: OSError) -> exception.JournalFailed:
    return exception.JournalFailed(
        path=CONF.snapext.journal_directory, reason=str(error))


def _names() -> list[str]:
    try:
        return sorted(os.listdir(CONF.snapext.journal_directory))
    except FileNotFoundError:
        return []


def _path(instance_uuid: str) -> str:
    return os.path.join(CONF.snapext.journal_directory,
                        f'{instance_uuid}{SUFFIX}')


def _read(path: str) -> Entry | None:
    """Read an entry; what can't be read is set aside, and told."""
    try:
        return _load(path)
    except FileNotFoundError:
        return None
    except UNREADABLE as error:
        aside = f'{path}{SET_ASIDE}'
        LOG.error('The journal of a snapshot, %(path)s, can\'t be read '
                  '(%(error)s), and is set aside as %(aside)s. What it tells '
                  'of may be left on this host: an overlay disk.snapext in '
                  'the instance\'s directory is still found when the '
                  'instance is started; see virsh domjobinfo and %(freeze)s '
                  'for the rest',
                  {'path': path, 'error': error, 'aside': aside,
                   'freeze': CONF.snapext.freeze_directory})
        os.rename(path, aside)
        return None


def _is_readable(beside: str) -> bool:
    try:
        _load(beside)
    except UNREADABLE:
        return False
    return True


def _load(path: str) -> Entry:
    with open(path) as file:
        content = json.load(file)
    return _parse(content, os.path.basename(path).removesuffix(UNWRITTEN))


def _parse(content: ty.Any, name: str) -> Entry:
    version = content.pop('version')
    if version != VERSION:
        raise ValueError(f'its version is {version!r}, and not {VERSION}')
    content.pop('host')
    records = [Record(**record) for record in content.pop('records')]
    entry = Entry(disk=planning.RootDisk(**content.pop('disk')),
                  records=records, **content)
    if (not uuidutils.is_uuid_like(entry.instance) or
            name != f'{entry.instance}{SUFFIX}'):
        raise ValueError(f'it is of the instance {entry.instance!r}')
    return entry


def _sync_directory() -> None:
    directory = os.open(CONF.snapext.journal_directory, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
