# SPDX-License-Identifier: Apache-2.0
"""All cells of the matrix in tests/e2e/matrix.py."""

import tests.e2e  # noqa: F401  This makes devcloud importable.
