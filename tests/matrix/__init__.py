# SPDX-License-Identifier: Apache-2.0
"""Every strategy on every state, root disk and image format: all cells."""
