# SPDX-License-Identifier: Apache-2.0
"""The snapshot of a root disk inside Ceph."""

from __future__ import annotations

import re
import typing as ty

from nova.virt.libvirt import driver as libvirt_driver
from oslo_log import log as logging
from oslo_utils import uuidutils

from nova_snapext import exception
from nova_snapext.hypervisor import ceph
from nova_snapext import journal
from nova_snapext.journal import schema
from nova_snapext import plan as planning

LOG = logging.getLogger(__name__)

#: Names of our snapshots, see RbdSnapshot.allocate().
NAME = re.compile('snapext-[0-9a-f]{32}')


class RbdSnapshot(journal.Resource):
    """A snapshot of an RBD image that exists while its data is copied.

    It lies in the cluster, and every host can remove it. As long as it exists,
    Nova can't delete the disk.

    Recorded: pool, image and name. Restored: as recorded. Released: removed,
    protected or not.

    :cvar names: names that are allowed in a record
    :ivar spec: pool, image and name
    """

    kind = 'RBD snapshot'
    names: ty.ClassVar[re.Pattern[str]] = NAME
    # A disk can have any number of them.
    blocks_snapshot = False
    record_schema = schema.object_of(
        pool=schema.TEXT, image=schema.TEXT, snapshot=schema.TEXT)

    def __init__(self, instance_uuid: str, spec: ceph.SnapSpec):
        self._instance = instance_uuid
        self.spec = spec
        self._creation = ceph.SnapshotCreation(spec)

    @classmethod
    def allocate(cls, instance_uuid: str,
                 image: ceph.ImageSpec) -> RbdSnapshot:
        """Return a snapshot with a name of its own. It does not exist yet."""
        name = f'snapext-{uuidutils.generate_uuid(dashed=False)}'
        return cls(instance_uuid, ceph.SnapSpec(image, name))

    def record(self) -> dict[str, ty.Any]:
        return {'pool': self.spec.image.pool, 'image': self.spec.image.name,
                'snapshot': self.spec.name}

    @classmethod
    def restore(cls, driver: libvirt_driver.LibvirtDriver,
                target: planning.Target,
                record: dict[str, ty.Any]) -> ty.Self:
        spec = ceph.SnapSpec(
            ceph.ImageSpec(record['pool'], record['image']),
            record['snapshot'])
        if not cls.names.fullmatch(spec.name):
            raise exception.JournalRecordError(
                reason=f'{spec} is no snapshot that is only taken for a copy')
        return cls(target.instance.uuid, spec)

    def __str__(self) -> str:
        return f'the RBD snapshot {self.spec}'

    def open(self) -> None:
        """Prepare the creation, while the guest's filesystems are not frozen.

        :raises CephError: Ceph does not respond, or has no such image
        """
        self._creation.open()

    def create(self, seconds: float) -> None:
        """Create the snapshot.

        :param seconds: time limit; the snapshot may come into being later
        :raises CephError: it can't be created, or not in time
        """
        self._creation.create(seconds)
        LOG.debug('RBD snapshot %(snapshot)s of instance %(instance)s is '
                  'created', {'snapshot': self.spec,
                              'instance': self._instance})

    def release(self) -> None:
        """Remove the snapshot, if it exists.

        :raises ReleaseFailed: it has a clone, or Ceph does not respond
        """
        self._creation.close()
        try:
            ceph.remove_snapshot(self.spec)
        except exception.CephError as error:
            raise exception.ReleaseFailed(
                instance=self._instance,
                reason=f'{error} Until it is removed, Nova can\'t delete the '
                       f'disk. By hand: "rbd snap unprotect {self.spec}" (if '
                       f'it is protected) and "rbd snap rm {self.spec}"',
            ) from error
        LOG.debug('RBD snapshot %(snapshot)s of instance %(instance)s is '
                  'removed', {'snapshot': self.spec,
                              'instance': self._instance})


class NovaRbdSnapshot(RbdSnapshot):
    """The snapshot of a root disk that Nova's own direct snapshot creates.

    Nova leaves it if it is killed, or if the copy of its data fails.
    """

    kind = 'native RBD snapshot'
    # uuidutils.generate_uuid(dashed=False), in LibvirtDriver.snapshot.
    names = re.compile('[0-9a-f]{32}')
