# SPDX-License-Identifier: Apache-2.0
"""Faults in the cloud's nova-compute, from outside."""

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
    """What makes each nova-compute that starts meanwhile open to faults.

    One that runs is stopped, at the beginning and at the end: whoever needs
    it next starts it.
    """

    def __init__(self, state):
        self._state = state
        # In Nova's own directory: no checkout has to be open to its user.
        self._place = state.nova / 'faults'
        self._armed = self._place / 'armed'
        self._acted = self._place / 'acted'

    def __enter__(self):
        services.nova_compute(self._state).stop(self._state)
        shutil.rmtree(self._place, ignore_errors=True)
        self._place.mkdir()
        shutil.copy2(HOOK, self._place)
        self._write('functions', points.FUNCTIONS)
        shutil.chown(self._place, config.USER, config.USER)
        self._variables = {'PYTHONPATH': str(self._place),
                           'SNAPEXT_FAULTS': str(self._place)}
        self._before = {name: os.environ.get(name) for name in self._variables}
        os.environ.update(self._variables)
        return self

    def __exit__(self, *exc_info):
        for name, value in self._before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
        services.nova_compute(self._state).stop(self._state)
        shutil.rmtree(self._place)

    def _write(self, name, content):
        shell.write(self._place / name, json.dumps(content))

    def arm(self, point, action='kill'):
        """Have something happen when a point is next reached, once.

        :param action: kill, raise or wait
        """
        self.disarm()
        self._write('armed', {
            'id': uuid.uuid4().hex, 'action': action,
            'function': point.function, 'moment': point.moment,
            'nth': point.nth, 'delay': point.delay})

    def disarm(self):
        """Let nothing happen, and whoever waits go on."""
        for file in (self._armed, self._acted):
            file.unlink(missing_ok=True)

    def has_acted(self):
        return self._acted.exists()

    def await_act(self, point, timeout):
        wait.until(f'the point "{point.name}"', self.has_acted, timeout)

    @contextlib.contextmanager
    def traced(self):
        """Give what is reached meanwhile, as (function, moment), in order."""
        reached = []
        file = self._place / 'reached'
        shell.write(file, '', mode=0o666)
        try:
            yield reached
            reached += [tuple(line.split(' '))
                        for line in file.read_text().splitlines()]
        finally:
            file.unlink()
