# SPDX-License-Identifier: Apache-2.0

from oslotest import base

from nova_snapext import encode
from tests.unit.encode import fake_disk


class Promising(encode.Encoder):
    """Promises 10 bytes, and gives what it is told to."""

    image_format = 'raw'
    size = 10

    def __init__(self, pieces):
        super().__init__(fake_disk.FakeDisk(10, []))
        self.pieces = pieces

    def _pieces(self):
        yield from self.pieces


class EncoderTest(base.BaseTestCase):

    def test_a_stream_that_ends_early_is_an_error(self):
        self.assertRaisesRegex(
            encode.EncodeError, '10 bytes were announced, and 9 came',
            list, Promising([b'12345', b'6789']).stream())

    def test_a_stream_that_goes_on_is_an_error_before_a_byte_too_many(self):
        stream = Promising([b'12345', b'67890', b'1']).stream()
        self.assertEqual([b'12345', b'67890'], [next(stream), next(stream)])
        self.assertRaises(encode.EncodeError, next, stream)

    def test_an_error_of_the_encoder_is_no_network_error(self):
        self.assertFalse(issubclass(encode.EncodeError, OSError))

    def test_every_format_has_an_encoder_that_bears_its_name(self):
        for image_format, encoder in encode.FORMATS.items():
            self.assertEqual(image_format, encoder.image_format)

    def test_what_needs_seeking_has_no_encoder(self):
        self.assertNotIn('vmdk', encode.FORMATS)
