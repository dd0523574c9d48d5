# SPDX-License-Identifier: Apache-2.0
"""Cancel a snapshot at once, no matter what it is waiting for."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import os
import threading
import time
import typing as ty

from oslo_utils import timeutils

from nova_snapext import compat

# Seconds between two looks at an event, in a green thread: little beside the
# 0.1 s for which a snapshot inside Ceph freezes the filesystems.
GREEN_INTERVAL = 0.01

# Seconds between two looks for a cancellation, while waiting for a semaphore.
ACQUIRE_INTERVAL = 1


def native_threading() -> ty.Any:
    """Return the threading module whose locks native threads can share.

    Under eventlet, the locks of the usual module are for green threads only.
    """
    eventlet = compat.get_eventlet()
    return (eventlet.patcher.original('threading') if eventlet
            else threading)


def wait_for(event: ty.Any, seconds: float) -> bool:
    """Wait for an event of native threads, also in a green thread.

    A green thread does not use eventlet's pool of native threads. When a
    service does not respond, Nova's own calls may occupy all of them, and
    filesystems would stay frozen until one is free.

    :returns: whether the event has happened
    """
    # Green threads run in the first native thread, which has this id.
    if (compat.concurrency_mode_threading() or
            threading.get_native_id() != os.getpid()):
        return bool(event.wait(seconds))
    watch = timeutils.StopWatch(seconds).start()
    while not event.is_set() and not watch.expired():
        time.sleep(GREEN_INTERVAL)
    return bool(event.is_set())


class CancelToken:
    """Cancelled once, by the first thread that finds a cause.

    A thread that is about to wait registers a callback that ends its wait, or
    calls :meth:`raise_if_cancelled` now and then, or waits with :meth:`wait`.
    The snapshot then fails with the cause, not with the errors of its
    interrupted parts.
    """

    def __init__(self) -> None:
        native = native_threading()
        self._lock = native.Lock()
        self._cancelled = native.Event()
        self._callbacks: list[Callable[[], object]] = []
        self._cause: Exception | None = None

    def cancel(self, cause: Exception) -> bool:
        """Cancel for this cause, unless there is a cause already.

        :returns: whether this is now the cause
        """
        with self._lock:
            if self._cause is not None:
                return False
            self._cause = cause
            self._cancelled.set()
            # A callback that fails does not keep the others from their call.
            with contextlib.ExitStack() as stack:
                for callback in self._callbacks:
                    stack.callback(callback)
            return True

    @contextlib.contextmanager
    def on_cancel(self, callback: Callable[[], object]) -> Iterator[None]:
        """Call a function on cancellation, or now if it has happened.

        After the context is left the function is no longer called, and the
        objects that it uses can be closed.

        :param callback: called in any thread; it must not wait for anything
        """
        with self._lock:
            self._callbacks.append(callback)
            if self._cause is not None:
                callback()
        try:
            yield
        finally:
            with self._lock:
                self._callbacks.remove(callback)

    def raise_if_cancelled(self) -> None:
        """Raise the cause, if there is one."""
        if self._cause is not None:
            raise self._cause

    def wait(self, seconds: float) -> None:
        """Wait, and stop waiting on cancellation.

        :raises Exception: the cause, if there is one
        """
        wait_for(self._cancelled, seconds)
        self.raise_if_cancelled()

    @contextlib.contextmanager
    def entered(self, semaphore: ty.Any) -> Iterator[None]:
        """Enter a semaphore, and stop waiting for it on cancellation.

        :param semaphore: of threading or eventlet, for the calling thread; or
            a context manager that never waits
        :raises Exception: the cause, if there is one
        """
        self.raise_if_cancelled()
        if not hasattr(semaphore, 'acquire'):
            with semaphore:
                yield
            return
        while not semaphore.acquire(timeout=ACQUIRE_INTERVAL):
            self.raise_if_cancelled()
        try:
            self.raise_if_cancelled()
            yield
        finally:
            semaphore.release()

    @contextlib.contextmanager
    def prefer_cause(self) -> Iterator[None]:
        """Raise the cause in place of an error that follows cancellation."""
        try:
            yield
        except Exception as error:
            if self._cause is None or error is self._cause:
                raise
            raise self._cause from error
