# SPDX-License-Identifier: Apache-2.0
"""Snapshots for Nova's libvirt driver, in stages with a package each.

The stages of a snapshot are plan, select, freeze, read, encode, upload and
release. ``snapshot.job`` calls them in this order. Leaving the context of the
freeze is the release.
"""
