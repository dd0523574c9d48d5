# SPDX-License-Identifier: Apache-2.0
"""Recovery from interrupted snapshots."""
