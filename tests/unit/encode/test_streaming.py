# SPDX-License-Identifier: Apache-2.0

import array
import functools
import random
import struct
import threading
import tracemalloc
import zlib

from oslotest import base
import zstandard

from nova_snapext import encode
from nova_snapext.encode import clusters
from nova_snapext.encode import codec
from nova_snapext.encode import keepalive
from nova_snapext.encode import streaming
from tests.unit.encode import fake_disk
from tests.unit.encode import images

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB
CLUSTER = 64 * KIB


class Mixed(fake_disk.FakeDisk):
    """Clusters of noise, of compressible data and of zeros, at random."""

    def read(self, ranges):
        for offset, length in ranges:
            yield offset, memoryview(b''.join(
                self.cluster(begin) for begin in range(
                    offset, offset + length, CLUSTER))[:length])

    @staticmethod
    @functools.cache
    def cluster(offset):
        chance = random.Random(offset)
        kind = chance.randrange(4)
        if kind == 0:
            return bytes(CLUSTER)
        noise = chance.randbytes(CLUSTER)
        return (noise if kind == 1 else
                noise[:chance.randrange(1, CLUSTER)].ljust(CLUSTER, b'z'))


CODECS = (codec.NoCompression(), codec.Zlib(1), codec.Zstd(1))


def streaming_encoder(disk, chosen=CODECS[-1], buffer_size=MIB, factor=1.0,
                      **options):
    """Return an encoder with a wrong estimate of the image's size.

    :param factor: the estimate, divided by the true size
    """
    found = clusters.ClusterMap.of_disk(disk)
    estimate = streaming.estimate_size(disk, found, chosen)
    return images.encoder_of(disk, streaming.StreamingQcow2Image(
        disk, found, chosen,
        streaming.Estimate(array.array('I', [int(factor * estimate.mean)])),
        buffer_size, threads=0 if chosen is CODECS[0] else 2, **options))


def inflated(compression_type, cluster):
    if compression_type:
        return zstandard.ZstdDecompressor().decompressobj().decompress(cluster)
    return zlib.decompressobj(-12).decompress(cluster)


class StreamingQcow2ImageTest(base.BaseTestCase):

    def mapped(self, image):
        """Parse an image by its specification, and return its clusters."""
        (l1_size, l1_table) = struct.unpack_from('>IQ', image, 36)
        [features] = struct.unpack_from('>Q', image, 72)
        [length] = struct.unpack_from('>I', image, 100)
        compression_type = image[104] if length > 104 else 0
        self.assertEqual(8 if compression_type else 0, features)
        found = {}
        for table, entry in enumerate(
                struct.unpack_from(f'>{l1_size}Q', image, l1_table)):
            if not entry:
                continue
            entries = struct.unpack_from('>8192Q', image,
                                         entry & ~(1 << 63))
            self.assertTrue(any(entries))
            for number, descriptor in enumerate(entries):
                if descriptor & 1 << 62:
                    offset = descriptor & (1 << 54) - 1
                    end = (offset // 512 + 1 +
                           (descriptor >> 54 & 0xff)) * 512
                    found[table * 8192 + number] = inflated(
                        compression_type, image[offset:end])
                elif descriptor:
                    offset = descriptor & ~(1 << 63)
                    found[table * 8192 + number] = image[
                        offset:offset + CLUSTER]
        return found

    def assert_contains(self, disk, image):
        self.assertEqual(
            {offset // CLUSTER: Mixed.cluster(offset)
             for offset in range(0, disk.size, CLUSTER)
             if any(Mixed.cluster(offset))}, self.mapped(image))

    def test_image_equals_the_disk_for_any_estimate(self):
        disk = Mixed(8 * MIB, [(0, 8 * MIB)])
        for chosen in CODECS:
            for buffer_size, factor in (
                    (1, 0), (1, 1), (1, 2), (MIB, 0.5), (MIB, 1),
                    (100 * MIB, 1)):
                encoder = streaming_encoder(disk, chosen, buffer_size, factor)
                self.assertIsNone(encoder.size)
                image = b''.join(encoder.stream())
                self.assertEqual(encoder.size, len(image))
                self.assert_contains(disk, image)
                self.assertEqual(image, b''.join(encoder.stream()))

    def test_good_estimate_adds_hardly_any_padding(self):
        disk = Mixed(8 * MIB, [(0, 8 * MIB)])
        limited = streaming_encoder(disk, buffer_size=2 * MIB)
        whole = sum(map(len, limited.stream()))
        unlimited = streaming_encoder(disk, buffer_size=100 * MIB)
        self.assertLess(whole - sum(map(len, unlimited.stream())), 4 * CLUSTER)

    def test_empty_disk_gives_four_clusters(self):
        encoder = streaming_encoder(fake_disk.FakeDisk(64 * MIB, []))
        self.assertEqual(4 * CLUSTER, sum(map(len, encoder.stream())))
        self.assertEqual(4 * CLUSTER, encoder.size)

    def test_disk_that_changes_during_the_stream_fails(self):
        disk = Mixed(8 * MIB, [(0, 8 * MIB)])
        encoder = streaming_encoder(disk, buffer_size=1, factor=0)
        whole = sum(map(len, encoder.stream()))
        before = disk.read
        reads = iter((before, lambda ranges: (
            (offset, memoryview(bytes(reversed(chunk))))
            for offset, chunk in before(ranges))))
        disk.read = lambda ranges: next(reads)(ranges)
        stream = encoder.stream()
        sent = 0

        def send():
            nonlocal sent
            for chunk in stream:
                sent += len(chunk)

        error = self.assertRaises(encode.EncodeError, send)
        self.assertIn('read twice', str(error))
        self.assertLess(sent, whole)

    def test_closed_stream_ends_its_threads(self):
        encoder = streaming_encoder(Mixed(8 * MIB, [(0, 8 * MIB)]))
        stream = encoder.stream()
        next(stream), next(stream)
        stream.close()
        self.assertEqual([], [
            thread.name for thread in threading.enumerate()
            if thread.name.startswith('snapext-compress')])

    def test_end_of_the_disk_is_padded_to_a_cluster(self):
        disk = fake_disk.FakeDisk(MIB + 512, [(MIB, 512)])
        found = self.mapped(b''.join(streaming_encoder(disk).stream()))
        self.assertEqual({16: b'x' * 512 + bytes(CLUSTER - 512)}, found)


