# SPDX-License-Identifier: Apache-2.0
"""Tests against a real libvirtd, QEMU, qemu-nbd and qemu-img."""

import os
import sys

from nova_snapext import compat

compat.patch_threads()

# The private libvirtd is that of the development cloud.
sys.path.insert(0, os.path.join(
    os.path.dirname(__file__), '..', '..', 'tools'))
