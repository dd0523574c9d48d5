# SPDX-License-Identifier: Apache-2.0
"""Snapshots of ours inside Ceph that no journal has.

The pool has the snapshots of all hosts, and the journal of each host has its
own. So only the disks of instances that Nova has on this host are cleared, as
no other host takes a snapshot of these, and those of deleted instances that
Nova has on no host. What libvirt has here is no sign: a host that comes back
after an evacuation still has the guests.
"""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator

import libvirt
from lxml import etree
from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from nova.virt.libvirt import driver as libvirt_driver
from oslo_log import log as logging
from oslo_utils import uuidutils
import tenacity

from nova_snapext import bounded
from nova_snapext import cancel
from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.hypervisor import ceph
from nova_snapext.hypervisor import domain
from nova_snapext import journal
from nova_snapext.resources import rbd_snapshot

CONF = conf.CONF
LOG = logging.getLogger(__name__)

#: Kinds of the records of snapshots inside Ceph.
SNAPSHOT_KINDS = (rbd_snapshot.RbdSnapshot.kind,
                  rbd_snapshot.NovaRbdSnapshot.kind)

# Seconds after which an OSD has forgotten a client that was killed, and some
# more: Ceph's osd_client_watch_timeout is 30.
FORGET_TIMEOUT = 40

# Seconds between two attempts to remove what such a client has used.
RETRY_INTERVAL = 5


def find(driver: libvirt_driver.LibvirtDriver,
         ) -> Iterator[tuple[ceph.SnapSpec, str | None]]:
    """Find the snapshots of this host's instances that no journal has.

    Those of instances that were deleted here are among them.

    :returns: each snapshot, and why nobody knows whether it is of this host;
        None if it is
    :raises CephError: Ceph does not tell
    :raises libvirtError: libvirt can't be asked
    """
    if not _is_used():
        return
    for snapshot in without_journal(_images(driver)):
        try:
            if _is_here(snapshot.image):
                yield snapshot, None
        except Exception as error:
            # Such as those of RabbitMQ, of the conductor and of the database.
            # The conductor's have a traceback.
            reason = str(error).split('\n')[0]
            yield snapshot, (f'Nova does not tell on which host its instance '
                             f'is: {reason}')


def without_journal(images: Collection[ceph.ImageSpec] = (),
                    ) -> list[ceph.SnapSpec]:
    """Find the snapshots of any host that the journal of this host lacks.

    :param images: disks that may be outside of Nova's pool
    :raises CephError: Ceph does not tell
    """
    found = ceph.snapshots_in(CONF.libvirt.images_rbd_pool)
    for image in images:
        if image.pool != CONF.libvirt.images_rbd_pool:
            found[image] = ceph.snapshot_names(image)
    # A record is there before its snapshot, and until its snapshot is gone.
    known = _in_journal(journal.entries())
    lost = [ceph.SnapSpec(image, name)
            for image, names in sorted(found.items(), key=str)
            for name in names
            if rbd_snapshot.NAME.fullmatch(name) and name not in known]
    return [snapshot for snapshot in lost
            if snapshot.name in ceph.snapshot_names(snapshot.image)]


def _in_journal(entries: Iterable[journal.JournalEntry]) -> set[str]:
    """Return the names of the snapshots that entries of the journal have."""
    return {record.data.get('snapshot', '') for entry in entries
            for record in entry.records
            if record.kind in SNAPSHOT_KINDS}


def _is_here(image: ceph.ImageSpec) -> bool:
    """Return whether a disk's instance is on this host, or was deleted here.

    An instance that this cell does not know may be one of another cell whose
    disks are in the same pool.

    :raises Exception: Nova does not tell
    """
    uuid = instance_uuid(image)
    if not uuidutils.is_uuid_like(uuid):
        return False
    instance = _find_instance(uuid)
    return instance is not None and _was_here(instance)


def instance_uuid(image: ceph.ImageSpec) -> str:
    """Return the uuid of the instance of a root disk."""
    return image.name.removesuffix(ceph.DISK_SUFFIX)


def _find_instance(uuid: str) -> objects.Instance | None:
    """Return an instance, deleted or not; None if Nova does not know it.

    :raises Exception: Nova does not tell
    """
    try:
        return objects.Instance.get_by_uuid(
            nova_context.get_admin_context(read_deleted='yes'), uuid,
            expected_attrs=[])
    except nova_exception.InstanceNotFound:
        LOG.debug('Instance %s is not known in this cell', uuid)
        return None


def _was_here(instance: objects.Instance) -> bool:
    """Return whether an instance is on this host, or was deleted here."""
    # A shelved instance is on no host, and neither is one deleted after that.
    return bool(instance.host == CONF.host or
                (instance.deleted and instance.host is None))


