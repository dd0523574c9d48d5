# SPDX-License-Identifier: Apache-2.0

import hashlib
import itertools
import os
import re
import socket
import threading
import time
from unittest import mock

import fixtures
from oslotest import base

from nova_snapext import exception
from nova_snapext import read
from nova_snapext.read import nbd
from nova_snapext.read import rate_limiter
from tests.functional.read import servers

KIB = 1024
MIB = 1024 * KIB


class DiskTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.directory = self.useFixture(fixtures.TempDir()).path

    def path(self, name):
        return os.path.join(self.directory, name)

    def connect(self, server, export='vda', timeout=60, rate_limit=0):
        disk = read.Disk(read.unix_uri(server.socket, export), timeout,
                         rate_limit)
        disk.__enter__()
        self.addCleanup(disk.__exit__)
        return disk

    def random_disk(self, size):
        """Serve random content, and return the server and the content."""
        content = os.urandom(size)
        with open(self.path('random'), 'wb') as file:
            file.write(content)
        server = self.useFixture(
            servers.qemu_nbd(self.path('random'), 'raw'))
        return server, content


class ExtentsTest(DiskTestCase):

    def setUp(self):
        super().setUp()
        servers.qemu_img('create', '-f', 'qcow2', self.path('base'), '8M')
        servers.qemu_io(self.path('base'), 'write -P 1 0 2M',
                        'write -z 6M 1M')
        servers.qemu_img('create', '-f', 'qcow2', '-F', 'qcow2', '-b',
                         self.path('base'), self.path('overlay'), '16M')
        servers.qemu_io(self.path('overlay'), 'write -P 2 4M 64k',
                        'write -z 1M 64k', 'write -P 3 15M 1M')

    def test_extents_include_the_backing_chain(self):
        disk = self.connect(
            self.useFixture(servers.qemu_nbd(self.path('overlay'))))
        self.assertEqual(16 * MIB, disk.size)
        self.assertEqual([
            read.Extent(0, MIB, True),
            read.Extent(MIB, 64 * KIB, False),
            read.Extent(MIB + 64 * KIB, MIB - 64 * KIB, True),
            read.Extent(2 * MIB, 2 * MIB, False),
            read.Extent(4 * MIB, 64 * KIB, True),
            read.Extent(4 * MIB + 64 * KIB, 11 * MIB - 64 * KIB, False),
            read.Extent(15 * MIB, MIB, True)], list(disk.extents()))
        self.assertEqual(0, disk.bytes_read)

    def test_extents_do_not_depend_on_the_request_size(self):
        disk = self.connect(
            self.useFixture(servers.qemu_nbd(self.path('overlay'))))
        expected = list(disk.extents())
        self.useFixture(fixtures.MonkeyPatch(
            'nova_snapext.read.nbd.STATUS_STRIDE', 64 * KIB))
        self.assertEqual(expected, list(disk.extents()))

    def test_disk_without_base_allocation_is_all_data(self):
        disk = self.connect(self.useFixture(
            servers.nbdkit('--no-sr', 'memory', '1M')))
        self.assertEqual([read.Extent(0, MIB, True)], list(disk.extents()))

    def test_empty_disk_has_no_extents(self):
        with open(self.path('empty'), 'wb'):
            pass
        disk = self.connect(self.useFixture(
            servers.qemu_nbd(self.path('empty'), 'raw')))
        self.assertEqual([], list(disk.extents()))


