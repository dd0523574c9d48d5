# SPDX-License-Identifier: Apache-2.0
"""Every strategy on every state, root disk and image format: all cells."""

import tests.e2e  # noqa: F401  It lets devcloud be imported.
