# SPDX-License-Identifier: Apache-2.0
"""Tests on the small real cloud on Ceph: the strategy ``rbd``, and copies.

The cloud has to be one of `tools/cloud up --ceph`.
"""

import tests.e2e  # noqa: F401  This makes devcloud importable.
