# SPDX-License-Identifier: Apache-2.0
"""Tests against a real Ceph cluster of one node."""
