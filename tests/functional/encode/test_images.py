# SPDX-License-Identifier: Apache-2.0
"""Images of real disks, checked with QEMU and with Glance's inspector."""

import array
import hashlib
import itertools
import json
import os
import random
import threading
import tracemalloc

from devcloud import wait
import fixtures
from oslo_utils.imageutils import format_inspector
from oslotest import base

from nova_snapext import encode
from nova_snapext.encode import clusters
from nova_snapext.encode import codec
from nova_snapext.encode import streaming
from nova_snapext import exception
from nova_snapext import read
from nova_snapext.read import nbd
from tests.functional.read import servers
from tests.unit.encode import images

KIB = 1024
MIB = 1024 * KIB
TIB = 1024 * 1024 * MIB


def digest(chunks):
    result = hashlib.sha256()
    for chunk in chunks:
        result.update(chunk)
    return result.hexdigest()


def streaming_encoder(disk, chosen, buffer_size, factor=1.0):
    """Return an encoder with a wrong estimate of the image's size.

    :param factor: the estimate, divided by the true size
    """
    found = clusters.ClusterMap.of_disk(disk)
    estimate = streaming.estimate_size(disk, found, chosen)
    return images.encoder_of(disk, streaming.StreamingQcow2Image(
        disk, found, chosen, streaming.Estimate(array.array(
            'I', (int(factor * size) for size in estimate.sizes))),
        buffer_size,
        threads=0 if isinstance(chosen, codec.NoCompression) else 2))


def streaming_encoders(disk):
    """Return encoders with all codecs, and with tables at several offsets."""
    yield streaming_encoder(disk, codec.NoCompression(), 64 * MIB)
    yield streaming_encoder(disk, codec.NoCompression(), 1, factor=0.5)
    yield streaming_encoder(disk, codec.Zlib(1), 64 * MIB)
    yield streaming_encoder(disk, codec.Zstd(1), 1, factor=0.5)
    yield streaming_encoder(disk, codec.Zstd(1), 1, factor=1.5)


class EncodeTestCase(base.BaseTestCase):
    disk_format = 'qcow2'

    def setUp(self):
        super().setUp()
        self.directory = self.useFixture(fixtures.TempDir()).path
        self.disk_path = self.path('disk')

    def path(self, name):
        return os.path.join(self.directory, name)

    def create(self, size, *commands):
        servers.qemu_img('create', '-f', self.disk_format, self.disk_path,
                         str(size))
        if commands:
            servers.qemu_io(self.disk_path, *commands,
                            image_format=self.disk_format)

    def connect(self):
        server = self.useFixture(
            servers.qemu_nbd(self.disk_path, self.disk_format))
        disk = read.Disk(read.unix_uri(server.socket, 'vda'), timeout=60)
        disk.__enter__()
        self.addCleanup(disk.__exit__)
        return disk

    def write(self, encoder):
        """Write an image, and return its path."""
        path = self.path('image')
        with open(path, 'wb') as file:
            for chunk in encoder.stream():
                file.write(chunk)
        return path

    def virtual_size(self, path):
        return json.loads(servers.qemu_img(
            'info', '--output=json', path))['virtual-size']

    def assert_image(self, encoder):
        """Check that QEMU finds the disk in the image, and no errors."""
        path = self.write(encoder)
        self.assertEqual(os.path.getsize(path), encoder.size)
        if encoder.image_format == 'qcow2':
            servers.qemu_img('check', '-f', 'qcow2', path)
        servers.qemu_img('compare', '-f', self.disk_format,
                         '-F', encoder.image_format, self.disk_path, path)
        return path


class Disks:
    """Tests of each kind of disk."""

    def create_disk(self):
        raise NotImplementedError

    def encoders(self, disk):
        yield encode.RawEncoder(disk)
        yield images.plain_encoder(disk)
        yield from streaming_encoders(disk)

    def test_image_equals_the_disk(self):
        self.create_disk()
        for encoder in self.encoders(self.connect()):
            self.assert_image(encoder)

    def test_streams_are_identical(self):
        self.create_disk()
        for encoder in self.encoders(self.connect()):
            first = digest(encoder.stream())
            self.assertEqual(first, digest(encoder.stream()))

    def test_stream_is_complete_after_incomplete_streams(self):
        self.create_disk()
        for encoder in self.encoders(self.connect()):
            whole = digest(encoder.stream())
            for chunks in (1, 5, 30):
                incomplete = encoder.stream()
                list(itertools.islice(incomplete, chunks))
                # An interrupted upload closes its stream, or just drops it.
                if chunks > 1:
                    incomplete.close()
                self.assertEqual(whole, digest(encoder.stream()))


