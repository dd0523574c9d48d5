# SPDX-License-Identifier: Apache-2.0
"""Snapshots for Nova's libvirt driver, by the stages that one passes through.

plan, choose, freeze, read, encode, upload, release: one stage, one module or
package. ``driver`` is the order of them; release is the way out of freeze.
"""
