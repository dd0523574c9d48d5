# SPDX-License-Identifier: Apache-2.0

import hashlib
import os

from nova_snapext.upload import body
from tests.unit import base


class BodyTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.digest = body.Digest('sha512')
        self.addCleanup(self.digest.close)
        self.progress = []

    def body(self, chunks, chunk_size=4):
        return body.Body(
            (chunk for chunk in chunks), sum(map(len, chunks)), chunk_size,
            self.digest, lambda sent, size: self.progress.append((sent, size)))

    def read_all(self, data):
        return list(iter(lambda: data.read(1024 * 1024), b''))

    def test_long_chunk_of_encoder_is_split(self):
        self.assertEqual([b'abcd', b'e', b'fgh'],
                         self.read_all(self.body([b'abcde', b'fgh'])))

    def test_short_chunks_of_encoder_are_joined(self):
        size = body.SENT_AT_ONCE + 1
        content = [os.urandom(size) for _ in range(5)]
        self.assertEqual(
            [b''.join(content[:4]), content[4]],
            self.read_all(self.body(content, chunk_size=4 * size)))

    def test_byte_that_keeps_the_connection_alive_is_sent_at_once(self):
        long = os.urandom(100_000)
        self.assertEqual(
            [b'a', b'b', long + b'c', b'd'],
            self.read_all(self.body([b'a', b'b', long, b'c', b'd'],
                                    chunk_size=200_000)))

    def test_read_data_is_hashed_once_and_in_order(self):
        content = [os.urandom(100_000) for _ in range(50)]
        self.read_all(self.body(content, chunk_size=8192))
        self.assertEqual(hashlib.sha512(b''.join(content)).hexdigest(),
                         self.digest.hexdigest())

    def test_each_read_reports_progress(self):
        self.read_all(self.body([b'abcde', b'fgh']))
        self.assertEqual([(4, 8), (5, 8), (8, 8), (8, 8)], self.progress)

    def test_unread_body_is_true(self):
        # python-glanceclient reads nothing of a body that is false.
        self.assertTrue(self.body([b'abc']))

    def test_memory_view_is_read_as_bytes(self):
        # urllib3 before 2.0 sends nothing else.
        [chunk] = self.read_all(self.body([memoryview(b'abc')]))
        self.assertIs(bytes, type(chunk))

    def test_disk_error_is_raised_by_read(self):
        def stream():
            yield b'abc'
            raise ZeroDivisionError()

        data = body.Body(stream(), 10, 4, self.digest, lambda *_: None)
        data.read()
        self.assertRaises(ZeroDivisionError, data.read)
