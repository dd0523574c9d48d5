# SPDX-License-Identifier: Apache-2.0
"""Tests with PCI passthrough, on the machine of tools/pci-rig."""

import logging

# This patches Nova, as for the functional tests, before Nova is imported.
import tests.functional  # noqa: F401

# Outside of tests, Nova logs only that its database does not exist.
logging.getLogger().addHandler(logging.NullHandler())