class SlowDisk(Mixed):
    """Takes a second to read a cluster, and has zeros at the end."""

    now = 0

    def read(self, ranges):
        for offset, length in ranges:
            for begin in range(offset, offset + length, CLUSTER):
                self.now += 1
                yield begin, memoryview(self.cluster(begin))

    @staticmethod
    def cluster(offset):
        return (Mixed.cluster(offset) if offset < 8 * MIB else
                bytes(CLUSTER))


class SilenceTest(base.BaseTestCase):

    def stream(self, chosen, factor):
        """Return an image, and its longest time without a byte."""
        disk = SlowDisk(16 * MIB, [(0, 16 * MIB)])
        encoder = streaming_encoder(disk, chosen, MIB, factor,
                                    clock=lambda: disk.now)
        image, last, longest = b'', disk.now, 0
        for chunk in encoder.stream():
            image += chunk
            last, longest = disk.now, max(longest, disk.now - last)
        return image, longest

    def test_some_bytes_are_sent_every_few_seconds(self):
        for chosen in CODECS[:2]:
            # The disk is read after the tables' position, before it, or both.
            for factor in (0, 0.5, 1, 2):
                _image, longest = self.stream(chosen, factor)
                self.assertLess(longest, 4 * keepalive.MAX_SILENCE)

    def test_image_does_not_depend_on_the_time_that_it_takes(self):
        slow, _longest = self.stream(CODECS[0], 0.5)
        disk = SlowDisk(16 * MIB, [(0, 16 * MIB)])
        fast = streaming_encoder(disk, CODECS[0], MIB, 0.5, clock=lambda: 0)
        self.assertEqual(slow, b''.join(fast.stream()))


class EstimateTest(base.BaseTestCase):

    def estimate(self, disk):
        return streaming.estimate_size(
            disk, clusters.ClusterMap.of_disk(disk), codec.Zstd(1))

    def test_estimate_of_an_empty_disk_is_zero(self):
        estimate = self.estimate(fake_disk.FakeDisk(MIB, []))
        self.assertEqual((0, 0, 1, False), (
            estimate.mean, estimate.error, estimate.saving,
            estimate.has_zeros))

    def test_estimate_is_close_to_the_size_of_the_image(self):
        disk = Mixed(64 * MIB, [(0, 64 * MIB)])
        estimate = self.estimate(disk)
        encoder = streaming_encoder(disk, buffer_size=100 * MIB)
        size = sum(map(len, encoder.stream()))
        self.assertLess(abs(1024 * estimate.mean - size),
                        4 * 1024 * estimate.error)

    def test_error_for_one_run_is_far_smaller_than_for_scattered_data(self):
        sizes = [CLUSTER] * 100 + [0] * 900
        one_run = streaming.Estimate(array.array('I', sizes))
        random.Random(1).shuffle(sizes)
        scattered = streaming.Estimate(array.array('I', sizes))
        self.assertLess(5 * one_run.error, scattered.error)


class Noise(fake_disk.FakeDisk):
    """Contains parts of one piece of noise, to be read as fast as possible."""

    NOISE = random.Random(1).randbytes(2 * MIB)

    def content(self, offset, length):
        begin = offset // (256 * KIB) * 977 % MIB
        return memoryview(self.NOISE)[begin:begin + length]


class RandomSizes(codec.Codec):
    """Takes no time, and gives each cluster another size."""

    compression_type = 0

    def compress(self, cluster):
        return cluster[:1 + int.from_bytes(cluster[:2]) % 4096]


class MemoryTest(base.BaseTestCase):

    def peak(self, disk, chosen=CODECS[-1]):
        """Return the memory that a stream takes, in bytes."""
        tracemalloc.start()
        try:
            encoder = streaming_encoder(disk, chosen, buffer_size=MIB)
            for _chunk in encoder.stream():
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    def test_one_gib_scattered_over_one_tib_takes_less_than_16_mib(self):
        disk = fake_disk.FakeDisk(TIB, [
            (number * 64 * MIB, CLUSTER) for number in range(16384)])
        self.assertLess(self.peak(disk), 16 * MIB)

    def test_uncompressed_data_takes_next_to_no_memory(self):
        disk = Noise(TIB, [(0, 32 * GIB)])
        self.assertLess(self.peak(disk, CODECS[0]), 4 * MIB)

    def test_compressed_data_takes_2_bytes_for_each_cluster(self):
        whole = self.peak(Noise(TIB, [(0, 16 * GIB)]), RandomSizes(0))
        half = self.peak(Noise(TIB, [(0, 8 * GIB)]), RandomSizes(0))
        self.assertLess((whole - half) / (8 * GIB // CLUSTER), 2.5)
