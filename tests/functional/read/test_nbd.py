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
from nova_snapext.read import pace
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
        """Serve and return random content."""
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

    def test_extents_see_through_the_backing_chain(self):
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

    def test_extents_are_the_same_in_whatever_strides_they_are_asked_for(
            self):
        disk = self.connect(
            self.useFixture(servers.qemu_nbd(self.path('overlay'))))
        expected = list(disk.extents())
        self.useFixture(fixtures.MonkeyPatch(
            'nova_snapext.read.nbd.STATUS_STRIDE', 64 * KIB))
        self.assertEqual(expected, list(disk.extents()))

    def test_without_base_allocation_all_is_data(self):
        disk = self.connect(self.useFixture(
            servers.nbdkit('--no-sr', 'memory', '1M')))
        self.assertEqual([read.Extent(0, MIB, True)], list(disk.extents()))

    def test_a_disk_of_no_bytes_has_no_extents(self):
        with open(self.path('empty'), 'wb'):
            pass
        disk = self.connect(self.useFixture(
            servers.qemu_nbd(self.path('empty'), 'raw')))
        self.assertEqual([], list(disk.extents()))


class ReadTest(DiskTestCase):

    def test_all_that_is_read_is_what_the_disk_holds(self):
        server, content = self.random_disk(20 * MIB + 512)
        disk = self.connect(server)
        position = 0
        for offset, piece in disk.read([(0, disk.size)]):
            self.assertEqual(position, offset)
            self.assertEqual(content[offset:offset + len(piece)], piece)
            position += len(piece)
        self.assertEqual(len(content), position)
        self.assertEqual(len(content), disk.bytes_read)

    def test_runs_of_any_length_come_in_order(self):
        server, content = self.random_disk(4 * MIB)
        disk = self.connect(server)
        runs = [(512, 512), (64 * KIB, 64 * KIB), (200 * KIB, MIB),
                (4 * MIB - 512, 512)]
        self.assertEqual(
            b''.join(content[offset:offset + length]
                     for offset, length in runs),
            b''.join(piece for _offset, piece in disk.read(runs)))

    def test_pieces_that_are_held_stay_as_they_are(self):
        server, content = self.random_disk(32 * MIB)
        disk = self.connect(server)
        held = list(disk.read([(0, disk.size)]))
        # Nor does another pass touch them.
        for _piece in disk.read([(0, disk.size)]):
            pass
        for offset, piece in held:
            self.assertEqual(content[offset:offset + len(piece)], piece)

    def test_pieces_that_nobody_holds_take_no_memory(self):
        server, _content = self.random_disk(64 * MIB)
        disk = self.connect(server)
        for _piece in disk.read([(0, disk.size)]):
            pass
        self.assertLessEqual(len(disk._buffers),
                             nbd.MOST_IN_FLIGHT + 2)

    def test_reading_begins_anew_after_it_was_given_up(self):
        server, content = self.random_disk(16 * MIB)
        disk = self.connect(server)
        for pieces in (0, 1, 20):
            given_up = disk.read([(0, disk.size)])
            for _piece in range(pieces):
                next(given_up)
            given_up.close()
            digest = hashlib.sha256()
            for _offset, piece in disk.read([(0, disk.size)]):
                digest.update(piece)
            self.assertEqual(hashlib.sha256(content).digest(),
                             digest.digest())

    def test_what_was_given_up_counts_as_read_too(self):
        server, _content = self.random_disk(16 * MIB)
        disk = self.connect(server)
        given_up = disk.read([(0, disk.size)])
        next(given_up)
        given_up.close()
        for _piece in disk.read([(0, disk.size)]):
            pass
        self.assertEqual(nbd.LEAST_IN_FLIGHT * nbd.REQUEST_SIZE + 16 * MIB,
                         disk.bytes_read)

    def test_more_reads_are_under_way_where_the_storage_is_slow(self):
        server = self.useFixture(servers.nbdkit(
            '--threads=64', '--filter=log', '--filter=delay', 'memory', '64M',
            'rdelay=20ms', f'logfile={self.path("log")}'))
        for _piece in self.connect(server).read([(0, 64 * MIB)]):
            pass
        with open(self.path('log')) as log:
            events = re.findall(r' (\.\.\.)?Read id=', log.read())
        under_way = list(itertools.accumulate(
            -1 if ended else 1 for ended in events))
        self.assertEqual(nbd.MOST_IN_FLIGHT, max(under_way))
        self.assertEqual(0, under_way[-1])

    def test_extents_may_be_asked_for_while_reading(self):
        server, content = self.random_disk(16 * MIB)
        disk = self.connect(server)
        runs = ((extent.offset, extent.length)
                for _time in range(3) for extent in disk.extents())
        self.assertEqual(
            content * 3, b''.join(piece for _offset, piece
                                  in disk.read(runs)))

    def test_an_export_with_an_odd_name_is_found(self):
        with open(self.path('raw'), 'wb') as file:
            file.truncate(MIB)
        server = self.useFixture(
            servers.qemu_nbd(self.path('raw'), 'raw', export='a/b?é &%'))
        self.assertEqual(MIB, self.connect(server, 'a/b?é &%').size)

    def test_it_reads_on_a_thread_of_the_caller(self):
        server, content = self.random_disk(4 * MIB)
        disk = self.connect(server)
        got = []
        thread = threading.Thread(target=lambda: got.extend(
            piece for _offset, piece in disk.read([(0, disk.size)])))
        thread.start()
        thread.join()
        self.assertEqual(content, b''.join(got))


