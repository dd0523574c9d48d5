# SPDX-License-Identifier: Apache-2.0
"""The resources of a snapshot that a crash would leave behind, one file each.

Each class says how its resource is recorded in the journal, restored from it,
and released.
"""
