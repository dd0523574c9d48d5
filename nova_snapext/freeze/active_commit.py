# SPDX-License-Identifier: Apache-2.0
"""libvirt's active commit, in the words of a snapshot."""

from __future__ import annotations

from collections.abc import Callable
import enum
import itertools
import typing as ty

import libvirt
from lxml import etree
from nova.virt.libvirt import guest as libvirt_guest

from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.freeze import chain
from nova_snapext.freeze import jobs
from nova_snapext import plan as planning

CONF = conf.CONF

# libvirt has events for what is reached, and none for progress, which is
# looked at every so many seconds.
LOOK = 5


class State(enum.Enum):
    COMMITTING = enum.auto()
    MERGED = enum.auto()        # the guest goes on on its disk
    NOT_THERE = enum.auto()     # the guest was on its disk from the first
    ENDED = enum.auto()         # the guest has, or is another QEMU's by now


class ActiveCommit:
    """The commit of an overlay into its disk, which ends with the guest on it.

    It is taken up where it is found: one that runs already is waited for, by
    whomever it was begun.
    """

    def __init__(self, plan: planning.Plan, overlay: str,
                 before_pivot: Callable[[], None] = lambda: None):
        """Know it by the overlay that is committed.

        :param before_pivot: called when the guest is about to leave the
            overlay
        """
        self._instance = plan.instance
        self._disk = plan.disk
        self._overlay = overlay
        self._before_pivot = before_pivot
        self._qemu: str | None = None
        self._chain: list[str | None] = []
        self._begun = False

    def run(self, guest: libvirt_guest.Guest) -> State:
        """Commit, and let the guest go on on its disk.

        It may be run again, should libvirtd be restarted meanwhile.

        :raises CommitFailed: the chain is not what it should be, or the job
            has failed, or makes no progress. The guest runs on.
        :raises libvirtError: libvirt does not do it; or the guest has ended
        """
        silence = jobs.Silence(CONF.snapext.job_timeout)
        while True:
            with jobs.event_awaited(
                    guest, libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2,
            ) as await_event:
                state = self._advance(guest, silence)
                if state is not State.COMMITTING:
                    return state
                await_event(min(LOOK, CONF.snapext.job_timeout))

    def _advance(self, guest: libvirt_guest.Guest,
                 silence: jobs.Silence) -> State:
        """Look where the commit is, and do what is next."""
        definition = guest.get_xml_desc()
        qemu = etree.fromstring(definition).get('id')
        if qemu is None or self._qemu not in (None, qemu):
            return State.ENDED
        disk = chain.find_disk(definition, self._disk.target)
        state = self._look_at_chain(chain.paths_of(disk))
        if state is not State.COMMITTING:
            return state
        self._qemu = qemu
        mirror = disk.find('mirror')
        if self._chain[0] != self._overlay:
            self._commit_below(guest, silence)
        elif mirror is None:
            self._begin(guest)
        else:
            self._follow(guest, mirror, silence)
        return State.COMMITTING

    def _look_at_chain(self, paths: list[str | None]) -> State:
        if self._chain:
            # No other chain can come of a commit, nor this one of anything
            # else, while it is the same QEMU.
            if paths == [path for path in self._chain
                         if path != self._overlay]:
                return State.MERGED
            if paths != self._chain:
                self._fail(f'was on {chain.text(self._chain)}, and is now on '
                           f'{chain.text(paths)}')
        elif paths[0] == self._disk.path:
            return State.NOT_THERE
        elif not _follow_each_other(paths, self._overlay, self._disk.path):
            self._fail(f'is on {chain.text(paths)}')
        self._chain = paths
        return State.COMMITTING

    def _follow(self, guest: libvirt_guest.Guest, mirror: etree._Element,
                silence: jobs.Silence) -> None:
        job = mirror.get('job')
        if job != 'active-commit' or chain.path_of(mirror) != self._disk.path:
            self._fail(f'has the job \'{job}\', which is not the snapshot\'s')
        self._begun = True
        ready = mirror.get('ready')
        if ready == 'yes':
            self._before_pivot()
            guest.get_block_device(self._disk.target).abort_job(
                async_=True, pivot=True)
        info = guest._domain.blockJobInfo(self._disk.target)
        silence.heard((ready, info.get('cur'), info.get('end')))
        if silence.too_long:
            self._fail(f'has made no progress with its commit for '
                       f'{CONF.snapext.job_timeout} seconds, at '
                       f'{info.get("cur")} of {info.get("end")} bytes')

    def _commit_below(self, guest: libvirt_guest.Guest,
                      silence: jobs.Silence) -> None:
        """Commit it from below somebody else's overlay, which stays."""
        info = guest._domain.blockJobInfo(self._disk.target)
        if info:
            if info.get('type') != libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COMMIT:
                self._fail('has a job that is not the snapshot\'s')
            self._begun = True
            silence.heard((info.get('cur'), info.get('end')))
            if silence.too_long:
                self._fail(f'has made no progress with its commit for '
                           f'{CONF.snapext.job_timeout} seconds')
        else:
            self._begin(guest, flags=0)

    def _begin(self, guest: libvirt_guest.Guest,
               flags: int = libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE) -> None:
        if self._begun:
            self._fail('is still on the overlay, though its commit has '
                       'ended; the guest\'s log in /var/log/libvirt/qemu may '
                       'say why')
        # Without base and top libvirt takes what it finds: where no overlay
        # is on top, the instance's disk would go into the image below it.
        guest._domain.blockCommit(
            self._disk.target, self._disk.path, self._overlay, 0, flags)
        self._begun = True

    def _fail(self, what: str) -> ty.NoReturn:
        raise exception.CommitFailed(
            disk=self._disk.target, guest=self._instance.name, reason=what)


def _follow_each_other(paths: list[str | None], overlay: str,
                       disk: str) -> bool:
    return any(pair == (overlay, disk) for pair in itertools.pairwise(paths))
