# SPDX-License-Identifier: Apache-2.0

import collections
import hashlib

from oslotest import base

from nova_snapext.read import buffers


class BufferPoolTest(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.pool = buffers.BufferPool(4096)

    def test_view_has_requested_length(self):
        self.assertEqual(100, len(self.pool.take(100)))

    def test_buffer_without_views_is_reused(self):
        for _time in range(10):
            view = self.pool.take(4096)
            del view
        self.assertEqual(1, len(self.pool))

    def test_reused_buffer_keeps_its_size(self):
        for _time in range(10):
            self.assertEqual(4096, len(self.pool.take(4096)))

    def test_buffer_with_a_view_is_not_reused(self):
        held = self.pool.take(4096)
        held[:4] = b'mine'
        other = self.pool.take(4096)
        other[:4] = b'its '
        self.assertEqual(b'mine', bytes(held[:4]))
        self.assertEqual(2, len(self.pool))

    def test_slice_of_a_view_keeps_the_whole_buffer_in_use(self):
        view = self.pool.take(4096)
        part = memoryview(view[10:20]).toreadonly()
        view.release()
        self.pool.take(4096)[:] = bytes([1]) * 4096
        self.assertEqual(bytes(10), bytes(part))

    def test_buffer_that_was_hashed_and_copied_is_reused(self):
        view = self.pool.take(4096)
        digest = hashlib.sha512(view)
        copy = bytes(view)
        del view
        self.pool.take(4096)
        self.assertEqual(1, len(self.pool))
        self.assertEqual(hashlib.sha512(copy).digest(), digest.digest())

    def test_surplus_buffers_are_freed(self):
        held = [self.pool.take(4096) for _time in range(32)]
        self.assertEqual(32, len(self.pool))
        held.clear()
        for _time in range(32):
            self.pool.take(4096)
        self.assertLessEqual(len(self.pool), buffers.SPARE)

    def test_buffers_in_use_are_not_freed(self):
        held = collections.deque(self.pool.take(4096) for _time in range(32))
        for _time in range(64):
            held.popleft()
            held.append(self.pool.take(4096))
            self.assertEqual(32, len(self.pool))

    def test_small_views_share_a_buffer_but_no_byte_of_it(self):
        views = [self.pool.take(1024) for _time in range(8)]
        self.assertEqual(2, len(self.pool))
        for number, view in enumerate(views):
            view[:] = bytes([number]) * 1024
        self.assertEqual(list(range(8)), [view[0] for view in views])
        self.assertEqual([1] * 8, [len(set(view)) for view in views])

    def test_buffer_with_a_small_view_is_not_reused(self):
        held = self.pool.take(1024)
        held[:] = b'mine' * 256
        for _time in range(10):
            self.pool.take(4096)[:] = bytes(4096)
            self.pool.take(1024)[:] = bytes(1024)
        self.assertEqual(b'mine' * 256, bytes(held))
