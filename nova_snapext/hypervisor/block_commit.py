# SPDX-License-Identifier: Apache-2.0
"""libvirt's commit of an overlay while its guest runs.

For the pivot, the guest is paused for some hundredths of a second, until its
overlay is removed. While it may be unknown whether the overlay or the disk is
newer, it writes to neither of them, and both have the same data.

Some versions of QEMU miss writes while they start a commit (known defect
missed-writes). There the guest is paused during the start, too.

The commit always ends. If the guest writes faster than its disk takes it, its
writes are limited step by step, as far as an operator allows. If the commit
does not gain even then, it is aborted, and the guest stays on the overlay.
"""

from __future__ import annotations

from collections.abc import Callable
import enum
import itertools
import os
import typing as ty

import libvirt
from lxml import etree
from nova import objects
from oslo_log import log as logging
from oslo_utils import excutils
from oslo_utils import timeutils
from oslo_utils import units

from nova_snapext import checks
from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.hypervisor import chain
from nova_snapext.hypervisor import convergence
from nova_snapext.hypervisor import domain
from nova_snapext.hypervisor import jobs
from nova_snapext.hypervisor import write_limit as limits
from nova_snapext import plan as planning

CONF = conf.CONF
LOG = logging.getLogger(__name__)

# Seconds between two queries of the commit's progress. libvirt has events for
# its end and for the time to pivot, and none for progress. The free space for
# the overlay is checked as often as during the upload.
POLL_INTERVAL = checks.FAST_INTERVAL

# Bytes that may be left when QEMU is told to pivot. It pivots when nothing is
# left, and can't be stopped any more. A slow disk takes so much in half a
# minute.
MAX_LEFT_AT_PIVOT = 64 * units.Mi

# Bytes that may always be left when the guest is paused for the pivot, and the
# seconds of copying that may be left. The copying goes on while it is paused.
MAX_LEFT_AT_PAUSE = units.Mi
MAX_SECONDS_AT_PAUSE = 1

# Seconds that a guest stays paused at most before its commit is given up, and
# between two queries while it is paused.
MAX_PAUSE = 30
PAUSED_INTERVAL = 0.01

# Why the guest is paused while the commit starts.
DEFECT = 'Its QEMU may have the known defect missed-writes'

# libvirt reports so many bytes as the end of a job that QEMU has not counted
# yet: qemuBlockJobInfoTranslate in src/qemu/qemu_driver.c.
END_OF_UNCOUNTED = 1

# Seconds after which a guest is paused that is to pivot, runs, and writes too
# much to be able to. Others pivot in well under one.
PIVOT_PATIENCE = 5


class CommitState(enum.Enum):
    COMMITTING = enum.auto()
    MERGED = enum.auto()        # the guest has changed to its disk
    NOT_THERE = enum.auto()     # the guest was on its disk from the start
    ENDED = enum.auto()         # the guest ended; it may run in another QEMU


