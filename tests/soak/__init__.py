# SPDX-License-Identifier: Apache-2.0
"""Snapshots and faults at random, for as long as one likes."""

import tests.e2e  # noqa: F401  It lets devcloud be imported.
