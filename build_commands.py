# SPDX-License-Identifier: Apache-2.0
"""How the wheel is built; setup.cfg names this."""

import os

from setuptools.command import build_py


class BuildPy(build_py.build_py):
    """Add the file that registers nova_snapext.finder to the wheel.

    setuptools has no option for a file beside the packages. An editable
    install has none: it would stay when the checkout is removed.
    """

    command_name = 'build_py'
    START = 'nova-snapext.pth'

    def run(self):
        super().run()
        if not self.editable_mode:
            self.copy_file(self.START, self._target())

    def get_outputs(self, include_bytecode=1):
        return [*super().get_outputs(include_bytecode), self._target()]

    def _target(self):
        return os.path.join(self.build_lib, self.START)
