# SPDX-License-Identifier: Apache-2.0
"""Work on a snapshot's bytes, which may have to yield to all else."""

from __future__ import annotations

from collections.abc import Callable
from concurrent import futures
import os
import typing as ty

from nova import utils
from oslo_context import context

from nova_snapext import conf

CONF = conf.CONF

_P = ty.ParamSpec('_P')
_R = ty.TypeVar('_R')


def run(function: Callable[_P, _R], *args: _P.args,
        **kwargs: _P.kwargs) -> _R:
    """Run a function that may block, and wait for it.

    In a thread of its own, whose priority is lowered by [snapext]niceness;
    whatever threads and processes it starts inherit that. Where Nova runs
    under eventlet it is a native thread of eventlet's pool, whose priority
    stays: it is lent to others too.
    """
    if not utils.concurrency_mode_threading():
        return ty.cast(_R, utils.tpool_wrap(function)(*args, **kwargs))
    with futures.ThreadPoolExecutor(
            1, 'snapext', initializer=_begin,
            initargs=(context.get_current(),)) as thread:
        return thread.submit(function, *args, **kwargs).result()


def _begin(current: context.RequestContext | None) -> None:
    # Of the calling thread alone: nice(2), "C library/kernel differences".
    os.nice(CONF.snapext.niceness)
    if current is not None:
        # For the log.
        current.update_store()
