# SPDX-License-Identifier: Apache-2.0
"""Faults in nova-compute of the cloud, controlled from outside."""

import contextlib
import json
import os
import pathlib
import shutil
import uuid

from devcloud import config
from devcloud import services
from devcloud import shell
from devcloud import wait

from tests.faults import points

HOOK = pathlib.Path(__file__).parent / 'hook' / 'sitecustomize.py'


class Faults:
    """A context in which each nova-compute starts with the hook of faults.

    A running nova-compute is stopped at the beginning and at the end. The
    next user of it has to start it.
    """

    def __init__(self, state):
        self._state = state
        # In Nova's own directory: its user may not be able to read the
        # checkout.
        self._directory = state.nova / 'faults'
        self._armed = self._directory / 'armed'
        self._occurred = self._directory / 'occurred'

    def __enter__(self):
        services.nova_compute(self._state).stop(self._state)
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory.mkdir()
        shutil.copy2(HOOK, self._directory)
        self._write('functions', points.FUNCTIONS)
        shutil.chown(self._directory, config.USER, config.USER)
        self._variables = {'PYTHONPATH': str(self._directory),
                           'SNAPEXT_FAULTS': str(self._directory)}
        self._before = {name: os.environ.get(name) for name in self._variables}
        os.environ.update(self._variables)
        return self

    def __exit__(self, *exc_info):
        for name, value in self._before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
        services.nova_compute(self._state).stop(self._state)
        shutil.rmtree(self._directory)

    def _write(self, name, content):
        shell.write(self._directory / name, json.dumps(content))

    def arm(self, point, action='kill'):
        """Cause one fault when nova-compute next reaches a point.

        :param action: kill, raise or wait
        """
        self.disarm()
        self._write('armed', {
            'id': uuid.uuid4().hex, 'action': action,
            'function': point.function, 'moment': point.moment,
            'nth': point.nth, 'delay': point.delay})

    def disarm(self):
        """Cancel an armed fault, and end one that waits."""
        for file in (self._armed, self._occurred):
            file.unlink(missing_ok=True)

    def has_occurred(self):
        return self._occurred.exists()

    def await_fault(self, point, timeout):
        wait.until(f'the point "{point.name}"', self.has_occurred, timeout)

    @contextlib.contextmanager
    def traced(self):
        """Trace the points that nova-compute reaches inside the context.

        :yields: a list that has all (function, moment), in order, after the
            context
        """
        reached = []
        file = self._directory / 'reached'
        shell.write(file, '', mode=0o666)
        try:
            yield reached
            reached += [tuple(line.split(' '))
                        for line in file.read_text().splitlines()]
        finally:
            file.unlink()
