# SPDX-License-Identifier: Apache-2.0
"""Random snapshots and faults, for SNAPEXT_SOAK_SECONDS seconds."""

import tests.e2e  # noqa: F401  This makes devcloud importable.
