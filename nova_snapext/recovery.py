# SPDX-License-Identifier: Apache-2.0
"""Cleaning up after a snapshot that nova-compute did not live to end.

When nova-compute starts, before it takes work, and whenever an instance is to
be started, moved or snapshotted again. However often it is begun, and ended
half-way, it comes to the same.
"""

from __future__ import annotations

from collections.abc import Iterator
import typing as ty

from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import guest as libvirt_guest
from oslo_log import log as logging
import oslo_messaging

from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.freeze import backup_job
from nova_snapext.freeze import cold
from nova_snapext.freeze import directory
from nova_snapext.freeze import internal_snapshot
from nova_snapext.freeze import native
from nova_snapext.freeze import overlay
from nova_snapext.freeze import passthrough
from nova_snapext.freeze import qemu_nbd
from nova_snapext.freeze import quiesce
from nova_snapext import journal
from nova_snapext import plan as planning
from nova_snapext.upload import image

CONF = conf.CONF
LOG = logging.getLogger(__name__)

RESOURCES: dict[str, type[journal.Resource]] = {
    resource.kind: resource for resource in (
        backup_job.BackupJob,
        cold.Suspension,
        directory.Directory,
        image.UnfinishedImage,
        internal_snapshot.InternalSnapshot,
        native.NativeSnapshot,
        overlay.Overlay,
        passthrough.PassthroughDevices,
        qemu_nbd.Export,
        quiesce.Filesystems,
    )}

# What is in the disks of the instance, and so another host's when the
# instance is.
IN_DISKS = (cold.Suspension, internal_snapshot.InternalSnapshot,
            overlay.Overlay)


def recover_all(driver: libvirt_driver.LibvirtDriver) -> bool:
    """Clean up after all snapshots that the journal has, which is locked.

    :returns: whether nothing is left. What is was logged, with its remedy.
    """
    done = True
    journal.finish_writes()
    for entry in journal.entries():
        done &= recover_one(driver, entry.instance)
    return done


def recover_one(driver: libvirt_driver.LibvirtDriver, uuid: str) -> bool:
    """Clean up after the snapshot of an instance, if the journal has one.

    :param uuid: of the instance
    :returns: whether nothing is left. What is was logged, with its remedy.
    """
    entry = journal.find(uuid)
    try:
        if entry is not None:
            recover(driver, entry)
    except exception.NotRecovered as error:
        LOG.error('%s', error)
        return False
    return True


def recover(driver: libvirt_driver.LibvirtDriver, entry: journal.Entry,
            context: nova_context.RequestContext | None = None,
            instance: objects.Instance | None = None) -> None:
    """Clean up after one snapshot.

    :param context: of whoever has the instance do something; None: nobody's
    :param instance: None: it is looked for
    :raises NotRecovered: not all could be; the rest is in the journal still
    """
    instance = instance or _find_instance(entry)
    LOG.warning('A snapshot by the strategy %(strategy)s, into image '
                '%(image)s, was interrupted, and is cleaned up now: %(what)s',
                {'strategy': entry.strategy, 'image': entry.image,
                 'what': ', '.join(record.kind for record in entry.records)},
                instance=instance)
    failures = list(_releases(driver, entry, context, instance))
    entry.close()
    if failures:
        raise exception.NotRecovered(
            instance=entry.instance, reason=' '.join(failures),
            vital=any(_is_vital(record) for record in entry.records))
    LOG.info('The interrupted snapshot is cleaned up', instance=instance)


def plan_of(driver: libvirt_driver.LibvirtDriver, entry: journal.Entry,
            context: nova_context.RequestContext | None,
            instance: objects.Instance) -> planning.Plan:
    """Give the plan of a snapshot, as far as the journal has it.

    Its guest is None where there is none any more.
    """
    try:
        guest = driver._host.get_guest(instance)
    except nova_exception.InstanceNotFound:
        guest = ty.cast(libvirt_guest.Guest, None)
    return planning.Plan(
        context=context or nova_context.get_admin_context(),
        instance=instance, guest=guest,
        running=guest is not None and bool(guest.is_active()),
        disk=entry.disk, image_id=entry.image, image_format='',
        image_properties={}, metadata={})


