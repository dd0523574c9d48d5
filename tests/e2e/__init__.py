# SPDX-License-Identifier: Apache-2.0
"""Tests on the small real cloud, through its public APIs."""

import os
import sys

sys.path.insert(0, os.path.join(
    os.path.dirname(__file__), '..', '..', 'tools'))
