# SPDX-License-Identifier: Apache-2.0

from unittest import mock

from oslotest import base

from nova_snapext import encode
from nova_snapext import exception
from tests.unit.encode import fake_disk


class TenBytes(encode.Encoder):
    """Claims a size of 10 bytes, and returns the chunks of the test."""

    image_format = 'raw'
    size = 10

    def __init__(self, chunks):
        super().__init__(fake_disk.FakeDisk(10, []))
        self._chunks = chunks

    def chunks(self):
        yield from self._chunks


class EncoderTest(base.BaseTestCase):

    def test_stream_that_ends_early_fails(self):
        self.assertRaisesRegex(
            encode.EncodeError, 'its size is 10 bytes, but it has 9',
            list, TenBytes([b'12345', b'6789']).stream())

    def test_stream_that_is_too_long_fails_before_the_first_surplus_byte(
            self):
        stream = TenBytes([b'12345', b'67890', b'1']).stream()
        self.assertEqual([b'12345', b'67890'], [next(stream), next(stream)])
        self.assertRaises(encode.EncodeError, next, stream)

    def test_disk_that_was_lost_has_no_end_of_its_stream(self):
        # Without its end, Glance does not take an image for complete.
        image = TenBytes([b'12345', b'67890'])
        image.disk.check_frozen = mock.Mock(
            side_effect=exception.DiskReadError(disk='vda', reason='gone'))
        stream = image.stream()
        self.assertEqual([b'12345', b'67890'], [next(stream), next(stream)])
        self.assertRaises(exception.DiskReadError, next, stream)

    def test_encode_error_is_a_snapext_error_and_not_an_os_error(self):
        self.assertTrue(issubclass(encode.EncodeError,
                                   exception.SnapextError))
        self.assertFalse(issubclass(encode.EncodeError, OSError))


class FactoryTest(base.BaseTestCase):

    def encoder(self, image_format):
        """Return an encoder of a disk that can't be read."""
        disk = fake_disk.FakeDisk(10, [])
        disk.extents = disk.read = None
        return encode.encoder(image_format, disk)

    def test_format_selects_its_encoder_without_io(self):
        for image_format in encode.FORMATS:
            self.assertEqual(image_format,
                             self.encoder(image_format).image_format)

    def test_streamable_formats_are_streamed(self):
        self.assertIs(encode.Qcow2Encoder, type(self.encoder('qcow2')))
        self.assertIs(encode.RawEncoder, type(self.encoder('raw')))

    def test_other_formats_are_staged(self):
        self.assertIs(encode.VdiEncoder, type(self.encoder('vdi')))
        self.assertIs(encode.VmdkEncoder, type(self.encoder('vmdk')))

    def test_all_values_of_snapshot_image_format_have_an_encoder(self):
        self.assertEqual({'qcow2', 'raw', 'vdi', 'vmdk'},
                         set(encode.FORMATS))
