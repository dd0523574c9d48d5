# SPDX-License-Identifier: Apache-2.0
"""Snapshots that a user takes in Horizon, in a real browser, on the cloud."""

import tests.e2e  # noqa: F401  This makes devcloud importable.
