# SPDX-License-Identifier: Apache-2.0
"""The strategy ``rbd``: a snapshot inside Ceph.

Ceph fixes the point in time by itself, in milliseconds, whether the guest
runs, is paused or suspended, or is shut off. Nothing is written to the host,
no job runs in libvirt, and the disk stays as it is. The snapshot is removed
when its data is in the image.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import dataclasses
import datetime

from oslo_log import log as logging
from oslo_utils import timeutils

from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.hypervisor import ceph
from nova_snapext import journal
from nova_snapext import plan as planning
from nova_snapext import read
from nova_snapext.resources import guest_filesystems
from nova_snapext.resources import rbd_clone
from nova_snapext.resources import rbd_export
from nova_snapext.resources import rbd_snapshot
from nova_snapext.resources import work_directory
from nova_snapext.strategies import base
from nova_snapext.strategies import rbd_extents

CONF = conf.CONF
LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrozenRbd(base.FrozenDisk):
    """A snapshot inside Ceph, and its NBD export.

    :ivar snapshot: where it is
    """

    snapshot: ceph.SnapSpec


class RbdStrategy(base.FreezingStrategy):
    """Freeze an RBD disk by a snapshot inside Ceph."""

    name = 'rbd'
    STORAGES = frozenset({'network'})
    FORMATS = frozenset({'raw'})
    # None of QEMU's or libvirt's mechanisms is used, so none of their known
    # defects matters.
    mechanisms = frozenset()
    resource_types = (guest_filesystems.GuestFilesystems,
                      work_directory.WorkDirectory,
                      rbd_snapshot.RbdSnapshot,
                      rbd_export.RbdExport,
                      rbd_clone.RbdClone)

    def unsupported_guest_reason(self, plan: planning.Plan) -> str | None:
        if ceph.image_of(plan.disk) is None:
            return (f'its root disk {plan.disk.path} is not an RBD image in '
                    f'the form pool/name')
        if not ceph.is_installed():
            return ceph.MISSING_BINDINGS
        return None

    def freeze_disk(self, plan: planning.Plan,
                    stack: journal.ReleaseStack) -> base.FrozenDisk:
        image = ceph.image_of(plan.disk)
        if image is None:
            raise exception.UnexpectedState(
                reason=f'{plan.disk.path} is not an RBD image')
        snapshot = rbd_snapshot.RbdSnapshot.allocate(
            plan.instance.uuid, image)
        filesystems = guest_filesystems.GuestFilesystems(self.host, plan)
        # A thaw that failed is repeated after everything else is released.
        stack.add(filesystems)
        directory = self.create_work_directory(plan, stack)
        stack.add(snapshot)
        snapshot.open()
        with self._quiesced(plan, filesystems) as consistency, \
                timeutils.StopWatch() as watch:
            frozen_at = timeutils.utcnow()
            # Ceph may never respond: the guest's filesystems are frozen for
            # no longer than its agent may take, in any case.
            snapshot.create(CONF.snapext.agent_timeout)
        stack.mark_released(filesystems)
        return self._export(plan, stack, directory, snapshot.spec,
                            consistency, watch.elapsed(), frozen_at)

    @contextlib.contextmanager
    def _quiesced(
        self, plan: planning.Plan,
        filesystems: guest_filesystems.GuestFilesystems,
    ) -> Iterator[planning.Consistency]:
        if not plan.running:
            yield base.consistency_of_shut_off(plan)
            return
        with filesystems.frozen() as consistency:
            yield consistency

    def _export(self, plan: planning.Plan, stack: journal.ReleaseStack,
                directory: work_directory.WorkDirectory,
                snapshot: ceph.SnapSpec, consistency: planning.Consistency,
                freeze_seconds: float,
                frozen_at: datetime.datetime) -> FrozenRbd:
        export = rbd_export.RbdExport(plan.instance.uuid, directory)
        stack.add(export)
        export.serve_snapshot(snapshot, plan.disk.target)
        return FrozenRbd(
            uri=read.unix_uri(directory.socket, plan.disk.target),
            consistency=consistency, freeze_seconds=freeze_seconds,
            frozen_at=frozen_at, snapshot=snapshot,
            extents=lambda token: rbd_extents.of_snapshot(snapshot, token),
            lost_reason=lambda: _lost_reason(snapshot))


def _lost_reason(snapshot: ceph.SnapSpec) -> str | None:
    """Return why a snapshot that was read may not have been there.

    What librbd reads of a snapshot that somebody has removed depends on its
    release: objects that are gone read as zeros, if it does not notice.
    """
    try:
        if snapshot.name in ceph.snapshot_names(snapshot.image):
            return None
    except exception.CephError as error:
        return f'it is not known whether its snapshot exists: {error}'
    return f'somebody has removed the snapshot {snapshot}'
