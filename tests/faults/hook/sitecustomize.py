# SPDX-License-Identifier: Apache-2.0
"""Causes faults in a program that has this directory in its PYTHONPATH.

Python imports this module before all others. It wraps functions as soon as
their modules are imported, and imports none of these modules itself: Nova has
to select its kind of threads before any module of Nova is imported.

A wrapper replaces a function in its module or class. A module that binds a
function at import ("from x import y") may still call the original.

SNAPEXT_FAULTS is the directory of the files that control this module:

functions
    the functions to wrap, a JSON list of 'module:qualified.name'
armed
    the next fault, a JSON object: `id`, `function`, `moment` (before, during
    or after a call), `nth` (number of the call, counted from now on),
    `action` (kill, raise or wait) and `delay` (seconds from the start of a
    call, for a kill during it). Each call of a wrapped function reads it.
occurred
    the new name of `armed` when the fault occurs. A fault that waits ends
    when this file is removed.
reached
    if it exists, each moment is written here when it is first reached
"""

import _thread
import collections
import errno
import functools
import importlib.machinery
import json
import os
import signal
import sys
import time

# The originals, whether they are wrapped later, or replaced by eventlet, or
# not.
from _thread import start_new_thread
from os import rename
from time import sleep

DIRECTORY = os.environ.get('SNAPEXT_FAULTS', '')
ARMED, OCCURRED, REACHED = (os.path.join(DIRECTORY, name)
                            for name in ('armed', 'occurred', 'reached'))

FAULT = 'A fault that a test has requested'

# Seconds between two checks whether a fault that waits has ended.
POLL_INTERVAL = 0.05


class Faults:

    def __init__(self):
        self._lock = _thread.allocate_lock()
        self._calls = collections.Counter()
        self._reached = set()

    def reach(self, function, moment):
        """Cause the armed fault, if it belongs to this moment of a call."""
        self._record(function, moment)
        try:
            with open(ARMED) as file:
                fault = json.load(file)
        except FileNotFoundError:
            return
        if (fault['function'], fault['moment']) != (function, moment):
            return
        with self._lock:
            self._calls[fault['id']] += 1
            if self._calls[fault['id']] != fault['nth']:
                return
            rename(ARMED, OCCURRED)
        if moment == 'during':
            start_new_thread(_kill, (function, fault['delay']))
        else:
            ACTIONS[fault['action']](function)

    def _record(self, function, moment):
        try:
            file = os.open(REACHED, os.O_WRONLY | os.O_APPEND)
        except FileNotFoundError:
            return
        line = f'{function} {moment}\n'
        try:
            with self._lock:
                if os.fstat(file).st_size == 0:  # a new file
                    self._reached.clear()
                if line not in self._reached:
                    self._reached.add(line)
                    os.write(file, line.encode())
        finally:
            os.close(file)


def _kill(_function, delay=0.0):
    sleep(delay)
    os.kill(os.getpid(), signal.SIGKILL)


def _raise(function):
    module, _, _ = function.partition(':')
    if module == 'libvirt':
        raise sys.modules[module].libvirtError(FAULT)
    raise OSError(errno.EIO, FAULT)


def _wait(_function):
    while os.path.exists(OCCURRED):
        time.sleep(POLL_INTERVAL)


ACTIONS = {'kill': _kill, 'raise': _raise, 'wait': _wait}


def wrapped(function, name, faults):
    """Return a function that reaches the moments of its calls."""
    @functools.wraps(function)
    def call(*args, **kwargs):
        faults.reach(name, 'before')
        faults.reach(name, 'during')
        result = function(*args, **kwargs)
        faults.reach(name, 'after')
        return result
    return call


def wrap(module, qualified_name, faults):
    """Wrap a function or method of a module."""
    *outer, name = qualified_name.split('.')
    owner = functools.reduce(getattr, outer, module)
    found = vars(owner)[name]
    full_name = f'{module.__name__}:{qualified_name}'
    if isinstance(found, classmethod | staticmethod):
        found = type(found)(wrapped(found.__func__, full_name, faults))
    else:
        found = wrapped(found, full_name, faults)
    setattr(owner, name, found)


class Finder:
    """Finds modules as Python does, and wraps their functions."""

    def __init__(self, functions):
        self._faults = Faults()
        self._modules = {}
        for function in functions:
            module, _, name = function.partition(':')
            self._modules.setdefault(module, []).append(name)
        for module in self._modules.keys() & sys.modules.keys():
            self._wrap(sys.modules[module])

    def _wrap(self, module):
        for function in self._modules[module.__name__]:
            wrap(module, function, self._faults)

    def find_spec(self, name, path=None, target=None):
        if name not in self._modules:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None:
            exec_module = spec.loader.exec_module

            def exec_and_wrap(module):
                exec_module(module)
                self._wrap(module)

            spec.loader.exec_module = exec_and_wrap
        return spec


if DIRECTORY:
    with open(os.path.join(DIRECTORY, 'functions')) as listed:
        sys.meta_path.insert(0, Finder(json.load(listed)))