class ActiveCommit:
    """The commit of an overlay into its disk, after which the guest uses it.

    It continues from the state that it finds: it waits for a commit that
    already runs, also for one that another process started.

    :param overlay_path: path of the overlay to commit
    :param before_pivot: called when the guest is about to change to its disk.
        If it raises, the commit is aborted and the error is raised
    :param pivot_failed: called when QEMU was told to pivot, and the guest has
        been seen on the overlay after the end of the commit
    :param write_limit: slows the guest down; None: one without a journal
    :param misses_writes: returns whether the guest's QEMU may have the known
        defect missed-writes
    """

    def __init__(self, target: planning.Target, overlay_path: str,
                 before_pivot: Callable[[], None] = lambda: None,
                 pivot_failed: Callable[[], None] = lambda: None,
                 write_limit: limits.WriteLimit | None = None,
                 misses_writes: Callable[[domain.Domain], bool] = (
                     lambda _guest: False)):
        self._instance = target.instance
        self._disk = target.disk
        self._overlay = overlay_path
        self._before_pivot = before_pivot
        self._pivot_failed = pivot_failed
        self._limit = write_limit or limits.WriteLimit(target, lambda: None)
        self._misses_writes = misses_writes
        self._told = False
        self._forget_qemu()

    def _forget_qemu(self) -> None:
        """Begin again, with the QEMU that the guest runs in next."""
        self._qemu: str | None = None
        self._chain: list[str | None] = []
        self._begun = False
        # Set while QEMU may miss what the guest writes.
        self._start_timer: timeutils.StopWatch | None = None
        self._ready = False
        # QEMU may have been told to pivot, also by another process.
        self._may_pivot = True
        self._failure: Exception | None = None

    def run(self, guest: domain.Domain) -> CommitState:
        """Commit the overlay, and change the guest to its disk.

        After MERGED and NOT_THERE the guest may be paused: call
        remove_limit().

        It may be called again if libvirtd restarts during the call, and after
        ENDED.

        :raises CommitFailed: the backing chain is not as expected, or the job
            has failed, makes no progress or does not gain on the guest. The
            guest continues to run
        :raises libvirtError: libvirt refuses a step, or the guest has ended
        """
        # QEMU was told to pivot in this call.
        self._told = False
        try:
            state = self._run(guest)
        except Exception:
            with excutils.save_and_reraise_exception():
                self.remove_limit(guest)
        if state is CommitState.ENDED:
            self.remove_limit(guest)
            self._forget_qemu()
        LOG.debug('The commit of %(overlay)s ends: %(state)s',
                  {'overlay': self._overlay, 'state': state.name.lower()},
                  instance=self._instance)
        return state

    def _run(self, guest: domain.Domain) -> CommitState:
        timer = jobs.StallTimer(CONF.snapext.operation_timeout)
        pace = _Pace(self._instance, self._disk.target, self._overlay,
                     self._limit)
        interval = min(POLL_INTERVAL, CONF.snapext.operation_timeout)
        event = libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2
        while True:
            with guest.watch_event(event) as wait_for_event:
                state = self._advance(guest, timer, pace)
                if state is not CommitState.COMMITTING:
                    return state
                wait_for_event(PAUSED_INTERVAL if pace.is_paused
                               or self._limit.is_paused else interval)

    def remove_limit(self, guest: domain.Domain) -> None:
        """Resume the guest, and let it write as before, if it is limited."""
        try:
            self._limit.remove(guest)
        except (libvirt.libvirtError, OSError,
                exception.JournalFailed) as error:
            LOG.warning('The writes to %(disk)s may still be limited, or the '
                        'guest be paused: %(error)s. The next merge or '
                        'recovery undoes it, and so does a hard reboot',
                        {'disk': self._disk.target, 'error': error},
                        instance=self._instance)

    def _advance(self, guest: domain.Domain, timer: jobs.StallTimer,
                 pace: _Pace) -> CommitState:
        """Read the state of the commit, and do the next step."""
        definition = guest.get_xml_desc()
        qemu = etree.fromstring(definition).get('id')
        if qemu is None or self._qemu not in (None, qemu):
            return CommitState.ENDED
        disk = chain.find_disk(definition, self._disk.target)
        state = self._check_chain(chain.paths_of(disk))
        if state is not CommitState.COMMITTING:
            return state
        self._qemu = qemu
        mirror = disk.find('mirror')
        if self._chain[0] != self._overlay:
            self._advance_inner(guest, timer)
        elif mirror is None:
            self._begin(guest)
        else:
            self._follow(guest, mirror, timer, pace)
        return CommitState.COMMITTING

    def _check_chain(self, paths: list[str | None]) -> CommitState:
        if self._chain:
            # As long as the guest runs in the same QEMU, our commit is the
            # only change of this chain, and this is the only result.
            if paths == [path for path in self._chain
                         if path != self._overlay]:
                return CommitState.MERGED
            if paths != self._chain:
                self._fail(f'was on {chain.text(self._chain)}, and is now on '
                           f'{chain.text(paths)}')
        elif paths[0] == self._disk.path:
            return CommitState.NOT_THERE
        elif (self._overlay, self._disk.path) not in itertools.pairwise(paths):
            self._fail(f'is on {chain.text(paths)}, where {self._overlay} is '
                       f'not directly above {self._disk.path}')
        self._chain = paths
        return CommitState.COMMITTING

    def _follow(self, guest: domain.Domain, mirror: etree._Element,
                timer: jobs.StallTimer, pace: _Pace) -> None:
        """Follow the commit of the topmost overlay, and pivot at its end."""
        job = mirror.get('job')
        if not job:
            # libvirt is ending the job (seen with 9.0).
            self._check_progress(timer, {})
            return
        if job != 'active-commit' or chain.path_of(mirror) != self._disk.path:
            self._fail(f'has the job \'{job}\', which is not the snapshot\'s')
        ready = mirror.get('ready')
        if ready is None:
            # Only a commit that is ready can be told to pivot.
            self._may_pivot = False
        info = guest.block_job_info(self._disk.target)
        counted = (ready is not None or info.get('cur', 0) > 0 or
                   info.get('end', 0) > END_OF_UNCOUNTED)
        if not (self._begun or counted) and self._misses_writes(guest):
            # The process that has begun it has ended too early.
            self._await_start()
        self._begun = True
        self._check_progress(timer, info, ready)
        if self._failure is not None:
            return
        if self._start_timer is not None and not self._has_started(
                guest, self._start_timer, counted):
            return
        if ready is None and self._limit.is_paused:
            # For the start, perhaps by a process that has ended.
            self.remove_limit(guest)
        self._keep_pace(guest, info, ready, pace)

    def _keep_pace(self, guest: domain.Domain, info: dict[str, int],
                   ready: str | None, pace: _Pace) -> None:
        left = info.get('end', 0) - info.get('cur', 0)
        overtaken = pace.keep(guest, info) if info else None
        if overtaken is not None:
            self._give_up(guest, overtaken)
        elif ready == 'pivot':
            pace.await_pivot(guest)
        elif (ready == 'yes' and left <= MAX_LEFT_AT_PIVOT and
                pace.prepare_pivot(guest, left)):
            self._pivot(guest)

    def _await_start(self) -> None:
        self._start_timer = timeutils.StopWatch(
            min(MAX_PAUSE, CONF.snapext.operation_timeout))
        self._start_timer.start()

    def _pause_for_start(self, guest: domain.Domain) -> None:
        """Let the guest write nothing while its commit starts.

        :raises CommitFailed: it could not be paused
        """
        reason = ('nova-compute stops' if limits.PAUSES.are_forbidden
                  else 'it was resumed')
        try:
            self._limit.pause(guest)
        except (libvirt.libvirtError, OSError,
                exception.JournalFailed) as error:
            reason = str(error)
        if guest.state()[0] == libvirt.VIR_DOMAIN_RUNNING:
            self._fail(f'is not merged, because the guest could not be paused '
                       f'while the commit starts: {reason}. {DEFECT}. The '
                       f'merge is tried again by itself')
        self._await_start()

    def _has_started(self, guest: domain.Domain, timer: timeutils.StopWatch,
                     counted: bool) -> bool:
        """Check that the guest stays paused until its commit has started.

        :param counted: QEMU has searched the overlay for its data, and counted
            what is to be copied. From then on it notes each write
        """
        # Read after the progress: a guest that is still paused did not run.
        if guest.state()[0] == libvirt.VIR_DOMAIN_RUNNING:
            seen = 'the guest was resumed while the commit started'
        elif counted:
            self._start_timer = None
            return True
        elif timer.expired():
            seen = (f'the commit has not started within '
                    f'{timer.elapsed():.0f} seconds, in which the guest was '
                    f'paused')
        else:
            return False
        self._start_timer = None
        self._abort(guest, self._error(
            f'is not merged: {seen}. {DEFECT}. The commit was aborted; the '
            f'guest continues on {self._overlay}, and no data is lost. The '
            f'merge is tried again by itself'))
        self.remove_limit(guest)
        return False

    def _pivot(self, guest: domain.Domain) -> None:
        if not self._ready:
            self._ready = True
            LOG.debug('The commit of %s is ready', self._overlay,
                      instance=self._instance)
        try:
            self._before_pivot()
        except Exception as error:
            if self._may_pivot:
                raise
            LOG.debug('The pivot is not requested: %s', error,
                      instance=self._instance)
            self._abort(guest, error)
            return
        LOG.debug('Requesting the pivot from %(overlay)s to %(disk)s',
                  {'overlay': self._overlay, 'disk': self._disk.path},
                  instance=self._instance)
        self._may_pivot = self._told = True
        guest.get_block_device(self._disk.target).abort_job(
            async_=True, pivot=True)

    def _give_up(self, guest: domain.Domain, seen: str) -> None:
        """End a commit that does not gain on its guest.

        :param seen: what was seen of it
        """
        reason = (f'is not merged, because the guest writes faster than the '
                  f'disk takes it: {seen}. [snapext]merge_min_write_kbps is '
                  f'{CONF.snapext.merge_min_write_kbps} (0: no guest is '
                  f'slowed down). Change it, or reduce what the guest writes '
                  f'(a paused guest writes nothing). The merge is tried again '
                  f'by itself')
        if self._may_pivot:
            # An abort that crosses the pivot could make libvirt take the
            # wrong file for the guest's.
            self._fail(f'{reason}. The commit continues, and the guest may '
                       f'change to its disk at any time')
        LOG.warning('The commit of %(overlay)s is aborted: %(seen)s. The '
                    'guest stays on it and loses nothing',
                    {'overlay': self._overlay, 'seen': seen},
                    instance=self._instance)
        self._abort(guest, self._error(
            f'{reason}. The commit was aborted; the guest continues on '
            f'{self._overlay}, and no data is lost'))

    def _abort(self, guest: domain.Domain, failure: Exception) -> None:
        """Abort the commit, which leaves the guest on the overlay.

        :param failure: raised when it has ended
        """
        guest.get_block_device(self._disk.target).abort_job(async_=True)
        self._failure = failure

    def _advance_inner(self, guest: domain.Domain,
                       timer: jobs.StallTimer) -> None:
        """Commit the overlay below another overlay, which stays."""
        info = guest.block_job_info(self._disk.target)
        if not info:
            self._begin(guest, flags=0)
            return
        if info.get('type') != libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COMMIT:
            self._fail('has a job that is not the snapshot\'s')
        self._begun = True
        self._check_progress(timer, info)

    def _check_progress(self, timer: jobs.StallTimer, info: dict[str, int],
                        ready: str | None = None) -> None:
        """Check that the job has not stopped.

        :param info: libvirt's progress of the job, in bytes
        """
        done, total = info.get('cur'), info.get('end')
        # The end alone grows with what the guest writes.
        timer.progress((ready, done))
        if timer.expired:
            self._fail(f'has made no progress with its commit for '
                       f'{CONF.snapext.operation_timeout} seconds, at '
                       f'{done} of {total} bytes')

    def _begin(self, guest: domain.Domain,
               flags: int = libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE) -> None:
        if self._begun:
            self._end_on_overlay()
        if self._limit.is_paused:
            # For an earlier commit, which has ended on the overlay.
            self.remove_limit(guest)
        if flags and self._misses_writes(guest):
            self._pause_for_start(guest)
        # Without base and top libvirt would commit the images that it finds:
        # without our overlay, the instance's disk into its backing file.
        try:
            guest.commit_block(
                self._disk.target, self._disk.path, self._overlay, flags)
        except libvirt.libvirtError as error:
            if _is_inactive(guest, error):
                self._fail(f'can\'t be merged while the guest is paused: it '
                           f'has not run since it was restored from saved '
                           f'memory or migrated, and its QEMU merges no disk '
                           f'before that ({error}). It is merged when the '
                           f'guest is unpaused (openstack server unpause)')
            raise
        self._begun = True
        self._may_pivot = False
        LOG.debug('Started the commit of %(overlay)s into %(disk)s',
                  {'overlay': self._overlay, 'disk': self._disk.path},
                  instance=self._instance)

    def _end_on_overlay(self) -> ty.NoReturn:
        """Raise why the commit has ended, with the guest on the overlay."""
        if self._told:
            self._pivot_failed()
        if self._failure is not None:
            raise self._failure
        self._fail('is still on the overlay, though its commit has ended; the '
                   'guest\'s log in /var/log/libvirt/qemu may say why')

    def _fail(self, reason: str) -> ty.NoReturn:
        raise self._error(reason)

    def _error(self, reason: str) -> exception.CommitFailed:
        return exception.CommitFailed(
            disk=self._disk.target, guest=self._instance.name, reason=reason)