class EmptyDiskTest(Disks, EncodeTestCase):

    def create_disk(self):
        self.create(1024 * MIB)

    def test_qcow2_of_an_empty_disk_has_four_clusters(self):
        self.create_disk()
        self.assertEqual(4 * 64 * KIB,
                         images.plain_encoder(self.connect()).size)


class FullDiskTest(Disks, EncodeTestCase):
    disk_format = 'raw'

    def create_disk(self):
        with open(self.disk_path, 'wb') as file:
            file.write(os.urandom(32 * MIB))


class BackingChainTest(Disks, EncodeTestCase):

    def create_disk(self):
        base_path = self.path('base')
        servers.qemu_img('create', '-f', 'qcow2', base_path, '64M')
        servers.qemu_io(base_path, 'write -P 1 0 8M', 'write -P 2 60M 4M')
        middle_path = self.path('middle')
        servers.qemu_img('create', '-f', 'qcow2', '-F', 'qcow2', '-b',
                         base_path, middle_path)
        servers.qemu_io(middle_path, 'write -P 3 4k 4k', 'write -z 2M 1M')
        servers.qemu_img('create', '-f', 'qcow2', '-F', 'qcow2', '-b',
                         middle_path, self.disk_path, '96M')
        servers.qemu_io(self.disk_path, 'write -P 4 70M 100k',
                        'write -z 61M 128k')


class ZerosAndHolesTest(Disks, EncodeTestCase):

    def create_disk(self):
        self.create(64 * MIB, 'write -P 0 1M 8M', 'write -P 1 3M 4k',
                    'write -z 20M 4M', 'write -P 5 30M 4M',
                    'discard 31M 1M')

    def test_written_zeros_are_left_out_of_a_qcow2(self):
        self.create_disk()
        disk = self.connect()
        tables = 5 * 64 * KIB
        # 8 MiB are allocated with zeros in all but one cluster, and 4 MiB
        # with data, 1 MiB of it is discarded.
        encoder = streaming_encoder(disk, codec.NoCompression(), 64 * MIB)
        self.assertEqual(tables + 64 * KIB + 3 * MIB,
                         sum(map(len, encoder.stream())))
        self.assertEqual(tables + 11 * MIB, images.plain_encoder(disk).size)

    def test_raw_image_does_not_read_holes(self):
        self.create_disk()
        disk = self.connect()
        digest(encode.RawEncoder(disk).stream())
        self.assertEqual(11 * MIB, disk.bytes_read)


class SmallClustersTest(Disks, EncodeTestCase):
    """Extents that begin and end within clusters of the image."""

    def create_disk(self):
        servers.qemu_img('create', '-f', 'qcow2', '-o', 'cluster_size=512',
                         self.disk_path, '8M')
        servers.qemu_io(self.disk_path, *(
            f'write -P {number} {number * 131 * 512} {number * 512}'
            for number in range(1, 100)))


class UnalignedDiskTest(Disks, EncodeTestCase):
    """A disk whose last cluster is one sector."""

    def create_disk(self):
        self.create(3 * MIB + 512, 'write -P 1 3M 512', 'write -P 2 1M 4k')

    def test_image_has_the_size_of_the_disk(self):
        self.create_disk()
        for encoder in self.encoders(self.connect()):
            self.assertEqual(3 * MIB + 512,
                             self.virtual_size(self.write(encoder)))


class UnalignedSparseDiskTest(Disks, EncodeTestCase):

    def create_disk(self):
        self.create(1024 * MIB + 512, 'write -P 1 512M 1M',
                    'write -P 2 1023M 64k')


class SeveralTablesTest(Disks, EncodeTestCase):
    """Data on both sides of the end of an L2 table."""

    def create_disk(self):
        self.create(2048 * MIB, 'write -P 1 511M 2M', 'write -P 2 1535M 2M',
                    'write -P 3 0 64k', 'write -P 4 2047M 1M')

    def encoders(self, disk):
        # A raw image would take long, and add nothing.
        yield images.plain_encoder(disk)
        yield from streaming_encoders(disk)


