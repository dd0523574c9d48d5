# SPDX-License-Identifier: Apache-2.0
"""The extents of an RBD disk, as Ceph itself knows them.

QEMU with librbd 16 or older takes all of a disk that is a clone for data.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator

from lxml import etree
from oslo_log import log as logging

from nova_snapext import cancel
from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.hypervisor import ceph
from nova_snapext import journal
from nova_snapext import plan as planning
from nova_snapext import read
from nova_snapext.resources import rbd_snapshot

CONF = conf.CONF
LOG = logging.getLogger(__name__)


def of_snapshot(snapshot: ceph.SnapSpec, token: cancel.CancelToken,
                timeout: float | None = None) -> read.ExtentMap | None:
    """Return the extents of a snapshot, as Ceph knows them.

    :param token: its cancellation ends the search
    :param timeout: seconds that it may take; None: as long as Ceph finds some
    :returns: None if Ceph does not tell; QEMU's are then good enough
    :raises Exception: the token's cause
    """
    try:
        size, parts = ceph.allocated(snapshot, token, timeout)
    except exception.CephError as error:
        LOG.warning('All that QEMU takes for data of %(snapshot)s is read: '
                    '%(error)s', {'snapshot': snapshot, 'error': error})
        return None
    return read.ExtentMap(_extents(size, parts))


def _extents(size: int, parts: Iterable[tuple[int, int]],
             ) -> Iterator[read.Extent]:
    """Return the extents of a disk whose other parts are zeros.

    :param size: of the disk, in bytes
    :param parts: offset and length of each part that is data, in bytes and
        ascending order
    """
    position = 0
    for offset, length in parts:
        # Parts of a snapshot that is smaller than its image end with it, and
        # a part of a parent may be one of its clone too.
        begin, end = max(offset, position), min(offset + length, size)
        if begin >= end:
            continue
        if begin > position:
            yield read.Extent(position, begin - position, False)
        yield read.Extent(begin, end - begin, True)
        position = end
    if position < size:
        yield read.Extent(position, size - position, False)


def superset_of_frozen(plan: planning.Plan, stack: journal.ReleaseStack,
                       ) -> read.ExtentMap | None:
    """Return extents for the disk of a backup job, after the job has begun.

    QEMU has frozen the disk, and Ceph knows nothing of that. A snapshot
    inside Ceph, for the moment of this call, tells what holds data now. That
    is all that held data when the job began, and perhaps more, if nothing
    takes data from the disk in between:

    * The guest can't discard: QEMU passes that on only with
      ``discard='unmap'``, and a write of zeros takes its space without it.
    * What QEMU's librbd had cached is in the snapshot: QEMU has the image's
      exclusive lock, and so creates the snapshot itself.

    :returns: None if one of this is not so, or Ceph does not tell. QEMU's
        extents, which may take all of the disk for data, are right always
    :raises ReleaseFailed: the snapshot is left
    """
    image = ceph.image_of(plan.disk)
    if image is None or not ceph.is_installed() or _can_discard(plan):
        return None
    snapshot = rbd_snapshot.RbdSnapshot.allocate(plan.instance.uuid, image)
    try:
        if not ceph.has_one_writer(image):
            return None
        stack.add(snapshot)
        snapshot.open()
        snapshot.create(CONF.snapext.operation_timeout)
        # The scratch file grows, and nobody checks its space or whether the
        # snapshot is cancelled, until the disk is frozen.
        return of_snapshot(snapshot.spec, cancel.CancelToken(),
                           CONF.snapext.operation_timeout)
    except exception.CephError as error:
        LOG.warning('All that QEMU takes for data of %(image)s is read: '
                    '%(error)s', {'image': image, 'error': error},
                    instance=plan.instance)
        return None
    finally:
        if stack.has(snapshot):
            snapshot.release()
            stack.mark_released(snapshot)


def _can_discard(plan: planning.Plan) -> bool:
    """Return whether QEMU passes on what the guest discards."""
    drivers = etree.fromstring(plan.guest.get_xml_desc()).xpath(
        './devices/disk[target/@dev=$target]/driver',
        target=plan.disk.target)
    return any(driver.get('discard') not in (None, 'ignore') or
               driver.get('detect_zeroes') == 'unmap' for driver in drivers)