class FailingServerTest(DiskTestCase):

    def assert_fails(self, function, *arguments):
        return str(self.assertRaises(exception.DiskReadError, function,
                                     *arguments))

    def test_no_server_at_all(self):
        disk = read.Disk(read.unix_uri(self.path('nbd'), 'vda'))
        self.assertIn('No such file', self.assert_fails(disk.__enter__))

    def test_a_server_without_this_export(self):
        server, _content = self.random_disk(MIB)
        disk = read.Disk(read.unix_uri(server.socket, 'vdb'))
        self.assert_fails(disk.__enter__)

    def test_something_that_speaks_no_nbd(self):
        server = self.useFixture(servers.Server('sh', '-c', 'exit'))
        disk = read.Disk(read.unix_uri(server.socket, 'vda'))
        self.assert_fails(disk.__enter__)

    def test_a_server_that_takes_no_connection(self):
        listener = socket.socket(socket.AF_UNIX)
        self.addCleanup(listener.close)
        listener.bind(self.path('nbd'))
        listener.listen()
        disk = read.Disk(read.unix_uri(self.path('nbd'), 'vda'), timeout=0.2)
        self.assertIn('silent', self.assert_fails(disk.__enter__))

    def test_a_server_that_falls_silent_while_it_is_read(self):
        server, _content = self.random_disk(64 * MIB)
        disk = self.connect(server, timeout=0.5)
        reading = disk.read([(0, disk.size)])
        next(reading)
        server.freeze()
        self.assertIn('silent for 0.5 seconds',
                      self.assert_fails(list, reading))

    def test_a_server_that_falls_silent_while_extents_are_asked_for(self):
        server, _content = self.random_disk(MIB)
        disk = self.connect(server, timeout=0.2)
        server.freeze()
        self.assertIn('silent', self.assert_fails(list, disk.extents()))

    def test_a_server_that_dies_while_it_is_read(self):
        server, _content = self.random_disk(64 * MIB)
        disk = self.connect(server)
        reading = disk.read([(0, disk.size)])
        next(reading)
        server.kill()
        self.assert_fails(list, reading)
        self.assert_fails(list, disk.read([(0, MIB)]))
        self.assert_fails(list, disk.extents())

    def test_a_disk_that_cannot_be_read_all_over(self):
        disk = self.connect(self.useFixture(servers.nbdkit(
            'eval', 'get_size=echo 64M',
            'pread=if [ $4 -ge 33554432 ]; then echo EIO >&2; exit 1; fi; '
            'dd if=/dev/zero bs=$3 count=1 status=none')))
        reading = disk.read([(0, disk.size)])
        message = self.assert_fails(list, reading)
        self.assertIn('Input/output error', message)
        self.assertEqual(32 * MIB, disk.bytes_read)

    def test_a_disk_whose_extents_cannot_be_told(self):
        disk = self.connect(self.useFixture(servers.nbdkit(
            '--filter=error', 'memory', '1M', 'error-extents=EIO',
            'error-extents-rate=100%')))
        self.assertIn('Input/output error',
                      self.assert_fails(list, disk.extents()))


class RateLimitTest(DiskTestCase):

    def setUp(self):
        super().setUp()
        self.server, self.content = self.random_disk(4 * MIB)
        self.of_host = self.useFixture(fixtures.MockPatchObject(
            pace, 'OF_HOST', mock.create_autospec(
                pace.Pace, instance=True))).mock

    def test_every_byte_waits_for_its_turn(self):
        begun = time.monotonic()
        self.of_host.turn.return_value = begun
        disk = self.connect(self.server, rate_limit=1000)
        found = b''.join(
            bytes(piece) for _offset, piece in disk.read([(0, disk.size)]))
        self.assertEqual(self.content, found)
        self.assertEqual(
            [mock.call(nbd.REQUEST_SIZE, 1000)] * (
                4 * MIB // nbd.REQUEST_SIZE),
            self.of_host.turn.call_args_list)

    def test_nothing_is_read_before_its_turn(self):
        turn = time.monotonic() + 0.3
        self.of_host.turn.return_value = turn
        disk = self.connect(self.server, rate_limit=1000)
        next(disk.read([(0, 4096)]))
        self.assertGreaterEqual(time.monotonic(), turn)

    def test_whoever_waits_for_its_turn_is_aborted(self):
        waits = threading.Event()

        def turn(_length, _limit):
            waits.set()
            return time.monotonic() + 3600

        self.of_host.turn.side_effect = turn
        disk = self.connect(self.server, rate_limit=1000)
        errors = []
        thread = threading.Thread(target=lambda: errors.append(
            self.assertRaises(exception.DiskReadError, list,
                              disk.read([(0, MIB)]))))
        thread.start()
        waits.wait()
        disk.abort()
        thread.join()
        self.assertIn('aborted', str(errors[0]))

    def test_without_a_limit_nobody_waits(self):
        disk = self.connect(self.server)
        for _piece in disk.read([(0, disk.size)]):
            pass
        self.of_host.turn.assert_not_called()


class AbortTest(DiskTestCase):

    def test_a_read_that_waits_for_ever_is_aborted_from_another_thread(self):
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

    def test_an_aborted_disk_is_read_no_more(self):
        server, _content = self.random_disk(MIB)
        disk = self.connect(server)
        disk.abort()
        self.assertRaises(exception.DiskReadError,
                          list, disk.read([(0, MIB)]))
        self.assertRaises(exception.DiskReadError, list, disk.extents())