class CompressibleDiskTest(Disks, EncodeTestCase):
    """Clusters of all kinds, in random order."""

    disk_format = 'raw'

    def create_disk(self):
        chance = random.Random(1)
        kinds = (lambda: bytes(64 * KIB),
                 lambda: chance.randbytes(64 * KIB),
                 lambda: chance.randbytes(30000).ljust(64 * KIB, b'z'),
                 lambda: b'a line of text\n' * 4369 + b'.')
        with open(self.disk_path, 'wb') as file:
            for _cluster in range(512):
                file.write(chance.choice(kinds)())

    def test_qemu_finds_the_compression_type(self):
        self.create_disk()
        for encoder in streaming_encoders(self.connect()):
            info = json.loads(servers.qemu_img(
                'info', '--output=json', self.write(encoder)))
            codec_used = encoder._image.codec
            self.assertEqual(
                ('1.1', ['zlib', 'zstd'][codec_used.compression_type], False),
                tuple(info['format-specific']['data'][key] for key in (
                    'compat', 'compression-type', 'extended-l2')))

    def test_disk_is_read_once_if_the_buffer_is_large_enough(self):
        self.create_disk()
        disk = self.connect()
        for chosen in (codec.NoCompression(), codec.Zstd(1)):
            before = disk.bytes_read
            for _chunk in streaming_encoder(
                    disk, chosen, 64 * MIB).stream():
                pass
            # The sample of 64 clusters is read in addition.
            self.assertEqual((512 + 64) * 64 * KIB, disk.bytes_read - before)


class SparseTebibyteTest(EncodeTestCase):

    def setUp(self):
        super().setUp()
        self.create(TIB, *(f'write -P {number % 255 + 1} {number * 4}G 64k'
                           for number in range(256)))

    def test_image_equals_the_disk(self):
        image = self.assert_image(images.plain_encoder(self.connect()))
        self.assertEqual(TIB, self.virtual_size(image))

    def test_stream_takes_the_memory_of_the_requests_in_flight(self):
        disk = self.connect()
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        digest(images.plain_encoder(disk).stream())
        self.assertLess(
            tracemalloc.get_traced_memory()[1], nbd.MAX_IN_FLIGHT + 2 * MIB)


class InspectionTest(EncodeTestCase):

    def encoders(self):
        self.create(64 * MIB, 'write -P 1 0 1M')
        disk = self.connect()
        yield images.plain_encoder(disk)
        yield from streaming_encoders(disk)

    def test_glance_inspector_detects_qcow2_in_the_stream(self):
        for encoder in self.encoders():
            inspector = format_inspector.QcowInspector()
            for chunk in encoder.stream():
                inspector.eat_chunk(bytes(chunk))
            self.assertTrue(inspector.format_match)
            inspector.safety_check()
            self.assertEqual(64 * MIB, inspector.virtual_size)

    def test_nova_inspector_detects_qcow2_in_the_file(self):
        for encoder in self.encoders():
            inspector = format_inspector.detect_file_format(
                self.write(encoder))
            self.assertEqual('qcow2', str(inspector))
            inspector.safety_check()


class AbortTest(EncodeTestCase):

    def setUp(self):
        super().setUp()
        # A read takes an hour.
        server = self.useFixture(servers.nbdkit(
            '--filter=delay', 'pattern', '64M', 'rdelay=3600'))
        self.disk = read.Disk(read.unix_uri(server.socket, ''), timeout=3600)
        self.disk.__enter__()
        self.addCleanup(self.disk.__exit__)
        self.encoder = encode.encoder('qcow2', self.disk)

    def test_abort_during_sampling_fails_the_encoder(self):
        errors = []
        thread = threading.Thread(target=lambda: errors.append(
            self.assertRaises(exception.DiskReadError,
                              self.encoder.__enter__)))
        thread.start()
        wait.until('a read in flight', lambda: self.disk._in_flight, 60)
        self.encoder.abort()
        thread.join()
        self.assertIn('aborted', str(errors[0]))

    def test_abort_before_entering_fails_the_encoder(self):
        self.encoder.abort()
        self.assertRaises(exception.DiskReadError, self.encoder.__enter__)
