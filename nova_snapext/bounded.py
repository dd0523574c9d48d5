# SPDX-License-Identifier: Apache-2.0
"""Calls that are not waited for longer than a number of seconds."""

from __future__ import annotations

from collections.abc import Callable
import sys
import threading
import traceback
import typing as ty

_R = ty.TypeVar('_R')

# Seconds to wait for Nova's answer about an instance. A message has no limit
# of its own while RabbitMQ is away.
NOVA_TIMEOUT = 10

# Whom the code of a module, or of a package, waits for.
PEERS = {'libvirt': 'libvirtd',
         'oslo_messaging': 'RabbitMQ or nova-conductor',
         'glanceclient': 'Glance or Keystone',
         'keystoneauth1': 'Glance or Keystone',
         'nova_snapext.hypervisor.ceph': 'Ceph',
         'oslo_privsep': 'the privileged helper',
         'subprocess': 'a program'}


class NoResponse(Exception):
    """A call takes too long. The text says who does not respond."""


def call(function: Callable[[], _R], seconds: float) -> _R:
    """Return what a function returns.

    It runs in a thread, as nothing can interrupt a call in C, such as
    libvirt's. If it hangs, its thread ends with the process.

    :param seconds: how long it is waited for
    :raises NoResponse: that was not long enough
    """
    results: list[_R] = []
    errors: list[BaseException] = []
    # Not Thread.join(), which does not end if the thread is the first to
    # import eventlet: that copies Python's module for threads, which takes
    # the thread for the main one.
    done = threading.Event()

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=run, daemon=True)
    try:
        thread.start()
        done.wait(seconds)
    except KeyboardInterrupt:
        # The caller can clean up only when it has ended.
        done.wait(seconds)
        raise
    if errors:
        raise errors[0]
    if not results:
        raise NoResponse(f'{_peer(thread)} did not respond for {seconds:g} '
                         f'seconds')
    return results[0]


def _peer(thread: threading.Thread) -> str:
    """Return whom a thread waits for, as far as its stack tells."""
    frame = sys._current_frames().get(thread.ident or 0)
    for caller, _line in traceback.walk_stack(frame) if frame else ():
        module = f'{caller.f_globals.get("__name__")}.'
        for name, peer in PEERS.items():
            if module.startswith(f'{name}.'):
                return peer
    return 'a file system, or a service'
