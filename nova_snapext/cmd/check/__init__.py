# SPDX-License-Identifier: Apache-2.0
"""``nova-snapext check``: what could keep a snapshot from working here.

One module for each topic. Each check yields items, and changes nothing.
"""
