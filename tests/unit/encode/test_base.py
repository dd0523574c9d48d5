# SPDX-License-Identifier: Apache-2.0

import itertools
import os

from oslo_utils import units
from oslotest import base as oslotest_base

from nova_snapext import encode
from nova_snapext.encode import codec
from tests.unit import base
from tests.unit.encode import fake_disk

MIB = units.Mi


class Promising(encode.Encoder):
    """Promises 10 bytes, and gives what it is told to."""

    image_format = 'raw'
    size = 10

    def __init__(self, pieces):
        super().__init__(fake_disk.FakeDisk(10, []))
        self.pieces = pieces

    def _pieces(self):
        yield from self.pieces


class EncoderTest(oslotest_base.BaseTestCase):

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
        for image_format in ('qcow2', 'raw'):
            self.assertEqual(image_format, encode.encoder(
                image_format, fake_disk.FakeDisk(10, [])).image_format)
        self.assertEqual('vmdk', encode.VmdkEncoder.image_format)
        self.assertEqual('vdi', encode.VdiEncoder.image_format)

    def test_all_that_snapshot_image_format_can_be_is_made(self):
        self.assertEqual({'qcow2', 'raw', 'vdi', 'vmdk'},
                         set(encode.FORMATS))


class ChoiceTest(base.TestCase):

    def chosen(self, image_format):
        return encode.encoder(image_format, fake_disk.FakeDisk(10, []))

    def test_what_can_be_streamed_is(self):
        self.assertIs(encode.Qcow2Encoder, type(self.chosen('qcow2')))
        self.assertIs(encode.RawEncoder, type(self.chosen('raw')))

    def chosen_for(self, content):
        disk = fake_disk.FakeDisk(64 * MIB, [(0, 64 * MIB)])
        disk.content = lambda offset, length: memoryview(content(length))
        return encode.encoder('qcow2', disk)

    def test_snapshot_compression_makes_a_compressed_qcow2(self):
        self.flags(snapshot_compression=True, group='libvirt')
        for compression_type in ('zlib', 'zstd'):
            self.flags(compression_type=compression_type, group='snapext')
            self.assertIs(encode.PackedQcow2Encoder,
                          type(self.chosen('qcow2')))

    def test_what_would_not_shrink_is_not_compressed(self):
        self.flags(snapshot_compression=True, group='libvirt')
        self.assertIs(encode.Qcow2Encoder, type(self.chosen_for(os.urandom)))

    def test_what_would_not_shrink_is_compressed_where_it_has_to_be(self):
        self.flags(snapshot_compression=True, group='libvirt')
        self.flags(compression_min_saving=0, group='snapext')
        self.assertIs(encode.PackedQcow2Encoder,
                      type(self.chosen_for(os.urandom)))

    def test_snapshot_compression_is_for_qcow2_alone(self):
        self.flags(snapshot_compression=True, group='libvirt')
        for image_format, encoder in (('raw', encode.RawEncoder),
                                      ('vdi', encode.VdiEncoder),
                                      ('vmdk', encode.VmdkEncoder)):
            self.assertIs(encoder, type(self.chosen(image_format)))

    def test_find_zeros_decides_what_a_qcow2_leaves_out(self):
        for value, content, packed in (
                ('always', bytes, True), ('auto', bytes, True),
                ('never', bytes, False), ('always', os.urandom, True),
                ('auto', os.urandom, False), ('never', os.urandom, False)):
            self.flags(find_zeros=value, group='snapext')
            self.assertIs(
                encode.PackedQcow2Encoder if packed else encode.Qcow2Encoder,
                type(self.chosen_for(content)))

    def test_zeros_are_left_out_of_what_is_not_compressed(self):
        # Of three clusters one is zeros, two are noise: of these, compression
        # would save nothing.
        self.flags(snapshot_compression=True, group='libvirt')
        numbers = itertools.count()
        encoder = self.chosen_for(lambda length: (
            os.urandom if next(numbers) % 3 else bytes)(length))
        self.assertIs(codec.Plain, type(encoder._codec))
        self.assertEqual(64 * 2 // 3, encoder.expected_size // MIB)
