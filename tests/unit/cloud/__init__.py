# SPDX-License-Identifier: Apache-2.0
"""Tests of the logic of the small cloud."""

import os
import sys

sys.path.insert(0, os.path.join(
    os.path.dirname(__file__), '..', '..', '..', 'tools'))
