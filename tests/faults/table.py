# SPDX-License-Identifier: Apache-2.0
"""What came of faults, as the docs show it.

Each is written to the file that SNAPEXT_FAULTS_RESULTS names, as a line of
JSON. As a program this module renders such a file for the docs::

    python -m tests.faults.table RESULTS > doc/source/admin/faults.rst
"""

import json
import os


def record(result):
    path = os.environ.get('SNAPEXT_FAULTS_RESULTS')
    if path:
        with open(path, 'a') as results:
            results.write(f'{json.dumps(result)}\n')
