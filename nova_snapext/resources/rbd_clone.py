# SPDX-License-Identifier: Apache-2.0
"""The image of a snapshot in Glance's pool, until Glance takes it over."""

from __future__ import annotations

from collections.abc import Callable
import contextlib
import typing as ty

from nova.virt.libvirt import driver as libvirt_driver
from oslo_log import log as logging
from oslo_utils import uuidutils

from nova_snapext import cancel
from nova_snapext import exception
from nova_snapext.hypervisor import ceph
from nova_snapext import journal
from nova_snapext.journal import schema
from nova_snapext import plan as planning
from nova_snapext import upload

LOG = logging.getLogger(__name__)


class RbdClone(journal.Resource):
    """A clone of an RBD snapshot that becomes an image in Glance.

    The snapshot can't be removed as long as the clone needs its data.

    Recorded: pool and name, whether Glance may have taken it over, and before
    the removal the id in Ceph. Restored: as recorded. Released: removed. If
    Glance may have taken it over, its image is deleted first: removing the
    data alone would leave an active image without data. If the image is
    complete, and the journal could not be written then, nothing is removed.

    :param seen_by_nova: see :func:`upload.is_seen_by_nova`
    :ivar spec: pool and name, which is the image's id in Glance
    """

    kind = 'RBD clone'
    # It has a name of its own, and is not on the guest's disk.
    blocks_snapshot = False
    record_schema = schema.object_of(
        pool=schema.TEXT, image=schema.TEXT, offered=schema.FLAG,
        seen_by_nova=schema.FLAG, rbd_id=schema.OPTIONAL_TEXT)

    def __init__(self, target: planning.Target, spec: ceph.ImageSpec,
                 seen_by_nova: bool):
        self._target = target
        self.spec = spec
        self._offered = False
        self._seen_by_nova = seen_by_nova
        self._rbd_id: str | None = None
        self._flatten: ceph.Flatten | None = None
        self._is_forbidden = False
        self._is_restored = False

    def record(self) -> dict[str, ty.Any]:
        return {'pool': self.spec.pool, 'image': self.spec.name,
                'offered': self._offered,
                'seen_by_nova': self._seen_by_nova,
                'rbd_id': self._rbd_id}

    @classmethod
    def restore(cls, driver: libvirt_driver.LibvirtDriver,
                target: planning.Target,
                record: dict[str, ty.Any]) -> RbdClone:
        spec = ceph.ImageSpec(record['pool'], record['image'])
        if spec.name != target.image_id or not uuidutils.is_uuid_like(
                spec.name):
            raise exception.JournalRecordError(
                reason=f'{spec} is not of the image {target.image_id}')
        clone = cls(target, spec, bool(record['seen_by_nova']))
        clone._offered = bool(record['offered'])
        clone._rbd_id = record['rbd_id']
        clone._is_restored = True
        return clone

    def __str__(self) -> str:
        return f'the RBD image {self.spec}'

    @property
    def is_offered(self) -> bool:
        """Whether Glance may have taken it over."""
        return self._offered

    def create(self, snapshot: ceph.SnapSpec) -> None:
        """Clone a snapshot, which becomes protected.

        :raises CephError: it can't be cloned
        """
        ceph.protect(snapshot)
        try:
            ceph.clone(snapshot, self.spec)
        except exception.CephError as error:
            # Then Ceph would not even tell whether it exists.
            self._is_forbidden = ceph.is_forbidden(error)
            raise
        LOG.debug('%(snapshot)s is cloned to %(image)s',
                  {'snapshot': snapshot, 'image': self.spec},
                  instance=self._target.instance)

    def flatten(self, token: cancel.CancelToken,
                on_progress: Callable[[int, int], None]) -> None:
        """Copy all data into the clone, which then needs the snapshot no more.

        :param token: its cancellation ends the copy, with the cause
        :param on_progress: called with the number of objects that are done,
            and of all, in a thread of librbd
        :raises CephError: it can't be copied
        """
        self._flatten = ceph.Flatten(self.spec, on_progress)
        self._flatten.run(token)
        LOG.debug('%s is flattened', self.spec,
                  instance=self._target.instance)

    def set_offered(self, offered: bool) -> None:
        """Record that Glance may have taken the clone over, or has not.

        :raises OSError: the journal can't be written
        """
        self._offered = offered
        self.save()

    def release(self) -> None:
        """Remove the clone, if it exists.

        :raises ReleaseFailed: the image in Glance can't be deleted, or Ceph
            does not respond
        """
        if self._is_forbidden:
            return  # it was never created
        if self._offered:
            if self._is_restored and self._is_complete():
                LOG.warning('Image %(image)s is complete, and keeps %(clone)s',
                            {'image': self._target.image_id, 'clone': self},
                            instance=self._target.instance)
                return
            self._delete_image()
        try:
            if self._flatten is not None:
                self._flatten.cancel()
            self._record_id()
            ceph.remove_image(self.spec, self._rbd_id)
        except exception.CephError as error:
            snapshot = ceph.SnapSpec(self.spec, ceph.IMAGE_SNAPSHOT)
            raise self._failed(
                f'{error} Until it is removed, the disk\'s snapshot and the '
                f'disk can\'t be removed either. By hand, if Glance has no '
                f'image with this id: "rbd snap unprotect {snapshot}" and '
                f'"rbd snap rm {snapshot}", if "rbd snap ls {self.spec}" '
                f'lists it, then "rbd rm {self.spec}"') from error
        LOG.debug('%s is removed', self.spec, instance=self._target.instance)

    def _record_id(self) -> None:
        """Record the id, to find a clone that Ceph moves into its trash.

        :raises CephError: Ceph does not tell the id
        """
        rbd_id = ceph.id_of(self.spec)
        if rbd_id is None:
            return  # it is removed, or in the trash
        self._rbd_id = rbd_id
        # Only a crash during the removal makes it needed.
        with contextlib.suppress(OSError):
            self.save()

    def _is_complete(self) -> bool:
        """Return whether the image is complete, after a restart.

        The journal drops an image that is complete or deleted, even if its
        file system is full: then it may still have the clone of that image.

        :raises ReleaseFailed: Glance does not tell
        """
        if journal.has_image(self._target.image_id):
            return False
        context = self._target.context
        has_token = context is not None and context.auth_token is not None
        check = upload.ImageDeletedCheck(
            context if has_token else None, self._target.image_id,
            self._seen_by_nova)
        try:
            return check.run() is None
        except Exception as error:
            raise self._failed(
                f'it is not known whether image {self._target.image_id} is '
                f'deleted, which may have {self}: {error}') from error
        finally:
            check.close()

    def _delete_image(self) -> None:
        reason = upload.discard(
            self._target.context, self._target.image_id,
            self._seen_by_nova)
        if reason is not None:
            raise self._failed(
                f'image {self._target.image_id} in Glance may have {self}, '
                f'and could not be deleted: {reason}')

    def _failed(self, reason: str) -> exception.ReleaseFailed:
        return exception.ReleaseFailed(
            instance=self._target.instance.uuid, reason=reason)
