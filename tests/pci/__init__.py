# SPDX-License-Identifier: Apache-2.0
"""Tests with PCI passthrough, on the machine that tools/pci-rig makes."""

import logging

# Nova has to be patched as for those tests, before anything of it is loaded.
import tests.functional  # noqa: F401

# What Nova logs outside of any test is of its database, which is not there.
logging.getLogger().addHandler(logging.NullHandler())
