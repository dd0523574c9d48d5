# SPDX-License-Identifier: Apache-2.0
"""A model of snapshots, for tools/sizing. Needs nothing but Python."""
