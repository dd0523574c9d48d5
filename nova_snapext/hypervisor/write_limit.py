# SPDX-License-Identifier: Apache-2.0
"""A limit for what a guest writes while its overlay is merged.

It is libvirt's block I/O tuning of the root disk, in the running guest only.
The tuning that the guest had before is put back exactly. For the last moment
of the merge the guest is paused, and with some versions of QEMU for the first.

https://libvirt.org/formatdomain.html#hard-drives-floppy-disks-cdroms (iotune)
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import dataclasses
import threading
import typing as ty

import libvirt
from oslo_log import log as logging
from oslo_utils import timeutils
from oslo_utils import units

from nova_snapext import conf
from nova_snapext.hypervisor import domain
from nova_snapext import plan as planning

CONF = conf.CONF
LOG = logging.getLogger(__name__)

# Disks with the same group name share one tuning. The name is never changed:
# in a group of its own the guest could do more than before. libvirt keeps a
# name that is not given.
GROUP_NAME = 'group_name'

# With a burst but no length, QEMU reports a length of one second.
LENGTH_SUFFIX = '_max_length'

# A commit copies at least so much for each write of the guest: QEMU's mirror
# job tracks what was written in pieces of this size (bytes), or of the disk's
# clusters, which Nova creates in the same size.
GRANULARITY = 64 * units.Ki

# Seconds for which a guest may be paused before its clock is set afterwards.
SHORT_PAUSE = 1

Tuning = dict[str, ty.Any]


@dataclasses.dataclass(frozen=True)
class WriteRate:
    """How much a guest writes.

    Both matter. Large writes are many bytes. Each small one makes the commit
    copy as much as :data:`GRANULARITY`.

    :ivar bytes_sec: bytes a second
    :ivar iops_sec: requests a second
    """

    bytes_sec: int
    iops_sec: int

    def at_least(self, other: WriteRate) -> WriteRate:
        return WriteRate(max(self.bytes_sec, other.bytes_sec),
                         max(self.iops_sec, other.iops_sec))

    def __str__(self) -> str:
        return (f'{self.bytes_sec // units.Ki} KiB and {self.iops_sec} '
                f'requests a second')


def limited_tuning(tuning: Mapping[str, ty.Any], rate: WriteRate) -> Tuning:
    """Return a tuning for a guest that writes no more than a rate.

    Nothing in it allows the guest more than its tuning did.

    :param tuning: the tuning without the limit, with all of libvirt's names
    """
    result = {name: value for name, value in tuning.items()
              if name != GROUP_NAME}
    # libvirt counts a request that is larger than this as several.
    size = tuning.get('size_iops_sec', 0)
    pieces = max(1, GRANULARITY // size) if size else 1
    for unit, limit in (('bytes_sec', rate.bytes_sec),
                        ('iops_sec', rate.iops_sec * pieces)):
        total, write = f'total_{unit}', f'write_{unit}'
        if result[total]:
            # libvirt allows no limit of the writes beside one of the sum. So
            # reads get what the writes leave, and 0 would be no limit.
            limit = max(1, min(limit, result[total] // 2))
            _limit_reads(result, unit, limit)
        result[write] = min(limit, result[write] or limit)
        result[f'{write}_max'] = result[f'{write}{LENGTH_SUFFIX}'] = 0
    return result


def _limit_reads(tuning: Tuning, unit: str, writes: int) -> None:
    """Change a limit of the sum into one of the reads.

    :param writes: the part of the sum that is left to the writes
    """
    for suffix, less in (('', writes), ('_max', writes), (LENGTH_SUFFIX, 0)):
        total = tuning[f'total_{unit}{suffix}']
        tuning[f'read_{unit}{suffix}'] = total and max(1, total - less)
        tuning[f'total_{unit}{suffix}'] = 0


class Pauses:
    """The guests that merges have paused, and this process will resume."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._paused: set[str] = set()
        # Merges wait before they pause these.
        self._kept_off: set[str] = set()
        self.are_forbidden = False

    def begin(self, uuid: str) -> bool:
        """Return whether a guest may be paused.

        :param uuid: uuid of the instance; :meth:`end` must follow
        """
        with self._changed:
            self._changed.wait_for(lambda: uuid not in self._kept_off)
            if not self.are_forbidden:
                self._paused.add(uuid)
            return not self.are_forbidden

    def end(self, uuid: str) -> None:
        """Note that a guest is not paused by a merge any more.

        :param uuid: uuid of the instance
        """
        with self._changed:
            self._paused.discard(uuid)
            self._changed.notify_all()

    @contextlib.contextmanager
    def keep_off(self, uuid: str, timeout: float) -> Iterator[None]:
        """Let no merge pause a guest, or resume one that it has paused.

        :param uuid: uuid of the instance
        :param timeout: to wait for a merge that has paused it, in seconds
        """
        with self._changed:
            self._changed.wait_for(lambda: uuid not in self._paused, timeout)
            self._kept_off.add(uuid)
        try:
            yield
        finally:
            with self._changed:
                self._kept_off.discard(uuid)
                self._changed.notify_all()

    def stop(self, timeout: float) -> list[str]:
        """Forbid more pauses, and wait for the end of those in progress.

        :param timeout: in seconds
        :returns: uuids of the instances whose guests are still paused then
        """
        with self._changed:
            self.are_forbidden = True
            self._changed.wait_for(lambda: not self._paused, timeout)
            return sorted(self._paused)


