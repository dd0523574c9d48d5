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
        self.told = []

    def body(self, pieces, piece_size=4):
        return body.Body(
            (piece for piece in pieces), sum(map(len, pieces)), piece_size,
            self.digest, lambda sent, size: self.told.append((sent, size)))

    def read_all(self, data):
        return list(iter(lambda: data.read(1024 * 1024), b''))

    def test_no_read_gives_more_than_a_piece(self):
        self.assertEqual([b'abcd', b'e', b'fgh'],
                         self.read_all(self.body([b'abcde', b'fgh'])))

    def test_what_is_read_is_digested_once_and_in_order(self):
        content = [os.urandom(100_000) for _ in range(50)]
        self.read_all(self.body(content, piece_size=8192))
        self.assertEqual(hashlib.sha512(b''.join(content)).hexdigest(),
                         self.digest.hexdigest())

    def test_it_tells_how_much_was_read(self):
        self.read_all(self.body([b'abcde', b'fgh']))
        self.assertEqual([(4, 8), (5, 8), (8, 8), (8, 8)], self.told)

    def test_it_counts_as_something_to_read_before_it_is_read(self):
        # python-glanceclient reads nothing of a body that is false.
        self.assertTrue(self.body([b'abc']))

    def test_memory_views_become_bytes(self):
        # urllib3 before 2.0 sends nothing else.
        [piece] = self.read_all(self.body([memoryview(b'abc')]))
        self.assertIs(bytes, type(piece))

    def test_an_error_of_the_disk_comes_through(self):
        def stream():
            yield b'abc'
            raise ZeroDivisionError()

        data = body.Body(stream(), 10, 4, self.digest, lambda *_: None)
        data.read()
        self.assertRaises(ZeroDivisionError, data.read)
