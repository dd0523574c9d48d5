# SPDX-License-Identifier: Apache-2.0
"""As many snapshots at once as a small host has room for guests."""

from tests.e2e import test_concurrency


class TwentyInstancesTest(test_concurrency.ManyInstancesTest):

    GUESTS = 20
