# SPDX-License-Identifier: Apache-2.0

import itertools
import os
from unittest import mock

from oslo_utils import units

from nova_snapext import encode
from nova_snapext.encode import codec
from nova_snapext.encode import plain
from nova_snapext.encode import qcow2
from nova_snapext.encode import streaming
from tests.unit import base
from tests.unit.encode import fake_disk

MIB = units.Mi


class SelectImageTest(base.TestCase):

    def image_of(self, content):
        """Select the image of a disk.

        :param content: returns the content of a part with a certain length
        """
        disk = fake_disk.FakeDisk(64 * MIB, [(0, 64 * MIB)])
        disk.content = lambda offset, length: memoryview(content(length))
        return qcow2.select_image(disk)

    def test_disk_without_zeros_gets_a_plain_image(self):
        self.assertIs(plain.PlainQcow2Image, type(self.image_of(os.urandom)))

    def test_empty_disk_gets_a_plain_image(self):
        self.assertIs(plain.PlainQcow2Image, type(qcow2.select_image(
            fake_disk.FakeDisk(10, []))))

    def test_snapshot_compression_gives_a_compressed_image(self):
        self.flags(snapshot_compression=True, group='libvirt')
        for compression_type, chosen in codec.CODECS.items():
            self.flags(compression_type=compression_type, group='snapext')
            image = qcow2.select_image(fake_disk.FakeDisk(10, []))
            self.assertIs(streaming.StreamingQcow2Image, type(image))
            self.assertIs(chosen, type(image.codec))

    def test_buffer_leaves_memory_for_the_sizes_of_a_large_disk(self):
        self.flags(compression_min_saving_percent=0, group='snapext')
        for compressed, gib, expected in (
                (True, 1, 32 * MIB - 2 * 16384), (True, 512, 16 * MIB),
                (True, 1024, MIB), (True, 4096, MIB), (False, 1024, 32 * MIB)):
            self.flags(snapshot_compression=compressed, group='libvirt')
            self.flags(detect_zeroes='always', group='snapext')
            disk = fake_disk.FakeDisk(gib * units.Gi, [(0, gib * units.Gi)])
            with mock.patch.object(streaming, 'StreamingQcow2Image') as image:
                qcow2.select_image(disk)
            self.assertEqual(expected, image.call_args.args[4])

    def test_incompressible_disk_is_not_compressed(self):
        self.flags(snapshot_compression=True, group='libvirt')
        self.assertIs(plain.PlainQcow2Image, type(self.image_of(os.urandom)))

    def test_minimum_saving_of_0_compresses_an_incompressible_disk(self):
        self.flags(snapshot_compression=True, group='libvirt')
        self.flags(compression_min_saving_percent=0, group='snapext')
        self.assertIs(streaming.StreamingQcow2Image,
                      type(self.image_of(os.urandom)))

    def test_detect_zeroes_decides_whether_zeros_are_left_out(self):
        for value, content, streamed in (
                ('always', bytes, True), ('auto', bytes, True),
                ('never', bytes, False), ('always', os.urandom, True),
                ('auto', os.urandom, False), ('never', os.urandom, False)):
            self.flags(detect_zeroes=value, group='snapext')
            self.assertIs(
                streaming.StreamingQcow2Image if streamed
                else plain.PlainQcow2Image, type(self.image_of(content)))

    def test_zeros_among_incompressible_clusters_are_left_out(self):
        # Of three clusters one is zeros and two are noise: compression would
        # save nothing of the noise.
        self.flags(snapshot_compression=True, group='libvirt')
        numbers = itertools.count()
        image = self.image_of(lambda length: (
            os.urandom if next(numbers) % 3 else bytes)(length))
        self.assertIs(codec.NoCompression, type(image.codec))
        self.assertEqual(64 * 2 // 3, image.expected_size // MIB)


class CompressionOptionTest(base.TestCase):

    def test_snapshot_compression_applies_to_qcow2_only(self):
        self.flags(snapshot_compression=True, group='libvirt')
        for image_format, encoder in (('raw', encode.RawEncoder),
                                      ('vdi', encode.VdiEncoder),
                                      ('vmdk', encode.VmdkEncoder)):
            self.assertIs(encoder, type(encode.encoder(
                image_format, fake_disk.FakeDisk(10, []))))


class Qcow2EncoderTest(base.TestCase):

    def test_image_is_selected_on_entering(self):
        disk = fake_disk.FakeDisk(MIB, [(0, MIB)])
        encoder = encode.encoder('qcow2', disk)
        disk.content = lambda offset, length: memoryview(bytes(length))
        with encoder:
            # Zeros are left out, and the size is not known before the end.
            self.assertIsNone(encoder.size)
            self.assertGreater(encoder.expected_size, 0)
            self.assertEqual(4 * 64 * units.Ki,
                             sum(map(len, encoder.stream())))
            self.assertEqual(4 * 64 * units.Ki, encoder.size)
