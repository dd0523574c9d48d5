# SPDX-License-Identifier: Apache-2.0
"""Images of real disks, judged by QEMU and by what Glance inspects with."""

import array
import hashlib
import itertools
import json
import os
import random
import tracemalloc

import fixtures
from oslo_utils.imageutils import format_inspector
from oslotest import base

from nova_snapext import encode
from nova_snapext.encode import clusters
from nova_snapext.encode import codec
from nova_snapext.encode import packed as estimates
from nova_snapext import read
from nova_snapext.read import nbd
from tests.functional.read import servers

KIB = 1024
MIB = 1024 * KIB
TIB = 1024 * 1024 * MIB


def digest(pieces):
    result = hashlib.sha256()
    for piece in pieces:
        result.update(piece)
    return result.hexdigest()


def plain(disk):
    return encode.Qcow2Encoder(disk, clusters.ClusterMap.of(disk))


def packed(disk, chosen, store, times=1.0):
    """Give an encoder that expects an image so many times as large as is."""
    found = clusters.ClusterMap.of(disk)
    told = estimates.estimate(disk, found, chosen)
    return encode.PackedQcow2Encoder(
        disk, found, chosen, estimates.Estimate(array.array(
            'I', (int(times * size) for size in told.sizes))),
        store, threads=0 if isinstance(chosen, codec.Plain) else 2)


def packing(disk):
    """Give the encoders of all codecs, with tables at all kinds of places."""
    yield packed(disk, codec.Plain(), store=64 * MIB)
    yield packed(disk, codec.Plain(), store=1, times=0.5)
    yield packed(disk, codec.Zlib(1), store=64 * MIB)
    yield packed(disk, codec.Zstd(1), store=1, times=0.5)
    yield packed(disk, codec.Zstd(1), store=1, times=1.5)


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
        """Write an image, and give its path."""
        path = self.path('image')
        with open(path, 'wb') as file:
            for piece in encoder.stream():
                file.write(piece)
        return path

    def virtual_size(self, path):
        return json.loads(servers.qemu_img(
            'info', '--output=json', path))['virtual-size']

    def assert_image(self, encoder):
        """QEMU finds the disk in the image, and nothing to complain of."""
        path = self.write(encoder)
        self.assertEqual(os.path.getsize(path), encoder.size)
        if encoder.image_format == 'qcow2':
            servers.qemu_img('check', '-f', 'qcow2', path)
        servers.qemu_img('compare', '-f', self.disk_format,
                         '-F', encoder.image_format, self.disk_path, path)
        return path


class Disks:
    """What each kind of disk has to pass."""

    def create_disk(self):
        raise NotImplementedError

    def encoders(self, disk):
        yield encode.RawEncoder(disk)
        yield plain(disk)
        yield from packing(disk)

    def test_the_image_holds_what_the_disk_holds(self):
        self.create_disk()
        for encoder in self.encoders(self.connect()):
            self.assert_image(encoder)

    def test_every_stream_is_the_same(self):
        self.create_disk()
        for encoder in self.encoders(self.connect()):
            first = digest(encoder.stream())
            self.assertEqual(first, digest(encoder.stream()))

    def test_a_stream_is_whole_after_others_were_given_up(self):
        self.create_disk()
        for encoder in self.encoders(self.connect()):
            whole = digest(encoder.stream())
            for pieces in (1, 5, 30):
                given_up = encoder.stream()
                list(itertools.islice(given_up, pieces))
                # As an upload does that was interrupted: some close it, and
                # some just forget it.
                if pieces > 1:
                    given_up.close()
                self.assertEqual(whole, digest(encoder.stream()))


class EmptyDiskTest(Disks, EncodeTestCase):

    def create_disk(self):
        self.create(1024 * MIB)

    def test_a_qcow2_of_nothing_is_four_clusters(self):
        self.create_disk()
        self.assertEqual(4 * 64 * KIB,
                         plain(self.connect()).size)


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

    def test_zeros_that_were_written_are_left_out_of_a_qcow2(self):
        self.create_disk()
        disk = self.connect()
        tables = 5 * 64 * KIB
        # Of data there are 8 MiB, with zeros in all but one cluster, and 4
        # MiB less the discarded one.
        self.assertEqual(tables + 64 * KIB + 3 * MIB, sum(map(len, packed(
            disk, codec.Plain(), store=64 * MIB).stream())))
        self.assertEqual(tables + 11 * MIB, plain(disk).size)

    def test_holes_are_not_read_for_a_raw_image(self):
        self.create_disk()
        disk = self.connect()
        digest(encode.RawEncoder(disk).stream())
        self.assertEqual(11 * MIB, disk.bytes_read)


