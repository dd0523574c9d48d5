# SPDX-License-Identifier: Apache-2.0

import time
from unittest import mock

from oslotest import base

from nova_snapext.read import rate_limiter


class RateLimiterTest(base.BaseTestCase):

    def starts(self, *reads):
        """Reserve reads at given times, and return when they may start."""
        limiter = rate_limiter.RateLimiter()
        found = []
        for now, length, limit in reads:
            with mock.patch.object(time, 'monotonic', return_value=now):
                found.append(limiter.reserve(length, limit))
        return found

    def test_first_read_starts_now(self):
        self.assertEqual([5.0], self.starts((5.0, 100, 10)))

    def test_next_read_starts_when_the_previous_may_have_been_done(self):
        self.assertEqual([5.0, 15.0, 17.0],
                         self.starts((5.0, 100, 10), (5.0, 20, 10),
                                     (6.0, 1, 10)))

    def test_unused_time_is_not_made_up_for(self):
        self.assertEqual([5.0, 100.0, 101.0],
                         self.starts((5.0, 10, 10), (100.0, 10, 10),
                                     (100.0, 10, 10)))
