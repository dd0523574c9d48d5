# SPDX-License-Identifier: Apache-2.0
"""The tests that CI leaves out, because they take about a minute or more."""

import os
import unittest

only = unittest.skipUnless(
    os.environ.get('SNAPEXT_FULL'), 'only in full: tox -e full,e2efull')