def _is_inactive(guest: domain.Domain, error: libvirt.libvirtError) -> bool:
    """Return whether a QEMU that has not run yet refuses a commit.

    QEMU 10 says: Inactive 'libvirt-2-format' can't be a backing child of
    active '#block065'. 11.1 with libvirt 12.8 commits.
    """
    state, _reason = guest.state()
    return (state == libvirt.VIR_DOMAIN_PAUSED and
            'inactive' in str(error).lower())


class _Pace:
    """Slows the guest down as far as a commit needs it, and may."""

    def __init__(self, instance: objects.Instance, disk: str,
                 overlay_path: str, limit: limits.WriteLimit):
        self._instance = instance
        self._disk = disk
        self._limit = limit
        self._directory = os.path.dirname(overlay_path)
        self._space = checks.FreeSpaceCheck(instance, [self._directory])
        self._convergence = convergence.Convergence(limit.is_set)
        self._is_short = False
        # No lower limit is possible.
        self._is_lowest = not CONF.snapext.merge_min_write_kbps
        self._pivot_timer = timeutils.StopWatch(PIVOT_PATIENCE)
        # The guest was seen paused after it was paused here.
        self.is_paused = False
        self._pause_timer = timeutils.StopWatch(
            min(MAX_PAUSE, CONF.snapext.operation_timeout))

    def keep(self, guest: domain.Domain, info: dict[str, int]) -> str | None:
        """Slow the guest down if the commit needs it.

        :param info: libvirt's progress of the commit, in bytes
        :returns: what was seen of a commit that can't gain on its guest
        """
        if self._pause_timer.has_started():
            paused = ('although it was paused' if self.is_paused
                      else 'and it could not be paused')
            return (f'{info["end"] - info["cur"]} bytes are left, {paused}'
                    if self._pause_timer.expired() else None)
        self._check_space(guest)
        written, requests = guest.disk_writes(self._disk)
        pace = self._convergence
        pace.add(convergence.Sample(
            at=timeutils.now(), copied=info['cur'], total=info['end'],
            written=written, requests=requests))
        if not pace.is_overtaken:
            return None
        if self._is_lowest:
            return (str(pace) if pace.seconds_since_low >=
                    CONF.snapext.operation_timeout else None)
        self._lower(guest, pace.lower_rate(),
                    f'it writes faster than the overlay is merged: {pace}')
        return None

    def prepare_pivot(self, guest: domain.Domain, left: int) -> bool:
        """Let the guest write nothing more before the pivot, if it may be.

        :param left: bytes that are left to copy
        :returns: whether QEMU can be told to pivot
        """
        # Before QEMU pivots it lets all requests through that the limit still
        # holds back (bdrv_drained_begin in block/mirror.c), and then has to
        # copy them. A guest that always has some would never pivot (seen with
        # QEMU 7.2).
        if not CONF.snapext.merge_min_write_kbps and not self._limit.is_set:
            return True
        if self.is_paused:
            return left == 0
        if limits.PAUSES.are_forbidden:
            raise exception.CommitFailed(
                disk=self._disk, guest=self._instance.name,
                reason='is merged when nova-compute has started again: it '
                       'stops, and may not pause the guest for the end any '
                       'more. The commit continues until then')
        if self._pause_timer.has_started():
            return True
        if left > max(MAX_LEFT_AT_PAUSE, self._convergence.copied_per_second *
                      MAX_SECONDS_AT_PAUSE):
            return False
        self._pause(guest)
        return False

    def await_pivot(self, guest: domain.Domain) -> None:
        """Pause a guest that has been told to pivot and writes too much."""
        if not self._pivot_timer.has_started():
            self._pivot_timer.start()
        elif (self._pivot_timer.expired() and
                not self._pause_timer.has_started() and
                CONF.snapext.merge_min_write_kbps):
            self._pause(guest)

    def _pause(self, guest: domain.Domain) -> None:
        self._pause_timer.start()
        try:
            self.is_paused = self._limit.pause(guest)
        except (libvirt.libvirtError, OSError,
                exception.JournalFailed) as error:
            LOG.warning('The guest could not be paused for the end of the '
                        'merge: %s', error, instance=self._instance)

    def _check_space(self, guest: domain.Domain) -> None:
        if self._is_short:
            return
        try:
            shortage = self._space.run()
        except OSError as error:
            LOG.debug('The free space of %(path)s is not known: %(error)s',
                      {'path': self._directory, 'error': error},
                      instance=self._instance)
            return
        if shortage is None:
            return
        self._is_short = True
        LOG.warning('The overlay may fill its file system before it is '
                    'merged: %s', shortage, instance=self._instance)
        if not self._is_lowest:
            self._lower(guest, limits.WriteRate(0, 0),
                        f'the file system of {self._directory} has too little '
                        f'free space for its overlay')

    def _lower(self, guest: domain.Domain, rate: limits.WriteRate,
               why: str) -> None:
        """Limit the guest's writes to a rate, or to the lowest one."""
        lowest = _lowest_rate()
        rate = rate.at_least(lowest)
        self._is_lowest = rate == lowest
        self._convergence.restart(limited=True)
        try:
            self._limit.lower(guest, rate)
        except (libvirt.libvirtError, OSError,
                exception.JournalFailed) as error:
            # Without the journal nobody would know after a crash that the
            # guest is limited.
            self._is_lowest = True
            LOG.warning('The guest is not slowed down, because its block I/O '
                        'tuning can\'t be changed or written into the '
                        'journal: %s', error, instance=self._instance)
            return
        LOG.warning('The guest\'s writes to %(disk)s are limited to %(rate)s '
                    'until the overlay is merged: %(why)s',
                    {'disk': self._disk, 'rate': rate, 'why': why},
                    instance=self._instance)


def _lowest_rate() -> limits.WriteRate:
    """Return what the guest may always write."""
    lowest = CONF.snapext.merge_min_write_kbps * units.Ki
    return limits.WriteRate(lowest, -(-lowest // limits.GRANULARITY))
