# SPDX-License-Identifier: Apache-2.0
"""Periodic checks that cancel a running snapshot.

Each runs in a thread of its own, a green one under eventlet. The thread that
reads and uploads waits for other services. Under eventlet it is a native
thread, which can't reach Nova's database.

A check's thread ends with the snapshot. oslo.service's looping calls would
not do: each makes an executor that nobody shuts down, whose thread stays until
the garbage collector comes (oslo_service.backend._threading.loopingcall, 4.8).
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import threading
import typing as ty

from nova.compute import task_states
from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from oslo_log import log as logging
from oslo_utils import timeutils
from oslo_utils import units

from nova_snapext import cancel
from nova_snapext import compat
from nova_snapext import conf
from nova_snapext import exception
from nova_snapext import space

CONF = conf.CONF
LOG = logging.getLogger(__name__)

# Seconds between two checks that stay on this host.
FAST_INTERVAL = 1
# Seconds between two checks that call another service. On a small host all
# services share its cores.
SLOW_INTERVAL = 4

# Seconds that the end of a snapshot waits for a check that is just running.
# Most take less than one. A call to a service that is down takes up to
# [DEFAULT]rpc_response_timeout, and longer while RabbitMQ is down: the disk
# may still be frozen, and must not wait for that.
END_TIMEOUT = 5

# Nova's manager does not expect these states at the end of a snapshot.
DELETING = (task_states.DELETING, task_states.SOFT_DELETING)


class Check(abc.ABC):
    """One condition that a snapshot depends on."""

    @abc.abstractmethod
    def run(self) -> Exception | None:
        """Return the error that the snapshot ends with; None to go on.

        An exception means only that the check itself failed this time.
        """

    def close(self) -> None:  # noqa: B027
        """Interrupt a check that is still waiting. No other one follows."""

    def finish_late(self) -> None:  # noqa: B027
        """Clean up after a last run that the snapshot has not waited for.

        It is called in the check's thread, and must not raise an error.
        """


class _PeriodicCheck:

    def __init__(self, check: Check, interval: float,
                 token: cancel.CancelToken, instance: objects.Instance):
        self._check = check
        self._interval = interval
        self._token = token
        self._instance = instance
        self._works = True
        self._is_late = False
        self._ended = threading.Event()
        # A daemon thread: one that hangs must not keep nova-compute from
        # stopping.
        self._thread = threading.Thread(
            target=self._run, name=f'snapext-{self._name}', daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Let no further run begin, and interrupt the one in progress."""
        self._ended.set()
        self._check.close()

    def join(self, seconds: float) -> None:
        """Wait for the end of the thread, unless it hangs.

        A thread that hangs ends with its call, and without any effect.
        """
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._is_late = True
            LOG.warning('The snapshot does not wait any longer for its last '
                        '%(check)s, which has been waiting for a service for '
                        'more than %(seconds)d seconds. Its thread ends when '
                        'the service responds, or at the timeout of the '
                        'call. Check nova-conductor, RabbitMQ, Glance and '
                        'Keystone',
                        {'check': self._name, 'seconds': END_TIMEOUT},
                        instance=self._instance)

    def _run(self) -> None:
        pause = self._interval
        try:
            while not self._ended.wait(pause):
                with timeutils.StopWatch() as watch:
                    if self._has_cancelled():
                        return
                # The interval includes the run, but a slow service gets a
                # pause all the same.
                pause = max(self._interval - watch.elapsed(),
                            self._interval / 4)
        finally:
            if self._is_late:
                self._check.finish_late()

    def _has_cancelled(self) -> bool:
        """Run the check once, and return whether it ends the snapshot."""
        try:
            cause = self._check.run()
        except Exception as error:
            # A failed check must not end the snapshot.
            if self._works and not self._ended.is_set():
                LOG.warning('%(check)s fails while the snapshot runs: '
                            '%(error)s. The snapshot goes on, and the check '
                            'is repeated', {'check': self._name,
                                            'error': error},
                            instance=self._instance)
            # The token of the check's own connections may keep it.
            exception.free_frames(error)
            error.with_traceback(None)
            self._works = False
            return False
        if not self._works:
            LOG.debug('%s works again', self._name, instance=self._instance)
        self._works = True
        if cause is None or self._ended.is_set():
            return False
        if self._token.cancel(cause):
            LOG.info('Ending the snapshot: %s', cause,
                     instance=self._instance)
        return True

    @property
    def _name(self) -> str:
        return type(self._check).__name__