def delete_disks_of_deleted(uuid: str) -> None:
    """Delete the disks of an instance, if Nova has deleted it here.

    Nova could not delete a disk that had a snapshot of ours, and does not try
    again.

    :param uuid: uuid of an instance that has lost a snapshot of ours
    :raises ReleaseFailed: a disk may be left
    """
    if not _is_used():
        return
    pool = CONF.libvirt.images_rbd_pool
    root = ceph.ImageSpec(pool, f'{uuid}{ceph.DISK_SUFFIX}')
    try:
        # What is released after it may have to thaw the guest.
        instance = bounded.call(lambda: _find_instance(uuid),
                                bounded.NOVA_TIMEOUT)
        if instance is not None and not (
                instance.deleted and _was_here(instance)):
            return
        if _has_recorded_snapshot(uuid, root):
            return  # the removal of that takes the disk along
        disks = ceph.disks_of(pool, uuid)
        if instance is None and disks:
            raise exception.UnexpectedState(
                reason='Nova does not know the instance')
        for disk in disks:
            ceph.remove_disk(disk)
            LOG.warning('%s is deleted: Nova has deleted its instance while '
                        'it had a snapshot of nova-snapext', disk)
    except Exception as error:
        # Such as those of RabbitMQ, of the conductor and of the database. The
        # conductor's have a traceback.
        reason = str(error).split('\n')[0].rstrip('.')
        raise exception.ReleaseFailed(
            instance=uuid,
            reason=f'its snapshot in Ceph is gone, but {root} may stay: '
                   f'{reason}. If Nova has deleted the instance, '
                   f'{_remedy(root)}') from error


def _has_recorded_snapshot(uuid: str, root: ceph.ImageSpec) -> bool:
    recorded = _in_journal(journal.find_all(uuid))
    return any(name in recorded for name in ceph.snapshot_names(root))


def remove(snapshot: ceph.SnapSpec) -> None:
    """Remove a snapshot that no journal has, with its clones.

    A clone that still needs the snapshot was never given to Glance: that
    happens after its flatten.

    :raises CephError: something can't be removed
    """
    for image_id, clone in ceph.children(snapshot).items():
        if not uuidutils.is_uuid_like(clone.name):
            raise exception.CephError(
                action=f'remove the snapshot {snapshot}',
                reason=f'its clone {clone} is not one of nova-snapext')
        _remove_clone(clone, image_id)
        LOG.warning('%s, an image that an interrupted snapshot has left '
                    'incomplete, is removed', clone)
    ceph.remove_snapshot(snapshot)
    LOG.warning('%s, which an interrupted snapshot has left, is removed',
                snapshot)


def _remove_clone(clone: ceph.ImageSpec, image_id: str) -> None:
    """Remove a clone, as soon as Ceph has forgotten a killed client.

    :raises CephError: it can't be removed
    """
    tenacity.Retrying(
        retry=tenacity.retry_if_exception(ceph.is_in_use),
        stop=tenacity.stop_after_delay(FORGET_TIMEOUT),
        wait=tenacity.wait_fixed(RETRY_INTERVAL),
        # Of native threads, also under eventlet.
        sleep=tenacity.sleep_using_event(cancel.native_threading().Event()),
        reraise=True)(ceph.remove_image, clone, image_id)


def _remedy(image: ceph.ImageSpec) -> str:
    """Return how an operator removes a disk with all of its snapshots."""
    return (f'remove each snapshot that "rbd snap ls {image}" lists: first '
            f'its clones ("rbd children {image}@NAME") that Glance does not '
            f'know, then "rbd snap unprotect {image}@NAME" and "rbd snap rm '
            f'{image}@NAME"; then "rbd rm {image}"')


def _is_used() -> bool:
    return CONF.libvirt.images_type == 'rbd' and ceph.is_installed()


def _images(driver: libvirt_driver.LibvirtDriver) -> set[ceph.ImageSpec]:
    found = set()
    for listed in driver._host.list_guests(only_running=False):
        try:
            definition = domain.Domain(listed._domain).get_xml_desc()
        except libvirt.libvirtError as error:
            # Somebody may be deleting it.
            if not domain.is_gone(error):
                raise
            continue
        for name in etree.fromstring(definition).xpath(
                "./devices/disk/source[@protocol='rbd']/@name"):
            pool, _, image = name.partition('/')
            # Volumes of Cinder have other names, and may be elsewhere.
            if image == f'{listed.uuid}{ceph.DISK_SUFFIX}':
                found.add(ceph.ImageSpec(pool, image))
    return found


def remove_of_instance(uuid: str, in_progress: bool) -> None:
    """Remove our snapshots of an instance's disk, which is to be deleted.

    Nova can't delete a disk with snapshots: it tries for a minute, then
    reports the instance as deleted, and leaves the disk and all that it
    depends on. What can't be removed is logged, and Nova tries all the same.

    :param uuid: uuid of the instance
    :param in_progress: whether a snapshot of it still runs. It loses nothing
        then that the journal has
    """
    if not _is_used():
        return
    image = ceph.ImageSpec(CONF.libvirt.images_rbd_pool,
                           f'{uuid}{ceph.DISK_SUFFIX}')
    try:
        names = ceph.snapshot_names(image)
        # A record is there before its snapshot.
        recorded = _in_journal(journal.find_all(uuid))
        for name in names:
            if name in recorded:
                wanted = not in_progress
            else:
                wanted = bool(rbd_snapshot.NAME.fullmatch(name))
            if wanted:
                remove(ceph.SnapSpec(image, name))
    except Exception as error:
        # Whatever it is, the instance is deleted.
        LOG.error('%(image)s of the deleted instance %(instance)s may stay '
                  'in Ceph: %(error)s To clean up, %(remedy)s',
                  {'image': image, 'instance': uuid, 'error': error,
                   'remedy': _remedy(image)})
