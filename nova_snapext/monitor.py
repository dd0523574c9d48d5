# SPDX-License-Identifier: Apache-2.0
"""Looking, while a snapshot runs, for reasons to give it up.

In threads of their own: the one that reads and uploads waits for others, and
may be a native thread under eventlet, where Nova's database can't be reached
from.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable
from collections.abc import Iterator
import contextlib
import typing as ty

from nova.compute import task_states
from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from nova import utils
from oslo_log import log as logging
from oslo_service import loopingcall
from oslo_utils import timeutils
from oslo_utils import units

from nova_snapext import abort
from nova_snapext import conf
from nova_snapext import exception
from nova_snapext import space

CONF = conf.CONF
LOG = logging.getLogger(__name__)

# Seconds between two looks at what is at hand on the host, and at what takes
# a call to another service: on a small host all services share its cores.
CHEAP_INTERVAL, INTERVAL = 1, 4

# Nova's manager expects none of them at the end of a snapshot.
DELETING = (task_states.DELETING, task_states.SOFT_DELETING)


class Look(abc.ABC):
    """One thing that is looked at."""

    @abc.abstractmethod
    def __call__(self) -> Exception | None:
        """Look, and give the error by which to give the snapshot up, if any.

        What it raises only says that this look was in vain.
        """

    def close(self) -> None:  # noqa: B027
        """End what a look is waiting for: there will be no other."""


class _Repeated:

    def __init__(self, look: Look, interval: float, switch: abort.Switch,
                 instance: objects.Instance):
        self._look = look
        self._interval = interval
        self._switch = switch
        self._instance = instance
        self._works = True
        self.closing = False

    def __call__(self) -> float:
        """Look once.

        :returns: seconds until the next look
        """
        try:
            cause = self._look()
        except Exception as error:
            # What only watches a snapshot must not end it.
            if self._works and not self.closing:
                LOG.warning('While the snapshot runs, %(look)s fails: '
                            '%(error)s. It goes on, and is tried again',
                            {'look': type(self._look).__name__,
                             'error': error}, instance=self._instance)
            self._works = False
            return self._interval
        self._works = True
        if cause is not None:
            if self._switch.trip(cause):
                LOG.info('Giving the snapshot up: %s', cause,
                         instance=self._instance)
            raise loopingcall.LoopingCallDone()
        return self._interval


@contextlib.contextmanager
def watched(look: Look, interval: float, switch: abort.Switch,
            instance: objects.Instance) -> Iterator[None]:
    """Look again and again, and trip the switch when there is a reason.

    :param interval: seconds until the first look, and between two
    """
    repeated = _Repeated(look, interval, switch, instance)
    # A fixed interval would be warned of where a busy host makes a look take
    # longer.
    timer = loopingcall.DynamicLoopingCall(repeated)
    timer.start(initial_delay=interval)
    try:
        yield
    finally:
        repeated.closing = True
        timer.stop()
        look.close()
        timer.wait()


class ServiceLook(Look):
    """Looks whether nova-compute is being stopped.

    Nova waits for what is in progress then, but not for as long as an upload
    may take.

    :param virtapi: of the driver
    """

    def __init__(self, instance: objects.Instance, virtapi: ty.Any):
        self._instance = instance
        # Of Nova's Manager since 34; not there in what stands in for it.
        compute = getattr(virtapi, '_compute', None)
        self._stopping = getattr(compute, '_shutdown_in_progress', None)

    def __call__(self) -> exception.ServiceStopping | None:
        if self._stopping is None or not self._stopping.is_set():
            return None
        return exception.ServiceStopping(instance=self._instance.uuid)


class InstanceLook(Look):
    """Looks whether the instance has been deleted, or is being deleted."""

    def __init__(self, context: nova_context.RequestContext,
                 instance: objects.Instance):
        self._context = context
        self._uuid = instance.uuid

    def __call__(self) -> nova_exception.NovaException | None:
        try:
            # Another object than the snapshot's own, which others write to.
            found = objects.Instance.get_by_uuid(
                self._context, self._uuid, expected_attrs=[])
        except nova_exception.InstanceNotFound:
            # Not the conductor's, whose text has its traceback.
            return nova_exception.InstanceNotFound(instance_id=self._uuid)
        if found.task_state in DELETING:
            return nova_exception.UnexpectedDeletingTaskStateError(
                instance_uuid=self._uuid,
                expected={'task_state': [task_states.IMAGE_UPLOADING]},
                actual={'task_state': found.task_state})
        return None


class SpaceLook(Look):
    """Looks whether space for what a snapshot keeps on the host runs short.

    :param paths: of files or directories whose file systems fill while the
        disk is frozen
    """

    def __init__(self, instance: objects.Instance, paths: Iterable[str]):
        self._instance = instance
        self._last: dict[str, tuple[int, float, float]] = {}
        self._paths = tuple(paths) if CONF.snapext.space_headroom else ()

    def __call__(self) -> exception.NoSpaceLeft | None:
        """Look.

        :returns: the error by which to give up, if there is not enough, or
            would not be at the second next look, as it shrinks just now:
            what was frozen has to be released by then
        """
        for path in self._paths:
            # A native thread under eventlet, as network storage may hang.
            left = utils.tpool_wrap(space.free)(path) - (
                CONF.snapext.space_headroom * units.Mi)
            shrinks = self._shrinks(path, left)
            if left - 2 * CHEAP_INTERVAL * shrinks < 0:
                return exception.NoSpaceLeft(
                    instance=self._instance.uuid, path=path,
                    free=(left // units.Mi + CONF.snapext.space_headroom),
                    shrinks=int(shrinks // units.Mi),
                    headroom=CONF.snapext.space_headroom)
        return None

    def check(self) -> None:
        """Look, before there is anything to give up.

        :raises NoSpaceLeft: there is not enough
        """
        shortage = self()
        if shortage is not None:
            raise shortage

    def _shrinks(self, path: str, left: int) -> float:
        """Give the bytes that it shrinks by each second, if it goes on so.

        The lesser of the last two paces: what somebody allocates all at once,
        such as another guest's disk, is not a pace.
        """
        now = timeutils.now()
        before, when, last_pace = self._last.get(path, (left, now - 1, 0.0))
        pace = max(0, before - left) / max(now - when, 0.001)
        self._last[path] = left, now, pace
        return min(pace, last_pace)
