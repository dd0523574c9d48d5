# SPDX-License-Identifier: Apache-2.0
"""Tests of logic, with Nova's fixtures where something has to be faked."""

from nova import monkey_patch

# Before anything imports eventlet: it chooses native threads or eventlet, by
# OS_NOVA_DISABLE_EVENTLET_PATCHING.
monkey_patch.patch()
