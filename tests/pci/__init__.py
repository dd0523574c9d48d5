# SPDX-License-Identifier: Apache-2.0
"""Tests with PCI passthrough, on the machine that tools/pci-rig makes."""

# Nova has to be patched as for those tests, before anything of it is loaded.
import tests.functional  # noqa: F401
