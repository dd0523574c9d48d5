# SPDX-License-Identifier: Apache-2.0
"""The files of the journal: one for each snapshot."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import typing as ty

from oslo_log import log as logging
from oslo_utils import fileutils
from oslo_utils import timeutils
from oslo_utils import uuidutils

from nova_snapext import conf
from nova_snapext import durable
from nova_snapext import exception
from nova_snapext.journal import resource as journal_resource
from nova_snapext import plan as planning

CONF = conf.CONF
LOG = logging.getLogger(__name__)

#: Version of the format of the files. A file of another version is set aside.
VERSION = 1

SUFFIX = '.json'
# A file that is being written, until it replaces the previous one.
NEW = '.new'
SET_ASIDE = '.unreadable'
LOCK = 'lock'

READ_ERRORS = (OSError, ValueError, TypeError, KeyError, AttributeError,
               exception.JournalRecordError)


@dataclasses.dataclass(eq=False)
class JournalRecord:
    """The record of one resource.

    :ivar kind: the kind of the resource, see Resource.kind
    :ivar data: what its record() returned
    :ivar blocks_start: the resource's blocks_start, for a reader that does
        not know the kind
    """

    kind: str
    data: dict[str, ty.Any]
    blocks_start: bool

    @classmethod
    def of(cls, resource: journal_resource.Resource) -> JournalRecord:
        """Return the record of a resource as it is now."""
        return cls(resource.kind, resource.record(), resource.blocks_start)


@dataclasses.dataclass(eq=False)
class JournalEntry:
    """The journal's entry of one snapshot, which is one file.

    :ivar instance_uuid: uuid of the instance
    :ivar instance_name: name of its libvirt domain
    :ivar disk: the disk that is snapshotted
    :ivar image_id: the image's id in Glance
    :ivar strategy: name of the strategy
    :ivar began_at: when the snapshot began, UTC, in ISO 8601
    :ivar records: records of its resources; the last one is released first
    """

    instance_uuid: str
    instance_name: str
    disk: planning.RootDisk
    image_id: str
    strategy: str
    began_at: str
    records: list[JournalRecord] = dataclasses.field(default_factory=list)

    @property
    def path(self) -> str:
        return _path(self.instance_uuid)

    def add(self, resource: journal_resource.Resource) -> JournalRecord:
        """Record a resource that does not exist yet.

        :raises OSError: the record can't be written; do not create the
            resource
        """
        record = JournalRecord.of(resource)
        self.records.append(record)
        try:
            self.write()
        except OSError:
            self.records.remove(record)
            raise
        self.bind(record, resource)
        LOG.debug('Journal of instance %(instance)s: added %(kind)s %(data)s',
                  {'instance': self.instance_uuid, 'kind': record.kind,
                   'data': record.data})
        return record

    def bind(self, record: JournalRecord,
             resource: journal_resource.Resource) -> None:
        """Make resource.save() update its record in this entry."""
        def save() -> None:
            if record not in self.records:
                return  # it is released
            record.data = resource.record()
            self.write()
            LOG.debug('Journal of instance %(instance)s: %(kind)s is now '
                      '%(data)s', {'instance': self.instance_uuid,
                                   'kind': record.kind, 'data': record.data})

        resource.save = save

    def remove(self, record: JournalRecord) -> None:
        """Remove the record of a released resource, if it is still there."""
        if record not in self.records:
            return
        self.records.remove(record)
        try:
            self.write()
        except OSError as error:
            # It does no harm to release the resource again.
            LOG.warning('Could not write the journal %(path)s (%(error)s). It '
                        'still records %(kind)s, which is released',
                        {'path': self.path, 'error': error,
                         'kind': record.kind})
        else:
            LOG.debug('Journal of instance %(instance)s: removed %(kind)s',
                      {'instance': self.instance_uuid, 'kind': record.kind})

    def write(self, exclusive: bool = False) -> None:
        """Write the file, and return when it is safe on disk.

        :param exclusive: fail if there is a file already
        :raises FileExistsError: there is a file already
        :raises OSError: the file can't be written; the previous one is
            unchanged
        """
        content = {'version': VERSION, 'host': CONF.host,
                   **dataclasses.asdict(self)}
        new = f'{self.path}{NEW}'
        with open(new, 'w') as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        if exclusive:
            try:
                os.link(new, self.path)
            finally:
                os.unlink(new)
        else:
            os.rename(new, self.path)
        durable.sync(CONF.snapext.journal_directory)

    def close(self) -> None:
        """Remove the file, if no record is left in it.

        :raises OSError: the file can't be removed
        """
        if self.records:
            LOG.debug('Journal of instance %(instance)s: %(kinds)s are left',
                      {'instance': self.instance_uuid,
                       'kinds': [record.kind for record in self.records]})
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        durable.sync(CONF.snapext.journal_directory)
        LOG.debug('Journal of instance %s: entry removed', self.instance_uuid)


@contextlib.contextmanager
def new_entry(plan: planning.Plan, strategy: str,
              *resources: journal_resource.Resource,
              ) -> Iterator[JournalEntry]:
    """Create the entry of a snapshot; close it when the context is left.

    :param strategy: name of the strategy
    :param resources: resources that the entry records from its beginning
    :raises SnapshotInProgress: the instance has an entry already
    :raises JournalFailed: the entry can't be written
    """
    entry = JournalEntry(
        instance_uuid=plan.instance.uuid, instance_name=plan.instance.name,
        disk=plan.disk, image_id=plan.image_id, strategy=strategy,
        records=[JournalRecord.of(resource) for resource in resources],
        began_at=timeutils.utcnow().isoformat())
    try:
        fileutils.ensure_tree(CONF.snapext.journal_directory, 0o700)
        entry.write(exclusive=True)
    except FileExistsError as error:
        raise exception.SnapshotInProgress(
            instance=plan.instance.uuid, path=entry.path) from error
    except OSError as error:
        raise _failed(error) from error
    LOG.debug('Journal of instance %(instance)s: entry created as %(path)s, '
              'with %(kinds)s',
              {'instance': entry.instance_uuid, 'path': entry.path,
               'kinds': [record.kind for record in entry.records]})
    for record, resource in zip(entry.records, resources, strict=True):
        entry.bind(record, resource)
    try:
        yield entry
    finally:
        entry.close()


def find(instance_uuid: str) -> JournalEntry | None:
    """Return the entry of an instance; None if it has no readable one."""
    return _read(_path(instance_uuid))


def entries() -> list[JournalEntry]:
    """Return all readable entries."""
    found = (_read(os.path.join(CONF.snapext.journal_directory, name))
             for name in _names() if name.endswith(SUFFIX))
    return [entry for entry in found if entry is not None]


def finish_writes() -> None:
    """Finish or undo the writes that a crash interrupted.

    Call this while nothing else uses the journal.
    """
    for name in _names():
        if not name.endswith(f'{SUFFIX}{NEW}'):
            continue
        new = os.path.join(CONF.snapext.journal_directory, name)
        path = new.removesuffix(NEW)
        if os.path.exists(path) or not _is_readable(new):
            os.unlink(new)
            LOG.debug('Removed %s, which a crash left half-written', new)
        else:
            os.rename(new, path)
            LOG.debug('Finished writing %s after a crash', path)
    durable.sync(CONF.snapext.journal_directory)


@contextlib.contextmanager
def locked(wait: bool = False) -> Iterator[None]:
    """Lock the journal against other processes of this host.

    The lock ends with the process.

    :param wait: wait while another process has the lock
    :raises JournalLocked: another process has the lock
    :raises JournalFailed: the journal can't be used at all
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
                raise _failed(error) from error
            is_locked = exception.JournalLocked(path=path)
            if not wait:
                raise is_locked from error
            LOG.warning('%s Waiting until it has ended', is_locked)
            fcntl.flock(file, fcntl.LOCK_EX)
        LOG.debug('Locked the journal %s', path)
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


