# SPDX-License-Identifier: Apache-2.0
"""Tests against a real libvirtd, QEMU, qemu-nbd and qemu-img."""

import os
import sys

from nova import monkey_patch

os.environ.setdefault('OS_NOVA_DISABLE_EVENTLET_PATCHING', 'true')
monkey_patch.patch()

# The private libvirtd is that of the development cloud.
sys.path.insert(0, os.path.join(
    os.path.dirname(__file__), '..', '..', 'tools'))
