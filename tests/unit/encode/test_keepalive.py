# SPDX-License-Identifier: Apache-2.0

from oslotest import base

from nova_snapext.encode import keepalive


class KeepAliveTest(base.BaseTestCase):

    def sent(self, *work):
        """Return the chunks that are sent, each with its time.

        :param work: seconds that each step takes, and the chunk that it gives
        """
        self.now = 0

        def chunks():
            for seconds, chunk in work:
                self.now += seconds
                yield chunk

        return [(self.now, bytes(chunk)) for chunk in keepalive.keep_alive(
            chunks(), lambda: self.now)]

    def test_chunk_is_sent_when_the_next_one_is_there(self):
        self.assertEqual(
            [(2, b'ab'), (2, b'cd')],
            self.sent((0, b'ab'), (2, b'cd')))

    def test_byte_is_sent_after_five_seconds_without_a_chunk(self):
        self.assertEqual(
            [(5, b'a'), (10, b'b'), (12, b'cd'), (12, b'e')],
            self.sent((0, b'abcd'), *[(1, None)] * 11, (1, b'e')))

    def test_last_byte_of_a_chunk_is_kept_back(self):
        self.assertEqual(
            [(5, b'a'), (20, b'b'), (20, b'c')],
            self.sent((0, b'ab'), *[(5, None)] * 3, (5, b'c')))

    def test_stream_without_chunks_is_empty(self):
        self.assertEqual([], self.sent())
