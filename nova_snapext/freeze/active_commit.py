# SPDX-License-Identifier: Apache-2.0
"""libvirt's active commit, in the words of a snapshot."""

from __future__ import annotations

import enum
import time
import typing as ty

import libvirt
from lxml import etree
from nova import exception as nova_exception
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt import host as libvirt_host
from oslo_log import log as logging
from oslo_utils import timeutils

from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.freeze import chain
from nova_snapext.freeze import jobs
from nova_snapext import plan as planning

CONF = conf.CONF
LOG = logging.getLogger(__name__)

# libvirt tells of what is reached, not of progress, nor on a connection that
# its restart has closed: that is looked at every so many seconds.
LOOK = 5

# Between attempts to reach a libvirtd that is away, in seconds.
RECONNECT_PAUSE = 1


class _State(enum.Enum):
    COMMITTING = enum.auto()
    MERGED = enum.auto()
    ENDED = enum.auto()     # the guest's QEMU has: it was shut off, or crashed


class ActiveCommit:
    """The commit of an overlay into its disk, which ends with the guest on it.

    It is taken up where it is: a commit that is already running is waited
    for, by whomever it was begun.
    """

    def __init__(self, host: libvirt_host.Host, plan: planning.Plan,
                 overlay: str):
        self._host = host
        self._instance = plan.instance
        self._disk = plan.disk
        self._overlay = overlay
        self._qemu: int | None = None
        self._chain: list[str | None] = []
        self._begun = False

    def run(self) -> bool:
        """Commit, and let the guest go on on its disk.

        :returns: whether the guest does; or else it no longer runs
        :raises ReleaseFailed: the disk's chain is not what it should be; or
            the job fails, or makes no progress. The guest runs on.
        :raises InstanceNotFound: the guest's domain is gone
        :raises libvirtError: likewise; or libvirt does not do it
        """
        silence = _Silence(CONF.snapext.job_timeout)
        while True:
            try:
                guest = self._host.get_guest(self._instance)
                with jobs.event_awaited(
                        guest, libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2,
                ) as await_event:
                    state = self._advance(guest, silence)
                    if state is not _State.COMMITTING:
                        return state is _State.MERGED
                    await_event(min(LOOK, CONF.snapext.job_timeout))
            except (libvirt.libvirtError,
                    nova_exception.HypervisorUnavailable) as error:
                if not _unreachable(error) or silence.too_long:
                    raise
                # The job is QEMU's, and goes on.
                LOG.warning('libvirtd is away while the snapshot\'s overlay '
                            'is committed: %s', error,
                            instance=self._instance)
                time.sleep(RECONNECT_PAUSE)

    def _advance(self, guest: libvirt_guest.Guest,
                 silence: _Silence) -> _State:
        """Look where the commit is, and do what is next."""
        definition = guest.get_xml_desc()
        qemu = etree.fromstring(definition).get('id')
        if qemu is None or self._qemu not in (None, qemu):
            # Another one knows nothing of what this one was doing.
            return _State.ENDED
        disk = chain.find_disk(definition, self._disk.target)
        paths = chain.paths_of(disk)
        if self._qemu is not None and paths == self._chain[1:]:
            return _State.MERGED
        if paths[:2] != [self._overlay, self._disk.path]:
            self._fail(f'stands on {" <- ".join(map(str, paths))}')
        if self._qemu is not None and paths != self._chain:
            self._fail(f'was on {" <- ".join(map(str, self._chain))}, and is '
                       f'now on {" <- ".join(map(str, paths))}')
        self._qemu, self._chain = qemu, paths
        mirror = disk.find('mirror')
        if mirror is None:
            self._begin(guest)
            silence.heard('begun')
            return _State.COMMITTING
        if (mirror.get('job') != 'active-commit' or
                chain.path_of(mirror) != self._disk.path):
            self._fail(f'has the job \'{mirror.get("job")}\', which is not '
                       f'the snapshot\'s')
        self._begun = True
        ready = mirror.get('ready')
        if ready == 'yes':
            guest.get_block_device(self._disk.target).abort_job(
                async_=True, pivot=True)
        info = guest._domain.blockJobInfo(self._disk.target)
        silence.heard((ready, info.get('cur'), info.get('end')))
        if silence.too_long:
            self._fail(
                f'has made no progress with its commit for '
                f'{CONF.snapext.job_timeout} seconds, at {info.get("cur")} '
                f'of {info.get("end")} bytes')
        return _State.COMMITTING

    def _begin(self, guest: libvirt_guest.Guest) -> None:
        if self._begun:
            self._fail('is still on the overlay, though its commit has '
                       'ended; the guest\'s log in /var/log/libvirt/qemu may '
                       'say why')
        # Without base and top libvirt takes what it finds: where no overlay
        # is on top, the instance's disk would go into the image below it.
        guest._domain.blockCommit(
            self._disk.target, self._disk.path, self._overlay, 0,
            libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
        self._begun = True

    def _fail(self, what: str) -> ty.NoReturn:
        raise exception.ReleaseFailed(
            instance=self._instance.uuid,
            reason=f'its root disk {self._disk.target} {what}')


class _Silence:
    """For how long nothing new was heard."""

    def __init__(self, limit: float):
        self._limit = limit
        self._last: object = None
        self._watch = timeutils.StopWatch(limit).start()

    def heard(self, news: object) -> None:
        if news != self._last:
            self._last = news
            self._watch.restart()

    @property
    def too_long(self) -> bool:
        return self._watch.expired()


def _unreachable(error: Exception) -> bool:
    """Tell whether libvirtd can't be reached, as Nova's Host tells it."""
    return (not isinstance(error, libvirt.libvirtError) or
            error.get_error_domain() in (libvirt.VIR_FROM_REMOTE,
                                         libvirt.VIR_FROM_RPC))
