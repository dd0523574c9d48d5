# SPDX-License-Identifier: Apache-2.0
"""The data of an image in Glance's pool, until Glance takes it over."""

from __future__ import annotations

import abc
import contextlib
import typing as ty

from nova.virt.libvirt import driver as libvirt_driver
from oslo_log import log as logging
from oslo_utils import uuidutils

from nova_snapext import exception
from nova_snapext.hypervisor import ceph
from nova_snapext import journal
from nova_snapext.journal import schema
from nova_snapext import plan as planning
from nova_snapext import upload

LOG = logging.getLogger(__name__)


class RbdImage(journal.Resource, abc.ABC):
    """An RBD image that becomes an image in Glance.

    Recorded: pool, name and user, whether Glance may have taken it over, and
    before the removal the id in Ceph. Restored: as recorded. Released:
    removed. If Glance may have taken it over, its image is deleted first:
    removing the data alone would leave an active image without data. If the
    image is complete, and the journal could not be written then, nothing is
    removed.

    :cvar consequence: what its data keeps as long as it is not removed, for
        operators
    :param seen_by_nova: see :func:`upload.is_seen_by_nova`
    :ivar spec: where it is; its name is the image's id in Glance
    """

    consequence = ''
    # It has a name of its own, and is not on the guest's disk.
    blocks_snapshot = False
    record_schema = schema.object_of(
        pool=schema.TEXT, image=schema.TEXT, user=schema.OPTIONAL_TEXT,
        offered=schema.FLAG, seen_by_nova=schema.FLAG,
        rbd_id=schema.OPTIONAL_TEXT)

    def __init__(self, target: planning.Target, spec: ceph.ImageSpec,
                 seen_by_nova: bool):
        self._target = target
        self.spec = spec
        self._offered = False
        self._seen_by_nova = seen_by_nova
        self._rbd_id: str | None = None
        self._is_absent = False
        self._is_restored = False

    def record(self) -> dict[str, ty.Any]:
        return {'pool': self.spec.pool, 'image': self.spec.name,
                'user': self.spec.user, 'offered': self._offered,
                'seen_by_nova': self._seen_by_nova,
                'rbd_id': self._rbd_id}

    @classmethod
    def restore(cls, driver: libvirt_driver.LibvirtDriver,
                target: planning.Target,
                record: dict[str, ty.Any]) -> ty.Self:
        spec = ceph.ImageSpec(
            record['pool'], record['image'], record['user'])
        if spec.name != target.image_id or not uuidutils.is_uuid_like(
                spec.name):
            raise exception.JournalRecordError(
                reason=f'{spec} is not of the image {target.image_id}')
        image = cls(target, spec, bool(record['seen_by_nova']))
        image._offered = bool(record['offered'])
        image._rbd_id = record['rbd_id']
        image._is_restored = True
        return image

    def __str__(self) -> str:
        return f'the RBD image {self.spec}'

    @property
    def is_offered(self) -> bool:
        """Whether Glance may have taken it over."""
        return self._offered

    def abort(self) -> None:
        """End what still changes the image, before it is removed."""

    def not_created(self, error: exception.CephError) -> None:
        """Remember a failed creation, after which there is nothing to remove.

        Without the right for it, Ceph would not even tell whether the image
        exists. If it exists, it is somebody else's: its owner may have
        uploaded other data.
        """
        self._is_absent = ceph.is_forbidden(error) or ceph.exists(error)

    def set_offered(self, offered: bool) -> None:
        """Record that Glance may have taken it over, or has not.

        :raises OSError: the journal can't be written
        """
        self._offered = offered
        self.save()

    def release(self) -> None:
        """Remove the image, if it exists.

        :raises ReleaseFailed: the image in Glance can't be deleted, or Ceph
            does not respond
        """
        if self._is_absent:
            return
        if self._offered:
            if self._is_restored and self._is_complete():
                LOG.warning('Image %(image)s is complete, and keeps %(data)s',
                            {'image': self._target.image_id, 'data': self},
                            instance=self._target.instance)
                return
            self._delete_image()
        try:
            self.abort()
            self._record_id()
            ceph.remove_image(self.spec, self._rbd_id)
        except exception.CephError as error:
            snapshot = ceph.SnapSpec(self.spec, ceph.IMAGE_SNAPSHOT)
            rbd = f'rbd --id {self.spec.user}' if self.spec.user else 'rbd'
            raise self._failed(
                f'{error}{self.consequence} By hand, if Glance has no image '
                f'with this id: "{rbd} snap unprotect {snapshot}" and "{rbd} '
                f'snap rm {snapshot}", if "{rbd} snap ls {self.spec}" lists '
                f'it, then "{rbd} rm {self.spec}"') from error
        LOG.debug('%s is removed', self.spec, instance=self._target.instance)

    def _record_id(self) -> None:
        """Record the id, to find an image that Ceph moves into its trash.

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
        file system is full: then it may still have the data of that image.

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
