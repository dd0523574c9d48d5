# SPDX-License-Identifier: Apache-2.0
"""The files of images that are deleted unless they become complete.

An image holds nothing on this host. So its file is not part of the entry of
its instance, and never keeps the instance from another snapshot.

A file is only created and removed. A removal needs no space: a full disk
can't keep a whole image in the journal, which recovery would delete.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import dataclasses
import os

from oslo_log import log as logging
from oslo_utils import timeutils

from nova_snapext import durable
from nova_snapext import exception
from nova_snapext.journal import directory
from nova_snapext.journal import schema
from nova_snapext import plan as planning

LOG = logging.getLogger(__name__)

SUFFIX = '.image'

# Ids of the images of snapshots that run in this process.
_in_use: set[str] = set()
# Paths of files of complete images that could not be removed.
_unremoved: set[str] = set()


@dataclasses.dataclass(eq=False)
class ImageEntry:
    """The journal's entry of one image, which is one file.

    :ivar instance_uuid: uuid of the instance
    :ivar image_id: the image's id in Glance
    :ivar strategy: name of the snapshot's strategy
    :ivar began_at: when the snapshot began, UTC, in ISO 8601
    :ivar project_id: of the user who requested the snapshot, and who owns
        the image; None if unknown
    :ivar seen_by_nova: Nova's service user has seen the image. If it does not
        see it any more, the image is deleted.
    :ivar reason: why the image is not deleted; None if nobody tried
    """

    instance_uuid: str
    image_id: str
    strategy: str
    began_at: str
    project_id: str | None
    seen_by_nova: bool
    reason: str | None = None

    @property
    def path(self) -> str:
        return directory.path_of(f'{self.image_id}{SUFFIX}')

    def write(self) -> None:
        """Write the file, and return when it is safe on disk.

        :raises OSError: it can't be written; the previous one is unchanged
        """
        directory.write(self.path, schema.dump(dataclasses.asdict(self)))

    def save(self) -> None:
        """Write the file again, if that is possible.

        Without it, the image is only known less well.
        """
        try:
            self.write()
        except OSError as error:
            LOG.debug('Could not write the journal %(path)s: %(error)s',
                      {'path': self.path, 'error': error})

    def remove(self) -> None:
        """Remove the file: the image is complete, or deleted.

        If that fails, it is tried again, see images().
        """
        try:
            durable.unlink(self.path)
        except OSError as error:
            _unremoved.add(self.path)
            LOG.error('Could not remove %(path)s (%(error)s). Remove it '
                      'before nova-compute starts again: otherwise image '
                      '%(image)s is deleted then, even if it is complete',
                      {'path': self.path, 'error': error,
                       'image': self.image_id})
        else:
            _unremoved.discard(self.path)
            LOG.debug('Journal of image %s: entry removed', self.image_id)


@contextlib.contextmanager
def new_image(plan: planning.Plan, strategy: str,
              seen_by_nova: bool) -> Iterator[ImageEntry]:
    """Create the entry of an image.

    If it is still there when the context ends, the image waits for its
    deletion.

    :param strategy: name of the snapshot's strategy
    :raises JournalFailed: the entry can't be written
    """
    entry = ImageEntry(
        instance_uuid=plan.instance.uuid, image_id=plan.image_id,
        strategy=strategy, began_at=timeutils.utcnow().isoformat(),
        project_id=getattr(plan.context, 'project_id', None),
        seen_by_nova=seen_by_nova)
    _in_use.add(entry.image_id)
    try:
        _unremoved.discard(entry.path)
        try:
            directory.create()
            entry.write()
        except OSError as error:
            raise directory.failed(error) from error
        LOG.debug('Journal of image %(image)s: entry created as %(path)s',
                  {'image': entry.image_id, 'path': entry.path})
        yield entry
    finally:
        _in_use.discard(entry.image_id)


def images() -> list[ImageEntry]:
    """Return the images that wait for their deletion.

    Those of snapshots that run in this process do not.
    """
    for path in tuple(_unremoved):
        with contextlib.suppress(OSError):
            durable.unlink(path)
            _unremoved.discard(path)
    found = []
    for name in directory.names():
        # In this order: a snapshot that ends between the two has removed the
        # file of a complete image.
        if (not name.endswith(SUFFIX) or
                name.removesuffix(SUFFIX) in _in_use or
                directory.path_of(name) in _unremoved):
            continue
        with contextlib.suppress(FileNotFoundError,
                                 exception.JournalRecordError):
            found.append(load(directory.path_of(name)))
    return found


def has_image(image_id: str) -> bool:
    """Return whether an image is neither complete nor deleted."""
    path = directory.path_of(f'{image_id}{SUFFIX}')
    return os.path.exists(path) and path not in _unremoved


def load(path: str) -> ImageEntry:
    """Read the entry of an image.

    :raises FileNotFoundError: there is none
    :raises JournalRecordError: it can't be used
    """
    entry = ImageEntry(**schema.load(directory.read(path), schema.IMAGE))
    if path.removesuffix(directory.NEW) != entry.path:
        raise exception.JournalFileInvalid(
            reason=f'it names the image {entry.image_id}')
    return entry
