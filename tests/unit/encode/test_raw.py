# SPDX-License-Identifier: Apache-2.0

from oslotest import base

from nova_snapext import encode
from tests.unit.encode import fake_disk

KIB = 1024


class RawEncoderTest(base.BaseTestCase):

    def test_image_is_identical_to_the_disk(self):
        disk = fake_disk.FakeDisk(1000 * KIB, [(100 * KIB, 300 * KIB),
                                               (900 * KIB, 512)])
        self.assertEqual(
            bytes(100 * KIB) + b'x' * 300 * KIB + bytes(500 * KIB) +
            b'x' * 512 + bytes(100 * KIB - 512),
            b''.join(encode.RawEncoder(disk).stream()))

    def test_image_has_the_size_of_the_disk(self):
        disk = fake_disk.FakeDisk(1000 * KIB + 1, [])
        self.assertEqual(1000 * KIB + 1, encode.RawEncoder(disk).size)

    def test_chunk_has_at_most_256_kib(self):
        disk = fake_disk.FakeDisk(10000 * KIB, [(1, 5000 * KIB)])
        self.assertEqual(256 * KIB, max(
            len(chunk) for chunk in encode.RawEncoder(disk).stream()))

    def test_empty_disk_gives_an_empty_image(self):
        self.assertEqual(
            [], list(encode.RawEncoder(fake_disk.FakeDisk(0, [])).stream()))
