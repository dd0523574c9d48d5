# SPDX-License-Identifier: Apache-2.0
"""One snapshot, in order. ``job`` calls the other modules."""