class SmallClustersTest(Disks, EncodeTestCase):
    """Extents that begin and end within the image's clusters."""

    def create_disk(self):
        servers.qemu_img('create', '-f', 'qcow2', '-o', 'cluster_size=512',
                         self.disk_path, '8M')
        servers.qemu_io(self.disk_path, *(
            f'write -P {number} {number * 131 * 512} {number * 512}'
            for number in range(1, 100)))


class UnalignedDiskTest(Disks, EncodeTestCase):
    """The last sector is alone in its cluster."""

    def create_disk(self):
        self.create(3 * MIB + 512, 'write -P 1 3M 512', 'write -P 2 1M 4k')

    def test_the_image_has_the_size_of_the_disk(self):
        self.create_disk()
        for encoder in self.encoders(self.connect()):
            self.assertEqual(3 * MIB + 512,
                             self.virtual_size(self.write(encoder)))


class UnalignedSparseDiskTest(Disks, EncodeTestCase):

    def create_disk(self):
        self.create(1024 * MIB + 512, 'write -P 1 512M 1M',
                    'write -P 2 1023M 64k')


class SeveralTablesTest(Disks, EncodeTestCase):
    """Data on both sides of where one L2 table ends and another begins."""

    def create_disk(self):
        self.create(2048 * MIB, 'write -P 1 511M 2M', 'write -P 2 1535M 2M',
                    'write -P 3 0 64k', 'write -P 4 2047M 1M')

    def encoders(self, disk):
        # A raw image of it takes long, and tells nothing new.
        yield plain(disk)
        yield from packing(disk)


class CompressibleDiskTest(Disks, EncodeTestCase):
    """Clusters of all kinds, in an order without order."""

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

    def test_it_says_by_what_it_is_compressed(self):
        self.create_disk()
        for encoder in packing(self.connect()):
            made = json.loads(servers.qemu_img(
                'info', '--output=json', self.write(encoder)))
            self.assertEqual(
                ('1.1', ['zlib', 'zstd'][encoder._codec.compression_type],
                 False),
                tuple(made['format-specific']['data'][key] for key in (
                    'compat', 'compression-type', 'extended-l2')))

    def test_it_is_read_once_where_the_store_is_large_enough(self):
        self.create_disk()
        disk = self.connect()
        for chosen in (codec.Plain(), codec.Zstd(1)):
            before = disk.bytes_read
            for _piece in packed(disk, chosen, store=64 * MIB).stream():
                pass
            # And the sample.
            self.assertEqual((512 + 64) * 64 * KIB, disk.bytes_read - before)


class SparseTebibyteTest(EncodeTestCase):

    def setUp(self):
        super().setUp()
        self.create(TIB, *(f'write -P {number % 255 + 1} {number * 4}G 64k'
                           for number in range(256)))

    def test_the_image_holds_what_the_disk_holds(self):
        image = self.assert_image(plain(self.connect()))
        self.assertEqual(TIB, self.virtual_size(image))

    def test_it_takes_the_memory_of_the_requests_under_way(self):
        disk = self.connect()
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        digest(plain(disk).stream())
        self.assertLess(
            tracemalloc.get_traced_memory()[1],
            nbd.MOST_IN_FLIGHT * nbd.REQUEST_SIZE + 2 * MIB)


class InspectionTest(EncodeTestCase):

    def encoders(self):
        self.create(64 * MIB, 'write -P 1 0 1M')
        disk = self.connect()
        yield plain(disk)
        yield from packing(disk)

    def test_glance_takes_the_stream_for_a_qcow2_while_it_comes(self):
        for encoder in self.encoders():
            inspector = format_inspector.QcowInspector()
            for piece in encoder.stream():
                inspector.eat_chunk(bytes(piece))
            self.assertTrue(inspector.format_match)
            inspector.safety_check()
            self.assertEqual(64 * MIB, inspector.virtual_size)

    def test_nova_takes_it_for_a_qcow2(self):
        for encoder in self.encoders():
            inspector = format_inspector.detect_file_format(
                self.write(encoder))
            self.assertEqual('qcow2', str(inspector))
            inspector.safety_check()
