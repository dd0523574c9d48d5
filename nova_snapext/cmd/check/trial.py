# SPDX-License-Identifier: Apache-2.0
"""``check --trial``: each strategy on a throw-away guest.

The guest has a journal of its own, so that a running nova-compute takes it for
nothing of its concern, and ``nova-snapext recover`` removes what a crash has
left of it. The image that :func:`nova_snapext.cmd.check.glance.properties`
creates is there, too.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import os
import time
import typing as ty

from nova_snapext.cmd.check import guests
from nova_snapext.cmd.check import item

#: Below [snapext]journal_directory.
DIRECTORY = 'trial'

#: By the storage of the guest's disk: the strategies that are tried while it
#: runs, in this order, and the one that is tried when it is shut off. Those
#: that suspend the guest come last. Others that are installed follow.
STRATEGIES = {
    'file': (('backup', 'external', 'internal', 'cold'), 'cold'),
    'network': (('rbd', 'backup'), 'rbd'),
}

#: Nova's own needs an instance of Nova's, and an image in Glance.
NOT_TRIED = 'native'

# Seconds between two looks at whether the guest is as before.
POLL_INTERVAL = 0.2
# Seconds until it is: libvirt reports the end of a job a moment later.
SETTLE_TIMEOUT = 10

#: Begins the name of what is left, if it is an image in Glance.
IMAGE = 'image '


def trial(host: item.Host) -> Iterator[item.Item]:
    """Try each strategy: freeze, read, release. Nothing is uploaded."""
    from nova_snapext import exception
    name = 'trial'
    if host.driver is None:
        yield item.unknown(name, 'No strategy was tried, because the driver '
                                 'can\'t be created.')
        return
    try:
        with locked_journal():
            yield from recover(host.driver)
            yield from _with_guest(host.driver)
    except exception.JournalLocked:
        yield item.unknown(name, 'Another "nova-snapext check --trial" runs.')
    except (exception.SnapextError, OSError) as error:
        yield item.failed(name, f'The journal of the trial can\'t be used: '
                                f'{error}.')


def directory() -> str:
    """Return the path of the trials' journal."""
    from nova_snapext import conf
    return os.path.join(conf.CONF.snapext.journal_directory, DIRECTORY)


@contextlib.contextmanager
def own_journal() -> Iterator[None]:
    """Use the journal of trials inside the context."""
    from nova_snapext import conf
    # oslo.config has no way to put back an earlier override, and there is
    # none in the commands; there is in tests.
    before = conf.CONF.snapext.journal_directory
    conf.CONF.set_override('journal_directory', directory(), 'snapext')
    try:
        yield
    finally:
        conf.CONF.set_override('journal_directory', before, 'snapext')


@contextlib.contextmanager
def locked_journal() -> Iterator[None]:
    """Use the journal of trials alone, and remove it if it is empty then.

    :raises JournalLocked: another trial uses it
    :raises JournalFailed: it can't be used
    """
    from nova_snapext import journal
    with own_journal(), journal.locked():
        journal.finish_writes()
        try:
            yield
        finally:
            journal.remove_if_empty()


def left() -> list[dict[str, ty.Any]]:
    """Return the guests, and images, that interrupted trials have left.

    :raises JournalFailed: the journal can't be read
    """
    from nova_snapext import journal
    if not os.path.isdir(directory()):
        return []
    with own_journal():
        if journal.is_locked_by_another():
            return []   # a trial runs
        return [{'name': entry.instance_name, 'uuid': entry.instance_uuid,
                 'began_at': entry.began_at, 'problem': entry.problem}
                for entry in journal.entries()] + [
                    {'name': f'{IMAGE}{image.image_id}',
                     'uuid': image.image_id, 'began_at': image.began_at,
                     'problem': image.reason} for image in journal.images()]


def recover(driver: ty.Any) -> Iterator[item.Item]:
    """Remove what an earlier trial has left. Its journal is locked."""
    from nova_snapext import exception
    from nova_snapext import journal
    from nova_snapext import plan as planning
    from nova_snapext.recovery import recover as recovery
    name = 'trial'
    entries = [*journal.entries()]
    for entry in entries:
        try:
            recovery.recover_entry(driver, entry, instance=ty.cast(
                ty.Any, planning.UnknownInstance(
                    entry.instance_uuid, entry.instance_name)))
        except exception.NotRecovered as error:
            yield item.failed(name, f'An earlier trial has left something: '
                                    f'{error}')
        else:
            yield _removed(entry.instance_name)
    yield from _remove_forgotten(
        driver, {entry.instance_uuid for entry in entries})
    for image in journal.images():
        text = f'The image {image.image_id}, which an earlier trial had left,'
        if recovery.recover_image(image):
            yield item.ok(name, f'{text} is deleted')
        else:
            yield item.failed(name, f'{text} could not be deleted: '
                                    f'{image.reason}.')


def _removed(guest: str) -> item.Item:
    return item.ok('trial', f'{guest}, which an earlier trial had left, is '
                            f'removed')


