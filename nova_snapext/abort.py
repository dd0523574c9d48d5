# SPDX-License-Identifier: Apache-2.0
"""Giving up what a snapshot waits for, whatever that is, at once."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import threading
import typing as ty

from nova import utils


def native_threading() -> ty.Any:
    """Give the threading module whose locks native threads can share.

    Under eventlet those of the usual one are for green threads alone.
    """
    eventlet = utils.get_eventlet()
    return (eventlet.patcher.original('threading') if eventlet
            else threading)


class Switch:
    """Tripped once, by whichever thread finds a reason to give up.

    Each thread that is about to wait for something leaves a callback that
    ends the waiting, or asks :meth:`check` now and then, or waits by
    :meth:`pause`. The snapshot then fails with the cause, and not with what
    its interrupted parts say.
    """

    def __init__(self) -> None:
        native = native_threading()
        self._lock = native.Lock()
        self._tripped = native.Event()
        self._callbacks: list[Callable[[], object]] = []
        self._cause: Exception | None = None

    def trip(self, cause: Exception) -> bool:
        """Give up, for this cause, unless there is one already.

        :returns: whether it is this one
        """
        with self._lock:
            if self._cause is not None:
                return False
            self._cause = cause
            self._tripped.set()
            # One that fails keeps none of the others from being called.
            with contextlib.ExitStack() as stack:
                for callback in self._callbacks:
                    stack.callback(callback)
            return True

    @contextlib.contextmanager
    def on_trip(self, callback: Callable[[], object]) -> Iterator[None]:
        """Have a function called when it trips, or now if it has tripped.

        Not any more after the context is left: what it refers to can be
        closed then.

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

    def check(self) -> None:
        """Raise the cause, if it has tripped."""
        if self._cause is not None:
            raise self._cause

    def pause(self, seconds: float) -> None:
        """Wait, in a native thread, but not longer than till it trips.

        :raises Exception: the cause, if it has tripped
        """
        self._tripped.wait(seconds)
        self.check()

    @contextlib.contextmanager
    def in_charge(self) -> Iterator[None]:
        """Raise the cause for whatever fails once it has tripped."""
        try:
            yield
        except Exception as error:
            if self._cause is None or error is self._cause:
                raise
            raise self._cause from error
