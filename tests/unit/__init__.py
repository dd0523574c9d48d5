# SPDX-License-Identifier: Apache-2.0
"""Tests of logic, with Nova's fixtures where something has to be faked."""

import os

from nova import monkey_patch

# Native threads, as nova-compute has by default; to be settled before anything
# imports eventlet.
os.environ.setdefault('OS_NOVA_DISABLE_EVENTLET_PATCHING', 'true')
monkey_patch.patch()