class ReadTest(DiskTestCase):

    def test_data_read_equals_the_content_of_the_disk(self):
        server, content = self.random_disk(20 * MIB + 512)
        disk = self.connect(server)
        position = 0
        for offset, chunk in disk.read([(0, disk.size)]):
            self.assertEqual(position, offset)
            self.assertEqual(content[offset:offset + len(chunk)], chunk)
            position += len(chunk)
        self.assertEqual(len(content), position)
        self.assertEqual(len(content), disk.bytes_read)

    def test_ranges_of_any_length_are_read_in_order(self):
        server, content = self.random_disk(4 * MIB)
        disk = self.connect(server)
        ranges = [(512, 512), (64 * KIB, 64 * KIB), (200 * KIB, MIB),
                  (4 * MIB - 512, 512)]
        self.assertEqual(
            b''.join(content[offset:offset + length]
                     for offset, length in ranges),
            b''.join(chunk for _offset, chunk in disk.read(ranges)))

    def test_kept_chunks_do_not_change(self):
        server, content = self.random_disk(32 * MIB)
        disk = self.connect(server)
        held = list(disk.read([(0, disk.size)]))
        # Another pass does not change them either.
        for _chunk in disk.read([(0, disk.size)]):
            pass
        for offset, chunk in held:
            self.assertEqual(content[offset:offset + len(chunk)], chunk)

    def test_released_chunks_take_no_memory(self):
        server, _content = self.random_disk(64 * MIB)
        disk = self.connect(server)
        for _chunk in disk.read([(0, disk.size)]):
            pass
        self.assertLessEqual(len(disk._buffers), nbd.MAX_READS + 2)

    def test_disk_can_be_read_again_after_an_incomplete_read(self):
        server, content = self.random_disk(16 * MIB)
        disk = self.connect(server)
        for chunks in (0, 1, 20):
            incomplete = disk.read([(0, disk.size)])
            for _chunk in range(chunks):
                next(incomplete)
            incomplete.close()
            digest = hashlib.sha256()
            for _offset, chunk in disk.read([(0, disk.size)]):
                digest.update(chunk)
            self.assertEqual(hashlib.sha256(content).digest(),
                             digest.digest())

    def test_incomplete_read_counts_in_bytes_read(self):
        server, _content = self.random_disk(16 * MIB)
        disk = self.connect(server)
        incomplete = disk.read([(0, disk.size)])
        next(incomplete)
        incomplete.close()
        for _chunk in disk.read([(0, disk.size)]):
            pass
        self.assertEqual(nbd.MIN_IN_FLIGHT + 16 * MIB, disk.bytes_read)

    def test_slow_storage_gets_more_reads_in_flight(self):
        server = self.useFixture(servers.nbdkit(
            '--threads=64', '--filter=log', '--filter=delay', 'memory', '64M',
            'rdelay=20ms', f'logfile={self.path("log")}'))
        self.assertEqual(nbd.MAX_READS, self.most_in_flight(
            server, [(0, 64 * MIB)]))

    def most_in_flight(self, server, ranges):
        """Read parts of a disk, and return how many reads were under way.

        :param server: an nbdkit that logs to the path ``log``
        """
        for _chunk in self.connect(server).read(ranges):
            pass
        with open(self.path('log')) as log:
            events = re.findall(r' (\.\.\.)?Read id=', log.read())
        in_flight = list(itertools.accumulate(
            -1 if ended else 1 for ended in events))
        self.assertEqual(0, in_flight[-1])
        return max(in_flight)

    def test_small_reads_are_in_flight_up_to_their_maximum(self):
        server = self.useFixture(servers.nbdkit(
            '--threads=64', '--filter=log', '--filter=delay', 'memory', '64M',
            'rdelay=5ms', f'logfile={self.path("log")}'))
        self.assertEqual(nbd.MAX_READS, self.most_in_flight(
            server, [(offset, 65536) for offset in range(0, MIB * 8, 131072)]))

    def test_extents_can_be_requested_during_a_read(self):
        server, content = self.random_disk(16 * MIB)
        disk = self.connect(server)
        ranges = ((extent.offset, extent.length)
                  for _time in range(3) for extent in disk.extents())
        self.assertEqual(
            content * 3, b''.join(chunk for _offset, chunk
                                  in disk.read(ranges)))

    def test_export_name_with_reserved_characters_is_escaped(self):
        with open(self.path('raw'), 'wb') as file:
            file.truncate(MIB)
        server = self.useFixture(
            servers.qemu_nbd(self.path('raw'), 'raw', export='a/b?é &%'))
        self.assertEqual(MIB, self.connect(server, 'a/b?é &%').size)

    def test_disk_can_be_read_in_another_thread(self):
        server, content = self.random_disk(4 * MIB)
        disk = self.connect(server)
        chunks_read = []
        thread = threading.Thread(target=lambda: chunks_read.extend(
            chunk for _offset, chunk in disk.read([(0, disk.size)])))
        thread.start()
        thread.join()
        self.assertEqual(content, b''.join(chunks_read))