def _read(path: str) -> JournalEntry | None:
    """Return an entry; set an unreadable file aside and report it."""
    try:
        return _load(path)
    except FileNotFoundError:
        return None
    except READ_ERRORS as error:
        aside = f'{path}{SET_ASIDE}'
        LOG.error('The journal of a snapshot, %(path)s, can\'t be read '
                  '(%(error)s), and is set aside as %(aside)s. The resources '
                  'that it records may be left on this host. An overlay '
                  'disk.snapext in the directory of the instance is still '
                  'found when the instance is started; check virsh '
                  'domjobinfo and %(work)s for the rest',
                  {'path': path, 'error': error, 'aside': aside,
                   'work': CONF.snapext.work_directory})
        os.rename(path, aside)
        return None


def _is_readable(path: str) -> bool:
    try:
        _load(path)
    except READ_ERRORS:
        return False
    return True


def _load(path: str) -> JournalEntry:
    with open(path) as file:
        content = json.load(file)
    return _parse(content, os.path.basename(path).removesuffix(NEW))


def _parse(content: ty.Any, name: str) -> JournalEntry:
    version = content.pop('version')
    if version != VERSION:
        raise exception.JournalRecordError(
            reason=f'its version is {version!r}, not {VERSION}')
    content.pop('host')
    records = [JournalRecord(**record) for record in content.pop('records')]
    entry = JournalEntry(disk=planning.RootDisk(**content.pop('disk')),
                         records=records, **content)
    if (not uuidutils.is_uuid_like(entry.instance_uuid) or
            name != f'{entry.instance_uuid}{SUFFIX}'):
        raise exception.JournalRecordError(
            reason=f'it names the instance {entry.instance_uuid!r}')
    return entry
