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
from nova_snapext.encode import packed
from tests.unit.encode import fake_disk

KIB = 1024
MIB = 1024 * KIB
TIB = 1024 * 1024 * MIB
CLUSTER = 64 * KIB


class Mixed(fake_disk.FakeDisk):
    """Clusters of noise, of what shrinks, and of zeros, at random."""

    def read(self, runs):
        for offset, length in runs:
            yield offset, memoryview(b''.join(
                self.cluster(place) for place in range(
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


CODECS = (codec.Plain(), codec.Zlib(1), codec.Zstd(1))


def encoder(disk, chosen=CODECS[-1], store=MIB, times=1.0):
    """Give an encoder that expects an image so many times as large as is."""
    found = clusters.ClusterMap.of(disk)
    told = packed.estimate(disk, found, chosen)
    return encode.PackedQcow2Encoder(
        disk, found, chosen,
        packed.Estimate(array.array('I', [int(times * told.mean)])), store,
        threads=0 if chosen is CODECS[0] else 2)


def inflated(compression_type, cluster):
    if compression_type:
        return zstandard.ZstdDecompressor().decompressobj().decompress(cluster)
    return zlib.decompressobj(-12).decompress(cluster)


class PackedQcow2EncoderTest(base.BaseTestCase):

    def mapped(self, image):
        """Read an image as its specification says, and give its clusters."""
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

    def assert_holds(self, disk, image):
        self.assertEqual(
            {offset // CLUSTER: Mixed.cluster(offset)
             for offset in range(0, disk.size, CLUSTER)
             if any(Mixed.cluster(offset))}, self.mapped(image))

    def test_the_image_holds_what_the_disk_holds_whatever_was_expected(self):
        disk = Mixed(8 * MIB, [(0, 8 * MIB)])
        for chosen in CODECS:
            for store, times in ((1, 0), (1, 1), (1, 2), (MIB, 0.5),
                                 (MIB, 1), (100 * MIB, 1)):
                made = encoder(disk, chosen, store, times)
                self.assertIsNone(made.size)
                image = b''.join(made.stream())
                self.assertEqual(made.size, len(image))
                self.assert_holds(disk, image)
                self.assertEqual(image, b''.join(made.stream()))

    def test_a_good_estimate_takes_no_padding_and_no_second_compression(self):
        disk = Mixed(8 * MIB, [(0, 8 * MIB)])
        made = encoder(disk, store=2 * MIB)
        whole = sum(map(len, made.stream()))
        unlimited = encoder(disk, store=100 * MIB)
        self.assertLess(whole - sum(map(len, unlimited.stream())), 4 * CLUSTER)

    def test_a_disk_of_nothing(self):
        made = encoder(fake_disk.FakeDisk(64 * MIB, []))
        self.assertEqual(4 * CLUSTER, sum(map(len, made.stream())))
        self.assertEqual(4 * CLUSTER, made.size)

    def test_a_disk_that_becomes_another_meanwhile_is_an_error(self):
        disk = Mixed(8 * MIB, [(0, 8 * MIB)])
        made = encoder(disk, store=1, times=0)
        whole = sum(map(len, made.stream()))
        before = disk.read
        reads = iter((before, lambda runs: (
            (offset, memoryview(bytes(reversed(piece))))
            for offset, piece in before(runs))))
        disk.read = lambda runs: next(reads)(runs)
        stream = made.stream()
        sent = 0

        def send():
            nonlocal sent
            for piece in stream:
                sent += len(piece)

        error = self.assertRaises(encode.EncodeError, send)
        self.assertIn('read twice', str(error))
        self.assertLess(sent, whole)

    def test_threads_end_with_a_stream_that_is_given_up(self):
        made = encoder(Mixed(8 * MIB, [(0, 8 * MIB)]))
        stream = made.stream()
        next(stream), next(stream)
        stream.close()
        self.assertEqual([], [
            thread.name for thread in threading.enumerate()
            if thread.name.startswith('snapext-compress')])

    def test_the_disk_s_end_is_padded_to_a_cluster(self):
        disk = fake_disk.FakeDisk(MIB + 512, [(MIB, 512)])
        found = self.mapped(b''.join(encoder(disk).stream()))
        self.assertEqual({16: b'x' * 512 + bytes(CLUSTER - 512)}, found)


class EstimateTest(base.BaseTestCase):

    def estimate(self, disk):
        return packed.estimate(
            disk, clusters.ClusterMap.of(disk),
            codec.Zstd(1))

    def test_of_nothing_it_is_nothing(self):
        told = self.estimate(fake_disk.FakeDisk(MIB, []))
        self.assertEqual((0, 0, 1, False), (
            told.mean, told.error, told.saving, told.has_zeros))

    def test_it_is_about_what_comes_of_the_disk(self):
        disk = Mixed(64 * MIB, [(0, 64 * MIB)])
        told = self.estimate(disk)
        made = encoder(disk, store=100 * MIB)
        size = sum(map(len, made.stream()))
        self.assertLess(abs(1024 * told.mean - size),
                        4 * 1024 * told.error)

    def test_data_in_one_run_is_told_far_better_than_scattered(self):
        sizes = [CLUSTER] * 100 + [0] * 900
        one_run = packed.Estimate(array.array('I', sizes))
        random.Random(1).shuffle(sizes)
        scattered = packed.Estimate(array.array('I', sizes))
        self.assertLess(5 * one_run.error, scattered.error)


class MemoryTest(base.BaseTestCase):

    def test_one_gib_scattered_over_one_tib_takes_what_it_keeps(self):
        disk = fake_disk.FakeDisk(TIB, [
            (number * 64 * MIB, CLUSTER) for number in range(16384)])
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        made = encoder(disk, store=MIB)
        for _piece in made.stream():
            pass
        self.assertLess(tracemalloc.get_traced_memory()[1], 16 * MIB)
