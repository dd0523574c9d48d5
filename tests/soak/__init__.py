# SPDX-License-Identifier: Apache-2.0
"""Snapshots and faults at random, for as long as one likes."""
