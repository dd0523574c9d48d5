# SPDX-License-Identifier: Apache-2.0
"""The files of the journal's entries: one for each snapshot."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import dataclasses
import os
import re
import typing as ty

from oslo_log import log as logging
from oslo_utils import timeutils

from nova_snapext import conf
from nova_snapext import durable
from nova_snapext import exception
from nova_snapext.journal import directory
from nova_snapext.journal import image
from nova_snapext.journal import resource as journal_resource
from nova_snapext.journal import schema
from nova_snapext import plan as planning

CONF = conf.CONF
LOG = logging.getLogger(__name__)

SUFFIX = '.json'

# The instance's uuid; and the image's, if the entry is set apart.
_NAME = re.compile(r'([0-9a-f-]{36})(\.[0-9a-f-]{36})?' + re.escape(SUFFIX))


@dataclasses.dataclass(eq=False)
class JournalRecord:
    """The record of one resource.

    :ivar kind: the kind of the resource, see Resource.kind
    :ivar data: what its record() returned
    :ivar blocks_start: the resource's blocks_start, for a reader that does
        not know the kind
    :ivar blocks_snapshot: its blocks_snapshot, likewise
    """

    kind: str
    data: dict[str, ty.Any]
    blocks_start: bool
    blocks_snapshot: bool = True

    @classmethod
    def of(cls, resource: journal_resource.Resource) -> JournalRecord:
        """Return the record of a resource as it is now."""
        return cls(resource.kind, resource.record(), resource.blocks_start,
                   resource.blocks_snapshot)


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
    :ivar problem: why the last attempt to clean up failed; None if there was
        none
    :ivar is_set_apart: the file has a name of its own: it does not exclude
        another snapshot of the instance
    """

    instance_uuid: str
    instance_name: str
    disk: planning.RootDisk
    image_id: str
    strategy: str
    began_at: str
    records: list[JournalRecord] = dataclasses.field(default_factory=list)
    problem: str | None = None
    is_set_apart: bool = False

    @property
    def path(self) -> str:
        image_id = f'.{self.image_id}' if self.is_set_apart else ''
        return directory.path_of(f'{self.instance_uuid}{image_id}{SUFFIX}')

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
        try:
            self.remove_for_good(record)
        except exception.JournalFailed as error:
            # It does no harm to release the resource again.
            LOG.warning('%(error)s The journal still records %(kind)s, which '
                        'is released',
                        {'error': error, 'kind': record.kind})

    def remove_for_good(self, record: JournalRecord) -> None:
        """Remove the record of a resource that must not be released again.

        :raises JournalFailed: the file may still have the record
        """
        if record not in self.records:
            return
        self.records.remove(record)
        try:
            self.write()
        except OSError as error:
            raise directory.failed(error) from error
        LOG.debug('Journal of instance %(instance)s: removed %(kind)s',
                  {'instance': self.instance_uuid, 'kind': record.kind})

    def write(self, exclusive: bool = False) -> None:
        """Write the file, and return when it is safe on disk.

        :param exclusive: fail if there is a file already
        :raises FileExistsError: there is a file already
        :raises OSError: the file can't be written; the previous one is
            unchanged
        """
        content = dataclasses.asdict(self)
        del content['is_set_apart']  # the name says it
        directory.write(self.path, schema.dump(content), exclusive)

    def save_problem(self, problem: str) -> None:
        """Record why it could not be cleaned up, if that can be written.

        Only :mod:`nova_snapext.cmd.status` needs it.
        """
        if problem == self.problem:
            return
        self.problem = problem
        try:
            self.write()
        except OSError as error:
            LOG.debug('Could not write the journal %(path)s: %(error)s',
                      {'path': self.path, 'error': error})

    def set_apart(self) -> None:
        """Let the next snapshot begin, while records of this one are left.

        :raises OSError: it can't be renamed, and is unchanged
        """
        if self.is_set_apart:
            return
        before = self.path
        self.is_set_apart = True
        try:
            os.rename(before, self.path)
        except OSError:
            self.is_set_apart = False
            raise
        durable.sync(CONF.snapext.journal_directory)
        LOG.debug('Journal of instance %(instance)s: %(kinds)s are left, and '
                  'set apart as %(path)s',
                  {'instance': self.instance_uuid, 'path': self.path,
                   'kinds': [record.kind for record in self.records]})

    def close(self) -> None:
        """Remove the file, if no record is left in it.

        A file that can't be removed records nothing, and is removed before
        the next snapshot.
        """
        if self.records:
            kinds = ', '.join(record.kind for record in self.records)
            LOG.debug('Journal of instance %(instance)s: %(kinds)s are left',
                      {'instance': self.instance_uuid, 'kinds': kinds})
            if self.problem is None:
                self.save_problem(f'not released at the end of the snapshot: '
                                  f'{kinds}')
            return
        try:
            durable.unlink(self.path)
        except OSError as error:
            LOG.warning('Could not remove %(path)s from the journal '
                        '(%(error)s). It records nothing any more, and is '
                        'removed before the next snapshot of the instance',
                        {'path': self.path, 'error': error})
        else:
            LOG.debug('Journal of instance %s: entry removed',
                      self.instance_uuid)


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
        directory.create()
        entry.write(exclusive=True)
    except FileExistsError as error:
        raise exception.SnapshotInProgress(
            instance=plan.instance.uuid, path=entry.path) from error
    except OSError as error:
        raise directory.failed(error) from error
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
    """Return the entry that excludes another snapshot of an instance.

    :returns: None if there is none, or none that can be used, see
        require_usable()
    """
    return _load_if_usable(_path(instance_uuid))


