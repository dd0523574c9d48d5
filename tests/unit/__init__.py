# SPDX-License-Identifier: Apache-2.0
"""Tests of logic, with Nova's fixtures where something has to be faked."""

from nova_snapext import compat

# Those that this Nova's nova-compute has by default; to be settled before
# anything else of Nova is imported.
compat.patch_threads()
