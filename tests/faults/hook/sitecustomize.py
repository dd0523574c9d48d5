# SPDX-License-Identifier: Apache-2.0
"""Faults in a program that has this directory in its PYTHONPATH.

Python imports this module before all else. It wraps functions as soon as
their modules are imported, and imports none of them itself: Nova has to choose
its kind of threads before anything of Nova's is imported.

SNAPEXT_FAULTS is the directory by which it is told what to do. There are

functions
    the functions to wrap, a JSON list of 'module:qualified.name'
armed
    the fault to come, a JSON object: its `id`, `function`, `moment` (before,
    during or after it), `nth` (at which of the calls from now on), `action`
    (kill, raise or wait) and `delay`, the seconds from the beginning of a
    call to what happens during it. Looked at each time that one of the
    functions is called.
acted
    what `armed` is renamed to when the fault comes. One that waits does so
    until the file is gone.
reached
    where it exists, each moment is written here when it is first reached
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

# As they are before anything is wrapped.
from os import rename

PLACE = os.environ.get('SNAPEXT_FAULTS', '')
ARMED, ACTED, REACHED = (os.path.join(PLACE, name)
                         for name in ('armed', 'acted', 'reached'))

FAULT = 'A fault that a test has asked for'

# Seconds between two looks of one who waits.
LOOK = 0.05


class Faults:

    def __init__(self):
        self._lock = _thread.allocate_lock()
        self._calls = collections.Counter()
        self._reached = set()

    def reach(self, function, moment):
        """Do what is to be done at a moment of a function."""
        self._note(function, moment)
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
            rename(ARMED, ACTED)
        if moment == 'during':
            _thread.start_new_thread(_kill, (function, fault['delay']))
        else:
            ACTIONS[fault['action']](function)

    def _note(self, function, moment):
        try:
            file = os.open(REACHED, os.O_WRONLY | os.O_APPEND)
        except FileNotFoundError:
            return
        line = f'{function} {moment}\n'
        try:
            with self._lock:
                if os.fstat(file).st_size == 0:  # a new one
                    self._reached.clear()
                if line not in self._reached:
                    self._reached.add(line)
                    os.write(file, line.encode())
        finally:
            os.close(file)


def _kill(_function, delay=0.0):
    time.sleep(delay)
    os.kill(os.getpid(), signal.SIGKILL)


def _raise(function):
    module, _, _ = function.partition(':')
    if module == 'libvirt':
        raise sys.modules[module].libvirtError(FAULT)
    raise OSError(errno.EIO, FAULT)


def _wait(_function):
    while os.path.exists(ACTED):
        time.sleep(LOOK)


ACTIONS = {'kill': _kill, 'raise': _raise, 'wait': _wait}


def wrapped(function, name, faults):
    """Give a function with its moments."""
    @functools.wraps(function)
    def call(*args, **kwargs):
        faults.reach(name, 'before')
        faults.reach(name, 'during')
        result = function(*args, **kwargs)
        faults.reach(name, 'after')
        return result
    return call


def wrap(module, qualified_name, faults):
    """Wrap a function, or method, of a module."""
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


if PLACE:
    with open(os.path.join(PLACE, 'functions')) as listed:
        sys.meta_path.insert(0, Finder(json.load(listed)))