def find_all(instance_uuid: str) -> list[JournalEntry]:
    """Return all entries of an instance that can be used."""
    return [entry for entry in entries()
            if entry.instance_uuid == instance_uuid]


def entries() -> list[JournalEntry]:
    """Return all entries that can be used, also those set apart."""
    found = (_load_if_usable(directory.path_of(name))
             for name in directory.names() if name.endswith(SUFFIX))
    return [entry for entry in found if entry is not None]


def require_usable(instance_uuid: str) -> None:
    """Check that it is known what an instance's last snapshot has left.

    :raises JournalEntryUnusable: it is not
    """
    path = _path(instance_uuid)
    for written, problems in (
        (path, exception.JournalRecordError),
        # It may be the only one, after a crash in the first write.
        (f'{path}{directory.NEW}', exception.JournalFileNewer),
    ):
        try:
            _load(written)
        except FileNotFoundError:
            pass
        except exception.JournalRecordError as error:
            if isinstance(error, problems):
                raise exception.JournalEntryUnusable(
                    instance=instance_uuid, path=written,
                    reason=str(error)) from error


@dataclasses.dataclass(frozen=True)
class UnusableFile:
    """A file of the journal that can't be used.

    :ivar instance_uuid: the instance, if its name says it
    :ivar problem: why
    """

    path: str
    instance_uuid: str | None
    problem: exception.JournalRecordError


def unusable() -> list[UnusableFile]:
    """Return the files that can't be used, apart from those set aside."""
    found = []
    for name in directory.names():
        path = directory.path_of(name)
        try:
            _load_any(path)
        except FileNotFoundError:
            pass
        except exception.JournalRecordError as error:
            # A half-written file of this version is no problem.
            if (not name.endswith(directory.NEW) or
                    isinstance(error, exception.JournalFileNewer)):
                found.append(UnusableFile(path, _instance_uuid(name), error))
    return found


def set_aside_unreadable() -> None:
    """Rename the files whose content makes no sense, and report them.

    Each other file stays that can't be used: it may be right.

    Call this while nothing else uses the journal.
    """
    for file in unusable():
        if isinstance(file.problem, exception.JournalFileInvalid):
            directory.set_aside(
                file.path, file.problem,
                f'What it records may be left on this host: an overlay '
                f'disk.snapext in the directory of the instance is still '
                f'found when the instance is started; check virsh domjobinfo '
                f'and {CONF.snapext.work_directory} for the rest')
        else:
            LOG.error('%(path)r in the journal can\'t be used, and is left '
                      'alone: %(problem)s',
                      {'path': file.path, 'problem': file.problem})


def set_aside_files() -> list[str]:
    """Return the paths of the files that were set aside."""
    return [directory.path_of(name) for name in directory.names()
            if directory.SET_ASIDE in name]


def finish_writes() -> None:
    """Finish or undo the writes that a crash interrupted.

    Call this while nothing else uses the journal.
    """
    for name in directory.names():
        path = directory.path_of(name.removesuffix(directory.NEW))
        new = f'{path}{directory.NEW}'
        if (not name.endswith((f'{SUFFIX}{directory.NEW}',
                               f'{image.SUFFIX}{directory.NEW}')) or
                _is_newer(new) or _is_newer(path)):
            continue
        try:
            if os.path.lexists(path) or not _is_usable(new):
                os.unlink(new)
                LOG.debug('Removed %s, which a crash left half-written', new)
            else:
                os.rename(new, path)
                LOG.debug('Finished writing %s after a crash', path)
        except OSError as error:
            directory.set_aside(new, error, 'It is no file of the journal.')
    with contextlib.suppress(FileNotFoundError):
        durable.sync(CONF.snapext.journal_directory)


def _path(instance_uuid: str) -> str:
    return directory.path_of(f'{instance_uuid}{SUFFIX}')


def _instance_uuid(name: str) -> str | None:
    match = _NAME.match(name)
    return match and match[1]


def _load_if_usable(path: str) -> JournalEntry | None:
    try:
        return _load(path)
    except (FileNotFoundError, exception.JournalRecordError):
        return None


def _is_usable(path: str) -> bool:
    try:
        _load_any(path)
    except (FileNotFoundError, exception.JournalRecordError):
        return False
    return True


def _is_newer(path: str) -> bool:
    try:
        _load_any(path)
    except exception.JournalFileNewer:
        return True
    except (FileNotFoundError, exception.JournalRecordError):
        pass
    return False


def _load_any(path: str) -> None:
    """Read a file of the journal of either kind; no other file.

    :raises FileNotFoundError: there is none
    :raises JournalRecordError: it can't be used
    """
    name = path.removesuffix(directory.NEW)
    if name.endswith(SUFFIX):
        _load(path)
    elif name.endswith(image.SUFFIX):
        image.load(path)


def _load(path: str) -> JournalEntry:
    """Read an entry.

    :raises FileNotFoundError: there is none
    :raises JournalRecordError: it can't be used
    """
    content = schema.load(directory.read(path), schema.ENTRY)
    records = [JournalRecord(**record) for record in content.pop('records')]
    name = os.path.basename(path.removesuffix(directory.NEW))
    match = _NAME.fullmatch(name)
    entry = JournalEntry(
        disk=planning.RootDisk(**content.pop('disk')), records=records,
        is_set_apart=bool(match and match[2]), **content)
    if os.path.basename(entry.path) != name:
        raise exception.JournalFileInvalid(
            reason=f'it names the instance {entry.instance_uuid}')
    return entry
