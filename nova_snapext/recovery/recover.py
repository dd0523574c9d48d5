# SPDX-License-Identifier: Apache-2.0
"""Release the resources of a snapshot that nova-compute could not finish.

This happens when nova-compute starts, when libvirtd is back, when an event of
the guest or the periodic look gives a reason (see
:mod:`nova_snapext.recovery.gate`), and before an instance is started, moved or
snapshotted again. A recovery that is interrupted can be repeated, with the
same result.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import itertools

from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from nova.virt.libvirt import driver as libvirt_driver
from oslo_log import log as logging
import oslo_messaging

from nova_snapext import bounded
from nova_snapext import conf
from nova_snapext import exception
from nova_snapext import journal
from nova_snapext import plan as planning
from nova_snapext.recovery import rbd_leftovers
from nova_snapext.resources import guest_filesystems
from nova_snapext.resources import image
from nova_snapext.resources import overlay
from nova_snapext.resources import rbd_copy
from nova_snapext.resources import trial_guest

CONF = conf.CONF
LOG = logging.getLogger(__name__)

ResourceTypes = dict[str, type[journal.Resource]]


def resource_types(driver: libvirt_driver.LibvirtDriver) -> ResourceTypes:
    """Return the classes of all resources that can be recovered, by kind.

    These are the resources of the loaded strategies, and those that are of no
    strategy.

    :raises StrategyConfigError: two classes have the same kind
    """
    types: ResourceTypes = {}
    for resource_type in itertools.chain(
            *(strategy.resource_types
              for strategy in driver.strategies.values()),
            # Of an image in Ceph, of a disk elsewhere; of "nova-snapext check
            # --trial".
            (rbd_copy.RbdCopy, trial_guest.TrialGuest)):
        known = types.setdefault(resource_type.kind, resource_type)
        if known is not resource_type:
            raise exception.StrategyConfigError(
                reason=f'two classes of resources have the kind '
                       f'{resource_type.kind!r}: {_path_of(known)} and '
                       f'{_path_of(resource_type)}. Uninstall the package of '
                       f'one of them')
    return types


def recover_instance(driver: libvirt_driver.LibvirtDriver, uuid: str) -> bool:
    """Recover the interrupted snapshots of an instance, if there are any.

    :param uuid: uuid of the instance
    :returns: whether nothing is left. The log says what is left and what to
        do.
    """
    is_done = True
    for entry in journal.find_all(uuid):
        try:
            recover_entry(driver, entry)
        except exception.NotRecovered as error:
            LOG.log(driver.failure_log.level(uuid, str(error)), '%s', error)
            is_done = False
    if is_done:
        driver.failure_log.forget(uuid)
    return is_done


def recover_entry(driver: libvirt_driver.LibvirtDriver,
                  entry: journal.JournalEntry,
                  context: nova_context.RequestContext | None = None,
                  instance: objects.Instance | None = None) -> None:
    """Recover one interrupted snapshot.

    :param context: context of the request that needs the instance; None: an
        admin's
    :param instance: None: Nova is asked for it
    :raises NotRecovered: some resources are left, and still in the journal
    """
    instance = instance or get_instance(
        entry.instance_uuid, entry.instance_name)
    text = (f'What a snapshot has left is cleaned up now: strategy '
            f'{entry.strategy}, image {entry.image_id}, begun '
            f'{entry.began_at}Z, resources '
            f'{", ".join(record.kind for record in entry.records)}')
    LOG.log(driver.failure_log.level(
        entry.instance_uuid, text, logging.WARNING), '%s', text,
        instance=instance)
    target = planning.Target(
        context=context or nova_context.get_admin_context(),
        instance=instance, disk=entry.disk, image_id=entry.image_id)
    failures = list(_release_all(driver, entry, target))
    entry.close()
    if failures:
        entry.save_problem(' '.join(failures))
        raise exception.NotRecovered(
            instance=entry.instance_uuid, reason=' '.join(failures),
            blocks_start=any(record.blocks_start for record in entry.records))
    driver.failure_log.forget(entry.instance_uuid)
    LOG.info('The interrupted snapshot is cleaned up', instance=instance)


def ensure_recovered(driver: libvirt_driver.LibvirtDriver,
                     context: nova_context.RequestContext | None,
                     instance: objects.Instance) -> None:
    """Recover an interrupted snapshot before its instance starts or moves.

    The disk without its overlay has lost what the guest wrote since the
    snapshot began. An overlay may also have come with the disk, from a host
    that failed.

    :raises NotRecovered: a resource is left that makes a start or a move
        lose data
    """
    journal.require_usable(instance.uuid)
    for entry in journal.find_all(instance.uuid):
        if entry.is_set_apart and not any(
                record.blocks_start for record in entry.records):
            # It forbids nothing, and may take long. The periodic look tries.
            continue
        try:
            recover_entry(driver, entry, context, instance)
        except exception.NotRecovered as error:
            if error.blocks_start:
                raise
            LOG.error('%s', error, instance=instance)
    try:
        found = overlay.Overlay.find(driver, instance)
        if found is not None:
            LOG.warning('There is an overlay of an interrupted snapshot that '
                        'is not in the journal of this host. It is merged '
                        'into the disk now', instance=instance)
            found.release()
    except Exception as error:
        # After any error, the disk may lack what is in the overlay.
        LOG.exception('The overlay of an interrupted snapshot is left',
                      instance=instance)
        raise exception.NotRecovered(
            instance=instance.uuid, reason=f'overlay: {error}.',
            blocks_start=True) from error


def ensure_thawed(driver: libvirt_driver.LibvirtDriver,
                  context: nova_context.RequestContext | None,
                  instance: objects.Instance) -> None:
    """Thaw the filesystems that a snapshot has left frozen.

    A guest that moves while it runs would take them along. On the other host
    nothing knows of them, and nobody would thaw them. Call this after
    :func:`ensure_recovered`, which has tried what is not set apart.

    :raises NotRecovered: they may still be frozen
    """
    for entry in journal.find_all(instance.uuid):
        if entry.is_set_apart and _has_filesystems(entry):
            with contextlib.suppress(exception.NotRecovered):
                recover_entry(driver, entry, context, instance)
        if _has_filesystems(entry):
            raise exception.NotRecovered(
                instance=instance.uuid, blocks_start=False,
                reason=f'the filesystems of the guest may be frozen, and '
                       f'would stay frozen on another host. Start the guest '
                       f'agent (qemu-guest-agent) in the guest, or run "virsh '
                       f'domfsthaw {instance.name}", or reboot the instance '
                       f'hard; then repeat this. The last try to thaw them: '
                       f'{entry.problem}')


def _has_filesystems(entry: journal.JournalEntry) -> bool:
    return any(record.kind == guest_filesystems.GuestFilesystems.kind
               for record in entry.records)


def make_way(instance_uuid: str) -> None:
    """Let the next snapshot of an instance begin, though something is left.

    What excludes no other snapshot is kept in an entry of its own, and is
    recovered later. Call this after :func:`ensure_recovered`.

    :raises NotRecovered: what is left excludes another snapshot
    :raises JournalFailed: the journal can't be written
    """
    journal.require_usable(instance_uuid)
    entry = journal.find(instance_uuid)
    if entry is None:
        return
    excluding = [record.kind for record in entry.records
                 if record.blocks_snapshot]
    if excluding:
        raise exception.NotRecovered(
            instance=instance_uuid, blocks_start=False,
            reason=entry.problem or f'{", ".join(excluding)} left.')
    try:
        entry.set_apart()
    except OSError as error:
        raise exception.JournalFailed(
            path=entry.path, reason=str(error)) from error


def recover_image(entry: journal.ImageEntry,
                  context: nova_context.RequestContext | None = None) -> bool:
    """Delete the incomplete image of a snapshot that failed.

    It may be called as often as wanted, but not for an image whose snapshot
    runs: :func:`journal.images` does not return it.

    :param context: of a request for the image's instance; None if there is
        none
    :returns: whether the image is gone, and its entry removed. The log says
        why it is not, if that is new.
    """
    last_reason = entry.reason
    # A user of another project may only not see the image.
    owner = (context if context is not None and
             context.project_id == entry.project_id else None)
    try:
        image.delete(entry, owner)
    except Exception as error:
        # Nobody waits for it, and no error ends the service.
        level = (logging.DEBUG if str(error) == last_reason
                 else logging.WARNING)
        LOG.log(level, 'The incomplete image %(image)s of a failed snapshot '
                'of instance %(instance)s could not be deleted: %(error)s. '
                'Do not use the image. This is tried again by itself; '
                '"nova-snapext status" lists the image until it is gone',
                {'image': entry.image_id, 'instance': entry.instance_uuid,
                 'error': error})
        return False
    LOG.info('The incomplete image %(image)s of a failed snapshot of instance '
             '%(instance)s is gone', {'image': entry.image_id,
                                      'instance': entry.instance_uuid})
    return True


def describe(entry: journal.JournalEntry) -> str:
    """Return a description of an entry for operators, in several lines."""
    records = '\n'.join(f'    {record.kind}: {record.data}'
                        for record in reversed(entry.records))
    return (f'instance {entry.instance_uuid} ({entry.instance_name}), '
            f'strategy {entry.strategy}, image {entry.image_id}, begun '
            f'{entry.began_at}Z, root disk {entry.disk.path}\n{records}')


def _release_all(driver: libvirt_driver.LibvirtDriver,
                 entry: journal.JournalEntry,
                 target: planning.Target) -> Iterator[str]:
    """Release the resources of an entry, the last one first.

    :returns: why some could not be released
    """
    instance = target.instance
    types = resource_types(driver)
    for record in reversed(tuple(entry.records)):
        LOG.debug('Recovery of %(kind)s begins: %(data)s',
                  {'kind': record.kind, 'data': record.data},
                  instance=instance)
        try:
            _release(driver, types, entry, record, target)
        except Exception as error:
            # Every resource is attempted, and no error ends the service.
            LOG.log(driver.failure_log.level(
                entry.instance_uuid, f'{record.kind}: {error!r}'),
                'Could not clean up after a snapshot: %s', record.kind,
                exc_info=True, instance=instance)
            yield f'{record.kind}: {error}.'
        else:
            entry.remove(record)
            LOG.debug('Recovery of %s is done', record.kind,
                      instance=instance)


def _release(driver: libvirt_driver.LibvirtDriver, types: ResourceTypes,
             entry: journal.JournalEntry, record: journal.JournalRecord,
             target: planning.Target) -> None:
    """Release the resource of one record, and what only waits for that.

    :raises JournalRecordError: no installed strategy knows its kind
    """
    resource_type = types.get(record.kind)
    if resource_type is None:
        raise exception.JournalRecordError(
            reason=f'no installed strategy knows this kind of resource. '
                   f'Install the package of the strategy {entry.strategy!r} '
                   f'again (as it was when the snapshot began), and restart '
                   f'nova-compute')
    host = target.instance.host
    if resource_type.moves_with_disk and host not in (None, CONF.host):
        LOG.warning('The instance is on host %(host)s now, and so is its '
                    '%(kind)s: it is not touched from here',
                    {'host': host, 'kind': record.kind},
                    instance=target.instance)
        return
    resource_type.check_record(record.data)
    resource = resource_type.restore(driver, target, record.data)
    entry.bind(record, resource)
    resource.release()
    if record.kind in rbd_leftovers.SNAPSHOT_KINDS and not _is_trial(entry):
        # Before the record goes: nothing else remembers the disk.
        rbd_leftovers.delete_disks_of_deleted(entry.instance_uuid)


def _is_trial(entry: journal.JournalEntry) -> bool:
    """Return whether an entry has a guest that Nova never knows."""
    return any(record.kind == trial_guest.TrialGuest.kind
               for record in entry.records)


def get_instance(uuid: str, name: str) -> objects.Instance:
    """Return an instance from Nova.

    :param name: name of its libvirt domain
    :returns: an UnknownInstance, if Nova does not have it or does not answer
    """
    try:
        # The guest may be paused or frozen until it is recovered.
        return bounded.call(lambda: objects.Instance.get_by_uuid(
            nova_context.get_admin_context(), uuid,
            expected_attrs=['flavor', 'system_metadata', 'numa_topology']),
            bounded.NOVA_TIMEOUT)
    except nova_exception.InstanceNotFound:
        LOG.info('Instance %s, whose snapshot was interrupted, is deleted',
                 uuid)
    except (oslo_messaging.MessagingException,
            bounded.NoResponse) as error:
        LOG.warning('Could not ask Nova for instance %(instance)s, whose '
                    'snapshot was interrupted: %(error)s',
                    {'instance': uuid, 'error': error})
    return planning.UnknownInstance(uuid, name)


def _path_of(resource_type: type[journal.Resource]) -> str:
    return f'{resource_type.__module__}.{resource_type.__qualname__}'