class FailingServerTest(DiskTestCase):

    def assert_fails(self, function, *arguments):
        return str(self.assertRaises(exception.DiskReadError, function,
                                     *arguments))

    def test_missing_socket_fails(self):
        disk = read.Disk(read.unix_uri(self.path('nbd'), 'vda'))
        self.assertIn('No such file', self.assert_fails(disk.__enter__))

    def test_unknown_export_fails(self):
        server, _content = self.random_disk(MIB)
        disk = read.Disk(read.unix_uri(server.socket, 'vdb'))
        self.assert_fails(disk.__enter__)

    def test_server_that_closes_the_connection_fails(self):
        server = self.useFixture(servers.Server('sh', '-c', 'exit'))
        disk = read.Disk(read.unix_uri(server.socket, 'vda'))
        self.assert_fails(disk.__enter__)

    def test_server_that_accepts_no_connection_fails(self):
        listener = socket.socket(socket.AF_UNIX)
        self.addCleanup(listener.close)
        listener.bind(self.path('nbd'))
        listener.listen()
        disk = read.Disk(read.unix_uri(self.path('nbd'), 'vda'), timeout=0.2)
        self.assertIn('did not respond', self.assert_fails(disk.__enter__))

    def test_server_that_stops_responding_fails_the_read(self):
        server, _content = self.random_disk(64 * MIB)
        disk = self.connect(server, timeout=0.5)
        reading = disk.read([(0, disk.size)])
        next(reading)
        server.freeze()
        self.assertIn('did not respond for 0.5 seconds',
                      self.assert_fails(list, reading))

    def test_server_that_stops_responding_fails_the_extents(self):
        server, _content = self.random_disk(MIB)
        disk = self.connect(server, timeout=0.2)
        server.freeze()
        self.assertIn('did not respond',
                      self.assert_fails(list, disk.extents()))

    def test_server_that_dies_fails_the_read(self):
        server, _content = self.random_disk(64 * MIB)
        disk = self.connect(server)
        reading = disk.read([(0, disk.size)])
        next(reading)
        server.kill()
        self.assert_fails(list, reading)
        self.assert_fails(list, disk.read([(0, MIB)]))
        self.assert_fails(list, disk.extents())

    def test_unreadable_part_of_the_disk_fails_the_read(self):
        disk = self.connect(self.useFixture(servers.nbdkit(
            'eval', 'get_size=echo 64M',
            'pread=if [ $4 -ge 33554432 ]; then echo EIO >&2; exit 1; fi; '
            'dd if=/dev/zero bs=$3 count=1 status=none')))
        reading = disk.read([(0, disk.size)])
        message = self.assert_fails(list, reading)
        self.assertIn('Input/output error', message)
        self.assertEqual(32 * MIB, disk.bytes_read)

    def test_error_of_the_server_fails_the_extents(self):
        disk = self.connect(self.useFixture(servers.nbdkit(
            '--filter=error', 'memory', '1M', 'error-extents=EIO',
            'error-extents-rate=100%')))
        self.assertIn('Input/output error',
                      self.assert_fails(list, disk.extents()))


class RateLimitTest(DiskTestCase):

    def setUp(self):
        super().setUp()
        self.server, self.content = self.random_disk(4 * MIB)
        self.limiter = self.useFixture(fixtures.MockPatchObject(
            rate_limiter, 'HOST_LIMITER', mock.create_autospec(
                rate_limiter.RateLimiter, instance=True))).mock

    def test_every_byte_is_reserved(self):
        start = time.monotonic()
        self.limiter.reserve.return_value = start
        disk = self.connect(self.server, rate_limit=1000)
        found = b''.join(
            bytes(chunk) for _offset, chunk in disk.read([(0, disk.size)]))
        self.assertEqual(self.content, found)
        self.assertEqual(
            [mock.call(nbd.REQUEST_SIZE, 1000)] * (
                4 * MIB // nbd.REQUEST_SIZE),
            self.limiter.reserve.call_args_list)

    def test_read_waits_for_its_reserved_time(self):
        start = time.monotonic() + 0.3
        self.limiter.reserve.return_value = start
        disk = self.connect(self.server, rate_limit=1000)
        next(disk.read([(0, 4096)]))
        self.assertGreaterEqual(time.monotonic(), start)

    def test_wait_for_the_rate_limit_is_aborted(self):
        waiting = threading.Event()

        def reserve(_length, _limit):
            waiting.set()
            return time.monotonic() + 3600

        self.limiter.reserve.side_effect = reserve
        disk = self.connect(self.server, rate_limit=1000)
        errors = []
        thread = threading.Thread(target=lambda: errors.append(
            self.assertRaises(exception.DiskReadError, list,
                              disk.read([(0, MIB)]))))
        thread.start()
        waiting.wait()
        disk.abort()
        thread.join()
        self.assertIn('aborted', str(errors[0]))

    def test_read_without_a_limit_reserves_nothing(self):
        disk = self.connect(self.server)
        for _chunk in disk.read([(0, disk.size)]):
            pass
        self.limiter.reserve.assert_not_called()


class AbortTest(DiskTestCase):

    def test_read_that_waits_indefinitely_is_aborted_by_another_thread(self):
        server, _content = self.random_disk(64 * MIB)
        disk = self.connect(server, timeout=3600)
        reading = disk.read([(0, disk.size)])
        next(reading)
        server.freeze()
        errors = []
        thread = threading.Thread(target=lambda: errors.append(
            self.assertRaises(exception.DiskReadError, list, reading)))
        thread.start()
        disk.abort()
        thread.join()
        self.assertIn('aborted', str(errors[0]))

    def test_aborted_disk_can_not_be_read(self):
        server, _content = self.random_disk(MIB)
        disk = self.connect(server)
        disk.abort()
        self.assertRaises(exception.DiskReadError,
                          list, disk.read([(0, MIB)]))
        self.assertRaises(exception.DiskReadError, list, disk.extents())
