# SPDX-License-Identifier: Apache-2.0
"""libvirt's commit of an overlay while its guest runs."""

from __future__ import annotations

from collections.abc import Callable
import enum
import itertools
import typing as ty

import libvirt
from lxml import etree
from oslo_log import log as logging

from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.hypervisor import chain
from nova_snapext.hypervisor import domain
from nova_snapext.hypervisor import jobs
from nova_snapext import plan as planning

CONF = conf.CONF
LOG = logging.getLogger(__name__)

# Seconds between two queries of the commit's progress. libvirt has events for
# its end and for the time to pivot, and none for progress.
POLL_INTERVAL = 5


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
    :param before_pivot: called when the guest is about to change to its disk
    """

    def __init__(self, target: planning.Target, overlay_path: str,
                 before_pivot: Callable[[], None] = lambda: None):
        self._instance = target.instance
        self._disk = target.disk
        self._overlay = overlay_path
        self._before_pivot = before_pivot
        self._qemu: str | None = None
        self._chain: list[str | None] = []
        self._begun = False
        self._ready = False

    def run(self, guest: domain.Domain) -> CommitState:
        """Commit the overlay, and change the guest to its disk.

        It may be called again if libvirtd restarts during the call.

        :raises CommitFailed: the backing chain is not as expected, or the job
            has failed or makes no progress. The guest continues to run
        :raises libvirtError: libvirt refuses a step, or the guest has ended
        """
        timer = jobs.StallTimer(CONF.snapext.operation_timeout)
        interval = min(POLL_INTERVAL, CONF.snapext.operation_timeout)
        event = libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2
        while True:
            with guest.watch_event(event) as wait_for_event:
                state = self._advance(guest, timer)
                if state is not CommitState.COMMITTING:
                    LOG.debug('The commit of %(overlay)s ends: %(state)s',
                              {'overlay': self._overlay,
                               'state': state.name.lower()},
                              instance=self._instance)
                    return state
                wait_for_event(interval)

    def _advance(self, guest: domain.Domain,
                 timer: jobs.StallTimer) -> CommitState:
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
            self._follow(guest, mirror, timer)
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
                timer: jobs.StallTimer) -> None:
        """Follow the commit of the topmost overlay, and pivot at its end."""
        job = mirror.get('job')
        if job != 'active-commit' or chain.path_of(mirror) != self._disk.path:
            self._fail(f'has the job \'{job}\', which is not the snapshot\'s')
        self._begun = True
        ready = mirror.get('ready')
        if ready == 'yes':
            if not self._ready:
                self._ready = True
                LOG.debug('The commit of %s is ready', self._overlay,
                          instance=self._instance)
            self._before_pivot()
            LOG.debug('Requesting the pivot from %(overlay)s to %(disk)s',
                      {'overlay': self._overlay, 'disk': self._disk.path},
                      instance=self._instance)
            guest.get_block_device(self._disk.target).abort_job(
                async_=True, pivot=True)
        info = guest.block_job_info(self._disk.target)
        self._check_progress(timer, info, ready)

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
        timer.progress((ready, done, total))
        if timer.expired:
            self._fail(f'has made no progress with its commit for '
                       f'{CONF.snapext.operation_timeout} seconds, at '
                       f'{done} of {total} bytes')

    def _begin(self, guest: domain.Domain,
               flags: int = libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE) -> None:
        if self._begun:
            self._fail('is still on the overlay, though its commit has '
                       'ended; the guest\'s log in /var/log/libvirt/qemu may '
                       'say why')
        # Without base and top libvirt would commit the images that it finds:
        # without our overlay, the instance's disk into its backing file.
        guest.commit_block(
            self._disk.target, self._disk.path, self._overlay, flags)
        self._begun = True
        LOG.debug('Started the commit of %(overlay)s into %(disk)s',
                  {'overlay': self._overlay, 'disk': self._disk.path},
                  instance=self._instance)

    def _fail(self, reason: str) -> ty.NoReturn:
        raise exception.CommitFailed(
            disk=self._disk.target, guest=self._instance.name, reason=reason)