@contextlib.contextmanager
def run_periodically(
    intervals: Mapping[Check, float], token: cancel.CancelToken,
    instance: objects.Instance,
) -> Iterator[Callable[[], None]]:
    """Repeat checks inside the context, and cancel when one returns a cause.

    On exit, checks that hang are waited for at most END_TIMEOUT.

    :param intervals: seconds before the first run of a check, and between
        the beginnings of two runs
    :yields: a function that ends the checks, and does not wait: the exit
        from the context waits the less, the earlier it is called
    """
    running: list[_PeriodicCheck] = []

    def end() -> None:
        for periodic in running:
            periodic.end()

    try:
        for check, interval in intervals.items():
            periodic = _PeriodicCheck(check, interval, token, instance)
            periodic.start()
            # Only one that has started can be joined.
            running.append(periodic)
        yield end
    finally:
        end()
        with timeutils.StopWatch(END_TIMEOUT) as watch:
            for periodic in running:
                periodic.join(watch.leftover())


class ServiceStoppingCheck(Check):
    """Checks whether nova-compute is being stopped.

    Nova waits for work in progress then, but not as long as an upload takes.

    :param virtapi: the driver's
    """

    def __init__(self, instance: objects.Instance, virtapi: ty.Any):
        self._instance = instance
        self._stopping = compat.shutdown_event(virtapi)

    def run(self) -> exception.ServiceStopping | None:
        if self._stopping is None or not self._stopping.is_set():
            return None
        return exception.ServiceStopping(instance=self._instance.uuid)


def find_deletion(context: nova_context.RequestContext, uuid: str,
                  tasks: Collection[str] = DELETING,
                  ) -> nova_exception.NovaException | None:
    """Return an error that tells of the deletion of an instance.

    :param uuid: uuid of the instance
    :param tasks: task states that are a deletion
    :returns: None if it is not deleted, nor being deleted
    """
    try:
        # Not the snapshot's own object, which other threads change.
        found = objects.Instance.get_by_uuid(context, uuid, expected_attrs=[])
    except nova_exception.InstanceNotFound:
        # Not the conductor's error, whose text contains a traceback.
        return nova_exception.InstanceNotFound(instance_id=uuid)
    if found.task_state in tasks:
        return nova_exception.UnexpectedDeletingTaskStateError(
            instance_uuid=uuid,
            expected={'task_state': [task_states.IMAGE_UPLOADING]},
            actual={'task_state': found.task_state})
    return None


class InstanceDeletedCheck(Check):
    """Checks whether the instance is deleted, or being deleted."""

    def __init__(self, context: nova_context.RequestContext,
                 instance: objects.Instance):
        self._context = context
        self._uuid = instance.uuid

    def run(self) -> nova_exception.NovaException | None:
        return find_deletion(self._context, self._uuid)


class FreeSpaceCheck(Check):
    """Checks the free space for what a snapshot keeps on the host.

    :param paths: files or directories whose file systems fill while the disk
        is frozen
    :param interval: seconds between two runs
    """

    def __init__(self, instance: objects.Instance, paths: Iterable[str],
                 interval: float = FAST_INTERVAL):
        self._instance = instance
        self._interval = interval
        self._last: dict[str, tuple[int, float, float]] = {}
        self._paths = tuple(paths) if CONF.snapext.min_free_disk_mb else ()

    def run(self) -> exception.InsufficientSpace | None:
        """Compare the free space with the option, now and for two intervals.

        The frozen disk has to be released before the space is gone.

        :returns: the error, if there is too little space, or if there would
            be too little after two more intervals at the present rate
        """
        for path in self._paths:
            # In a native thread under eventlet: network storage may hang.
            left = compat.tpool_wrap(space.free_bytes)(path) - (
                CONF.snapext.min_free_disk_mb * units.Mi)
            shrinks = self._shrink_rate(path, left)
            if left - 2 * self._interval * shrinks < 0:
                return exception.InsufficientSpace(
                    instance=self._instance.uuid, path=path,
                    free=(left // units.Mi + CONF.snapext.min_free_disk_mb),
                    shrinks=int(shrinks // units.Mi),
                    min_free=CONF.snapext.min_free_disk_mb)
        return None

    def raise_if_short(self) -> None:
        """Check the space before the snapshot begins.

        :raises InsufficientSpace: there is too little
        """
        shortage = self.run()
        if shortage is not None:
            raise shortage

    def _shrink_rate(self, path: str, left: int) -> float:
        """Return how much the free space shrinks each second, in bytes.

        It is the lower one of the last two rates. Space that is allocated in
        one step, such as another guest's disk, is not a rate.
        """
        now = timeutils.now()
        before, when, last_rate = self._last.get(path, (left, now - 1, 0.0))
        rate = max(0, before - left) / max(now - when, 0.001)
        self._last[path] = left, now, rate
        return min(rate, last_rate)
