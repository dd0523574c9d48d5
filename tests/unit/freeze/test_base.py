# SPDX-License-Identifier: Apache-2.0

import os
import subprocess
import sys

from tests.unit import base

# In a process of its own: eventlet's patches are for good.
TIMES_OUT = """
from nova import monkey_patch
monkey_patch.patch(backend='{}')
from oslo_concurrency import processutils
from nova_snapext.freeze import base
try:
    processutils.execute('sleep', '60', timeout=0.1)
except base.FREEZE_ERRORS as error:
    print(type(error).__name__)
"""


class FreezeErrorsTest(base.TestCase):

    def test_a_program_that_takes_too_long_is_one_in_both_modes(self):
        environment = {name: value for name, value in os.environ.items()
                       if name != 'OS_NOVA_DISABLE_EVENTLET_PATCHING'}
        for backend in ('threading', 'eventlet'):
            printed = subprocess.run(
                [sys.executable, '-W', 'ignore', '-c',
                 TIMES_OUT.format(backend)], env=environment, check=True,
                capture_output=True, text=True).stdout
            self.assertEqual('TimeoutExpired\n', printed)