#: Those of this process.
PAUSES = Pauses()


class WriteLimit:
    """The limit of the writes to one disk, which may survive a crash.

    A tuning that somebody else sets during the merge is kept.
    """

    def __init__(self, target: planning.Target, save: Callable[[], None]):
        """Create a limit that is not in place.

        :param save: writes the record into the journal
        """
        self._instance = target.instance
        self._disk = target.disk
        self._save = save
        self._original: Tuning = {}
        # Every tuning that was set, because a crash may come before libvirt
        # has set the newest. There are as many as times that a rate can be
        # halved.
        self._limits: list[Tuning] = []
        self._paused = False
        # Not started if another process has paused the guest.
        self._pause_timer = timeutils.StopWatch(SHORT_PAUSE)

    def record(self) -> dict[str, ty.Any]:
        """Return the journal's part of the record of the merge."""
        return {'original': self._original, 'limits': self._limits,
                'paused': self._paused}

    def restore(self, record: dict[str, ty.Any]) -> None:
        """Take over the values of a record."""
        self._original = record['original']
        self._limits = record['limits']
        self._paused = record['paused']
        if self._paused:
            PAUSES.begin(self._instance.uuid)

    @property
    def is_paused(self) -> bool:
        """Whether the guest may be paused by this."""
        return self._paused

    @property
    def is_set(self) -> bool:
        """Whether the guest's writes may be limited, or the guest paused."""
        return bool(self._limits or self._paused)

    def lower(self, guest: domain.Domain, rate: WriteRate) -> None:
        """Limit the guest's writes.

        :raises libvirtError: libvirt refuses
        :raises OSError, JournalFailed: the journal can't be written, and the
            guest's tuning is as before
        """
        current = guest.block_tuning(self._disk.target)
        if not self._is_ours(current):
            if self._limits and not _is_same(current, self._original):
                LOG.warning('The block I/O tuning of %(disk)s was changed '
                            'during the merge to %(tuning)s, which is put '
                            'back after it',
                            {'disk': self._disk.target,
                             'tuning': _text(current)},
                            instance=self._instance)
            self._original, self._limits = current, []
        limit = limited_tuning(self._original, rate)
        if _is_same(limit, current):
            return
        self._limits.append(limit)
        try:
            self._save()
        except Exception:
            self._limits.pop()
            raise
        guest.set_block_tuning(self._disk.target, limit)
        LOG.debug('The block I/O tuning of %(disk)s is now %(tuning)s',
                  {'disk': self._disk.target, 'tuning': _text(limit)},
                  instance=self._instance)

    def pause(self, guest: domain.Domain) -> bool:
        """Pause the guest until the limit is removed, unless it is paused.

        :returns: whether it is paused by this; never if this process ends
        :raises libvirtError: libvirt refuses
        :raises OSError, JournalFailed: the journal can't be written, and the
            guest is not paused
        """
        if not PAUSES.begin(self._instance.uuid):
            return self._paused
        try:
            self._pause(guest)
        finally:
            if not self._paused:
                PAUSES.end(self._instance.uuid)
        return self._paused

    def _pause(self, guest: domain.Domain) -> None:
        state, _reason = guest.state()
        if state != libvirt.VIR_DOMAIN_RUNNING:
            return
        self._paused = True
        try:
            self._save()
        except Exception:
            self._paused = False
            raise
        self._pause_timer.restart()
        guest.pause()
        LOG.info('The guest is paused for its merge',
                 instance=self._instance)

    def remove(self, guest: domain.Domain) -> None:
        """Put the tuning back that the guest had before the limit, and resume.

        A guest that was started since then has it from its definition. One
        that was resumed from saved memory still has the limit. A tuning that
        is not the limit is kept.

        :raises libvirtError: libvirt refuses
        :raises OSError, JournalFailed: the journal can't be written
        """
        if not self.is_set:
            return
        is_late = (self._paused and guest.is_active() and
                   self._resume(guest))
        # From here on only a user pauses it.
        self._paused = False
        PAUSES.end(self._instance.uuid)
        if self._limits and guest.is_active():
            self._put_back(guest)
        self._original, self._limits = {}, []
        self._save()
        if is_late:
            with guest.agent_timeout(CONF.snapext.agent_timeout):
                guest.sync_guest_time()

    def _resume(self, guest: domain.Domain) -> bool:
        """Resume the guest.

        :returns: whether its clock is late
        """
        if guest.state() != (libvirt.VIR_DOMAIN_PAUSED,
                             libvirt.VIR_DOMAIN_PAUSED_USER):
            return False
        guest.resume()
        LOG.info('The guest is resumed', instance=self._instance)
        return (not self._pause_timer.has_started() or
                self._pause_timer.expired())

    def _put_back(self, guest: domain.Domain) -> None:
        target = self._disk.target
        current = guest.block_tuning(target)
        # The limit is never in the definition, unless somebody put it there.
        if self._is_ours(current) and not (
                guest.has_persistent_configuration() and
                self._is_ours(guest.persistent_block_tuning(target))):
            guest.set_block_tuning(target, {
                name: value for name, value in self._original.items()
                if name != GROUP_NAME})
            LOG.info('The writes to %(disk)s are no longer limited: its block '
                     'I/O tuning is as before the merge, %(tuning)s',
                     {'disk': target, 'tuning': _text(self._original)},
                     instance=self._instance)
        elif not _is_same(current, self._original):
            LOG.warning('The block I/O tuning of %(disk)s, %(tuning)s, is not '
                        'what the merge has set, and is kept. Before the '
                        'merge it was %(original)s',
                        {'disk': target, 'tuning': _text(current),
                         'original': _text(self._original)},
                        instance=self._instance)

    def _is_ours(self, tuning: Tuning) -> bool:
        return any(_is_same(tuning, limit) for limit in self._limits)


def _is_same(one: Tuning, other: Tuning) -> bool:
    """Return whether two tunings limit the same.

    Names and lengths of bursts are filled in by QEMU.
    """
    return all(other.get(name, 0) == value for name, value in one.items()
               if name != GROUP_NAME and not name.endswith(LENGTH_SUFFIX))


def _text(tuning: Tuning) -> str:
    return ', '.join(f'{name}={value}' for name, value in tuning.items()
                     if value) or 'no limit'
