# SPDX-License-Identifier: Apache-2.0
"""The worker thread of a snapshot, which runs with a lower CPU priority."""

from __future__ import annotations

from collections.abc import Callable
from concurrent import futures
import os
import typing as ty

from oslo_context import context

from nova_snapext import compat
from nova_snapext import conf

CONF = conf.CONF

_P = ty.ParamSpec('_P')
_R = ty.TypeVar('_R')


def run(function: Callable[_P, _R], *args: _P.args,
        **kwargs: _P.kwargs) -> _R:
    """Run a function that may block, and wait for its result.

    It runs in a thread of its own, with the priority of
    [snapext]worker_niceness. Threads and processes that it starts inherit
    that. Under eventlet it runs in a native thread of eventlet's pool. The
    priority of that thread stays as it is, because others use it too.
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