def _remove_forgotten(driver: ty.Any, known: set[str]) -> Iterator[item.Item]:
    """Remove guests of trials whose journal is lost.

    :param known: uuids of those that the journal knows
    """
    import libvirt

    from nova_snapext import exception
    from nova_snapext.resources import trial_guest
    try:
        found = trial_guest.TrialGuest.find(driver._host)
    except libvirt.libvirtError as error:
        yield item.failed('trial', f'Whether earlier trials have left guests '
                                   f'is not known: {error}.')
        return
    for guest in found:
        if guest.instance.uuid in known:
            continue
        try:
            guest.release()
        except (libvirt.libvirtError, OSError,
                exception.SnapextError) as error:
            yield item.failed('trial', f'{guest.instance.name}, which an '
                                       f'earlier trial has left, could not '
                                       f'be removed: '
                                       f'{str(error).rstrip(".")}.')
        else:
            yield _removed(guest.instance.name)


def _with_guest(driver: ty.Any) -> Iterator[item.Item]:
    from nova_snapext import exception
    from nova_snapext import journal
    from nova_snapext import plan as planning
    from nova_snapext.resources import trial_guest
    name = 'trial'
    guest = trial_guest.TrialGuest.new(driver._host)
    try:
        guest.check_storage()
    except exception.SnapextError as error:
        yield item.failed(name, f'No guest can be created: '
                                f'{str(error).rstrip(".")}.')
        return
    target = planning.Target(
        context=ty.cast(ty.Any, None),
        instance=ty.cast(ty.Any, guest.instance),
        disk=guest.disk, image_id='00000000-0000-4000-8000-000000000000')
    running, shut_off = STRATEGIES[guest.disk.storage]
    try:
        with journal.new_entry(ty.cast(ty.Any, target), 'trial') as entry, \
                journal.ReleaseStack(entry) as stack:
            stack.add(guest)
            content = guest.create()
            yield item.ok(name, f'the guest {guest.instance.name} runs, with '
                                f'a disk of '
                                f'{trial_guest.DISK_SIZE >> 20} MiB')
            for strategy in (*running, *_others(driver)):
                yield _one(driver, guest, strategy, entry, content)
            guest.shut_off()
            yield _one(driver, guest, shut_off, entry, content)
    except Exception as error:
        # Of libvirt, qemu-img, the host, or a release.
        yield item.failed(
            name, f'The trial ended early: {str(error).rstrip(".")}.',
            f'"nova-snapext check --trial", or "nova-snapext recover" while '
            f'nova-compute is stopped, removes what is left of '
            f'{guest.instance.name}.')
        return
    yield item.ok(name, f'the guest {guest.instance.name} is removed')


def _others(driver: ty.Any) -> list[str]:
    """Return the strategies that other packages have installed."""
    known = {NOT_TRIED}.union(*(running for running, _shut_off in
                                STRATEGIES.values()))
    return sorted(driver.strategies.keys() - known)


def _one(driver: ty.Any, guest: ty.Any, name: str, entry: ty.Any,
         content: bytes) -> item.Item:
    """Take a snapshot by one strategy, and forget it."""
    from nova_snapext import exception
    plan = guests.plan_of(driver, guest.instance)
    item_name = f'trial {name}{"" if plan.running else " (shut off)"}'
    strategy = driver.strategies.get(name)
    if strategy is None:
        return item.failed(item_name, 'The strategy is not installed.')
    reason = strategy.unsupported_reason(plan)
    if reason is not None:
        return item.warning(item_name, f'Not tried: {reason}.')
    before = _state(plan)
    begun = time.monotonic()
    try:
        with strategy.freeze(plan, entry) as frozen:
            is_same = _read(frozen) == content
    except exception.SnapextError as error:
        return item.failed(item_name, str(error))
    except Exception as error:
        # Of a strategy of another package: the others are tried all the same.
        return item.failed(item_name, f'{type(error).__name__}: '
                                      f'{str(error).rstrip(".")}.')
    took = time.monotonic() - begun
    if not is_same:
        return item.failed(item_name, 'What was read is not what the disk '
                                      'contains.')
    after = _settled(plan, before)
    if after != before:
        return item.failed(item_name, f'The guest is not as before: '
                                      f'{after}, was {before}.')
    return item.ok(item_name, f'frozen for {frozen.freeze_seconds:.3f} s, '
                              f'read and released in {took:.1f} s, '
                              f'{frozen.consistency} consistent')


def _read(frozen: ty.Any) -> bytes:
    from nova_snapext import read
    with read.Disk(frozen.uri) as disk:
        content = bytearray(disk.size)
        for offset, chunk in disk.read([(0, disk.size)]):
            content[offset:offset + len(chunk)] = chunk
    return bytes(content)


def _state(plan: ty.Any) -> str:
    """Return what has to be the same again, in words."""
    from nova_snapext.hypervisor import ceph
    from nova_snapext.hypervisor import domain
    from nova_snapext import plan as planning
    guest = domain.Domain(plan.guest._domain)
    disk = planning.find_root_disk(guest, plan.instance)
    image = ceph.image_of(disk)
    snapshots = ceph.snapshot_names(image) if image else []
    return (f'state {guest.state()[0]}, disk {disk.path}, job '
            f'{guest._domain.jobInfo()[0] if plan.running else 0}, '
            f'{len(snapshots)} snapshots in Ceph')


def _settled(plan: ty.Any, before: str) -> str:
    """Return the state, as soon as it is that of before."""
    end = time.monotonic() + SETTLE_TIMEOUT
    while (after := _state(plan)) != before and time.monotonic() < end:
        time.sleep(POLL_INTERVAL)
    return after