def ensure_whole(driver: libvirt_driver.LibvirtDriver,
                 context: nova_context.RequestContext | None,
                 instance: objects.Instance) -> None:
    """See that nothing of a snapshot is left of an instance, or clean it up.

    Before it is started or moved: its disk without its overlay is the guest
    of some time ago. An overlay may also have come with the disk, from a host
    that has died.

    :raises NotRecovered: something is left
    """
    entry = journal.find(instance.uuid)
    if entry is not None:
        try:
            recover(driver, entry, context, instance)
        except exception.NotRecovered as error:
            if error.vital:
                raise
            LOG.error('%s', error, instance=instance)
            return
    try:
        found = overlay.Overlay.found(driver, instance)
        if found is not None:
            LOG.warning('There is an overlay of an interrupted snapshot, '
                        'which this host\'s journal does not have: it is '
                        'merged', instance=instance)
            found.release()
    except Exception as error:
        # Whatever it is, the disk can't be told to be whole.
        LOG.exception('The overlay of an interrupted snapshot is left',
                      instance=instance)
        raise exception.NotRecovered(
            instance=instance.uuid, reason=f'overlay: {error}.',
            vital=True) from error


def _releases(driver: libvirt_driver.LibvirtDriver, entry: journal.Entry,
              context: nova_context.RequestContext | None,
              instance: objects.Instance) -> Iterator[str]:
    """Release all that an entry has, the last one first.

    :returns: why some could not be
    """
    moved = instance.host not in (None, CONF.host)
    plan = plan_of(driver, entry, context, instance)
    for record in reversed(tuple(entry.records)):
        try:
            resource = _restore(driver, plan, record)
            if moved and isinstance(resource, IN_DISKS):
                LOG.warning('The instance is on host %(host)s now, and '
                            '%(what)s with it: not touched from here',
                            {'host': instance.host, 'what': resource},
                            instance=instance)
            else:
                entry.attach(record, resource)
                resource.release()
        except Exception as error:
            # Each is released for itself, and none ends the service.
            LOG.exception('What an interrupted snapshot has left could not '
                          'be cleaned up: %s', record.kind, instance=instance)
            yield f'{record.kind}: {error}.'
        else:
            entry.forget(record)


def _is_vital(record: journal.Record) -> bool:
    # What is unknown may be.
    return record.kind not in RESOURCES or RESOURCES[record.kind].vital


def _restore(driver: libvirt_driver.LibvirtDriver, plan: planning.Plan,
             record: journal.Record) -> journal.Resource:
    if record.kind not in RESOURCES:
        raise ValueError(f'the journal has {record.kind!r}, which this '
                         f'version does not know')
    return RESOURCES[record.kind].restore(driver, plan, record.data)


def _find_instance(entry: journal.Entry) -> objects.Instance:
    """Ask Nova for the instance; what it can't tell comes from the journal."""
    try:
        return objects.Instance.get_by_uuid(
            nova_context.get_admin_context(), entry.instance,
            expected_attrs=['flavor', 'system_metadata', 'numa_topology'])
    except nova_exception.InstanceNotFound:
        LOG.info('Instance %s, whose snapshot was interrupted, has been '
                 'deleted', entry.instance)
    except oslo_messaging.MessagingException as error:
        LOG.warning('Nova does not tell about instance %(instance)s, whose '
                    'snapshot was interrupted: %(error)s',
                    {'instance': entry.instance, 'error': error})
    return planning.UnknownInstance(entry.instance, entry.name)


def describe(entry: journal.Entry) -> str:
    """Tell an operator what an entry is of."""
    what = '\n'.join(f'    {record.kind}: {record.data}'
                     for record in reversed(entry.records))
    return (f'instance {entry.instance} ({entry.name}), strategy '
            f'{entry.strategy}, image {entry.image}, begun {entry.began}Z, '
            f'root disk {entry.disk.path}\n{what}')
