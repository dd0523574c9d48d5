# SPDX-License-Identifier: Apache-2.0
"""The worker thread of a snapshot, which runs with a lower CPU priority."""

from __future__ import annotations

from collections.abc import Callable
from concurrent import futures
import contextlib
import os
import threading
import typing as ty

from oslo_context import context

from nova_snapext import compat
from nova_snapext import conf

CONF = conf.CONF

# Native threads in eventlet's pool: eventlet/tpool.py.
EVENTLET_THREADS = int(os.environ.get('EVENTLET_THREADPOOL_SIZE', 20))

_P = ty.ParamSpec('_P')
_R = ty.TypeVar('_R')


def make_slots() -> ty.Any:
    """Return a context manager to enter before a disk is frozen.

    Under eventlet each call to libvirt needs a thread of the pool for a
    moment, also the one that thaws filesystems, and a worker keeps its thread
    for hours. So the workers get half of them.
    """
    if compat.concurrency_mode_threading():
        return contextlib.nullcontext()
    return threading.BoundedSemaphore(max(1, EVENTLET_THREADS // 2))


slots = make_slots()


def run(function: Callable[_P, _R], *args: _P.args,
        **kwargs: _P.kwargs) -> _R:
    """Run a function that may block, and wait for its result.

    It runs in a thread of its own, with the priority of
    [snapext]worker_niceness. Threads and processes that it starts inherit
    that. Under eventlet it runs in a native thread of eventlet's pool, inside
    :data:`slots`. The priority of that thread stays as it is, because others
    use it too.
    """
    if not compat.concurrency_mode_threading():
        return ty.cast(_R, compat.tpool_wrap(function)(*args, **kwargs))
    with futures.ThreadPoolExecutor(
            1, 'snapext', initializer=_begin,
            initargs=(context.get_current(),)) as thread:
        return thread.submit(function, *args, **kwargs).result()


def _begin(current: context.RequestContext | None) -> None:
    # Linux changes the calling thread only: nice(2), "C library/kernel
    # differences".
    os.nice(CONF.snapext.worker_niceness)
    if current is not None:
        # Log lines of this thread show the request.
        current.update_store()
