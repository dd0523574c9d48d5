# SPDX-License-Identifier: Apache-2.0
"""Images that qemu-img stages, of real disks."""

import contextlib
import itertools
import mmap
import os
import pathlib
import select
import subprocess
import sys
import threading
import traceback
from unittest import mock

from oslo_config import fixture as config_fixture
from oslo_utils.imageutils import format_inspector

from nova_snapext import conf
from nova_snapext import encode
from nova_snapext import exception
from nova_snapext.freeze import backup
from nova_snapext.freeze import cold
from nova_snapext import read
from tests.functional import base
from tests.functional.encode import test_images
from tests.functional.read import servers

KIB, MIB = test_images.KIB, test_images.MIB

# Seconds for something to happen that is about to.
SOON = 60

ENCODERS = (encode.VdiEncoder, encode.VmdkEncoder)

# What nbdkit answers a read with.
ZEROS = 'dd if=/dev/zero bs=$3 count=1 status=none'
FAIL_BEHIND = 'if [ $4 -ge 4194304 ]; then echo EIO >&2; exit 1; fi; ' + ZEROS
# Nobody waits for a script when nbdkit is killed: it has to die with it.
MORTAL = 'exec setpriv --pdeathsig KILL '
HANG = MORTAL + 'sleep infinity'
TELL_AND_HANG = 'echo > {fifo}; ' + HANG
HANG_UNTIL_TOLD = (MORTAL + 'sh -c "read _ < {fifo}; ' + ZEROS + '"')

STAGE = """
import sys
from unittest import mock

from nova import monkey_patch
monkey_patch.patch(backend={backend!r})
from nova import utils
import psutil

from nova_snapext import conf
from nova_snapext import encode
from nova_snapext import read

uri, directory, fifo, read_timeout = sys.argv[1:]
conf.CONF([], default_config_files=[])
conf.CONF.set_override('snapshots_directory', directory, 'libvirt')
conf.CONF.set_override('read_timeout', read_timeout, 'snapext')


def looks():
    yield 1
    # So late, the server is told to answer.
    open(fifo, 'w').close()
    yield from range(2, 1000)


def stage():
    with read.Disk(uri) as disk, encode.VmdkEncoder(disk) as encoder:
        return sum(map(len, encoder.stream())) == encoder.size


with mock.patch.object(psutil, 'Process') as process:
    process.return_value.cpu_times.side_effect = looks()
    print(utils.tpool_wrap(stage)())
"""


class StagedTestCase(test_images.EncodeTestCase):

    def setUp(self):
        super().setUp()
        self.snapshots = pathlib.Path(self.path('snapshots'))
        self.config = self.useFixture(config_fixture.Config(conf.CONF)).config
        self.config(snapshots_directory=str(self.snapshots), group='libvirt')


class Staged:
    """Staged images of a kind of disk that streamed ones are made of."""

    def encoders(self, disk):
        for encoder in ENCODERS:
            with encoder(disk) as image:
                yield image

    def assert_image(self, encoder):
        path = super().assert_image(encoder)
        servers.qemu_img('check', '-f', encoder.image_format, path)
        inspector = inspected(path)
        self.assertEqual(encoder.image_format, str(inspector))
        self.assertEqual(self.virtual_size(path), inspector.virtual_size)
        self.assertLessEqual(encoder.size, encoder.largest_size())
        return path


def inspected(path):
    """Look at an image as Glance does while it comes: oslo.utils decides."""
    with open(path, 'rb') as file:
        wrapper = format_inspector.InspectWrapper(file)
        while wrapper.read(64 * KIB):
            pass
        wrapper.close()
    wrapper.format.safety_check()
    return wrapper.format


class EmptyDiskTest(Staged, test_images.Disks, StagedTestCase):

    create_disk = test_images.EmptyDiskTest.create_disk


class FullDiskTest(Staged, test_images.Disks, StagedTestCase):
    """Of noise, which can't be compressed."""

    disk_format = 'raw'
    create_disk = test_images.FullDiskTest.create_disk

    def test_a_staged_image_is_no_larger_than_was_asked_room_for(self):
        self.create_disk()
        for encoder in self.encoders(self.connect()):
            most = encoder.largest_size()
            self.assertLessEqual(encoder.size, most)
            self.assertGreater(encoder.size, most - 2 * encoder.GRAIN)


class BackingChainTest(Staged, test_images.Disks, StagedTestCase):

    create_disk = test_images.BackingChainTest.create_disk


class SmallClustersTest(Staged, test_images.Disks, StagedTestCase):

    create_disk = test_images.SmallClustersTest.create_disk


class UnalignedDiskTest(Staged, test_images.Disks, StagedTestCase):

    create_disk = test_images.UnalignedDiskTest.create_disk


class SmallRoomTestCase(StagedTestCase):
    """A file system of its own shows what is left, with a name or without."""

    SIZE = 4 * MIB

    def setUp(self):
        super().setUp()
        self.snapshots.mkdir()
        base.run('mount', '-t', 'tmpfs', '-o', f'size={self.SIZE}', 'tmpfs',
                 str(self.snapshots))
        self.addCleanup(base.run, 'umount', str(self.snapshots))
        self.config(reserved_host_disk_mb=0)

    def served(self, pread, size='1M', **names):
        """Serve a disk that answers each read by a script."""
        server = self.useFixture(servers.nbdkit(
            'eval', f'get_size=echo {size}', 'thread_model=echo parallel',
            f'pread={pread.format(**names)}'))
        self.uri = read.unix_uri(server.socket, '')

    def connect_to_served(self, timeout=SOON):
        disk = read.Disk(self.uri, timeout)
        disk.__enter__()
        self.addCleanup(disk.__exit__)
        return disk

    def stage(self, disk, encoder=encode.VmdkEncoder):
        with encoder(disk):
            pass

    def used(self):
        found = os.statvfs(self.snapshots)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def assert_nothing_left(self):
        self.assertEqual(0, self.used())
        self.assertEqual([], self.qemu_imgs())

    def qemu_imgs(self):
        """Processes of qemu-img that read what this test serves."""
        found = []
        for process in pathlib.Path('/proc').glob('[0-9]*'):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                words = (process / 'cmdline').read_bytes().split(b'\0')
                if words[0] == b'qemu-img' and any(
                        self.uri.encode() in word for word in words):
                    found.append(int(process.name))
        return found


class RoomTest(SmallRoomTestCase):

    def disk(self, *commands):
        self.create(64 * MIB, *commands)
        disk = self.connect()
        self.uri = disk.uri
        return disk

    def test_what_may_not_fit_is_refused_before_anything_is_written(self):
        disk = self.disk('write -P 1 0 4M')
        for encoder in ENCODERS:
            with mock.patch.object(
                    subprocess, 'Popen', side_effect=AssertionError
            ) as qemu_img:
                error = self.assertRaises(
                    encode.NoRoom, self.stage, disk, encoder)
            qemu_img.assert_not_called()
            # In whole pages, which a file on a tmpfs takes.
            pages = -(-encoder(disk).largest_size() // mmap.PAGESIZE)
            self.assertIn(f'may take {pages * mmap.PAGESIZE} bytes',
                          str(error))
            self.assertIn(f'in {self.snapshots} there are {self.SIZE} bytes',
                          str(error))
            self.assert_nothing_left()

    def test_what_fits_is_staged_and_its_space_given_back(self):
        disk = self.disk('write -P 1 0 2M')
        for encoder in ENCODERS:
            with encoder(disk) as image:
                self.assertEqual([], list(self.snapshots.iterdir()))
                self.assertGreater(self.used(), 0)
                self.assertEqual(image.size, sum(map(len, image.stream())))
            self.assert_nothing_left()

    def test_space_is_given_back_after_an_error_while_it_is_sent(self):
        disk = self.disk('write -P 1 0 2M')

        def send():
            with encode.VdiEncoder(disk) as image:
                next(image.stream())
                raise exception.ImageMismatch(image='i', reason='r')

        self.assertRaises(exception.ImageMismatch, send)
        self.assert_nothing_left()

    def test_room_that_others_take_meanwhile_ends_it_in_qemu_img_s_words(
            self):
        disk = self.disk('write -P 1 0 8M')
        with mock.patch.object(encode.VmdkEncoder, 'largest_size',
                               return_value=0):
            error = self.assertRaises(encode.EncodeError, self.stage, disk)
        self.assertIn('No space left on device', str(error))
        self.assert_nothing_left()

    def test_qemu_img_keeps_to_the_limit_too(self):
        disk = self.disk('write -P 1 0 1M')
        self.config(read_rate_limit=64 * MIB, group='snapext')
        with mock.patch.object(subprocess, 'Popen',
                               side_effect=subprocess.Popen) as qemu_img, \
                encode.VmdkEncoder(disk):
            pass
        [command] = qemu_img.call_args.args
        self.assertIn(('-r', str(64 * MIB)), itertools.pairwise(command))

    def test_what_was_read_is_what_the_disk_has_allocated(self):
        disk = self.disk('write -P 1 0 1M', 'write -P 2 8M 64k')
        with encode.VmdkEncoder(disk) as image:
            self.assertEqual(MIB + 64 * KIB, image.bytes_read)


class BrokenDiskTest(SmallRoomTestCase):

    SIZE = 16 * MIB

    def test_a_disk_that_goes_meanwhile_is_a_read_error(self):
        # The script's parent is the server.
        self.served('kill -KILL $PPID')
        disk = self.connect_to_served()
        error = self.assertRaises(exception.DiskReadError, self.stage, disk)
        self.assertIn('Encoding a vmdk image failed: qemu-img: ',
                      ''.join(traceback.format_exception(error)))
        self.assert_nothing_left()

    def test_a_part_that_can_not_be_read_ends_it_in_qemu_img_s_words(self):
        self.served(FAIL_BEHIND, size='8M')
        disk = self.connect_to_served()
        error = self.assertRaises(encode.EncodeError, self.stage, disk)
        self.assertIn('Input/output error', str(error))
        self.assertIn('4194304', str(error))
        self.assert_nothing_left()

    def test_a_silent_disk_is_given_up(self):
        self.config(read_timeout=1, group='snapext')
        self.served(HANG)
        disk = self.connect_to_served(timeout=0.5)
        error = self.assertRaises(exception.DiskReadError, self.stage, disk)
        self.assertIn('silent', str(error))
        self.assert_nothing_left()

    def test_a_server_without_a_place_for_qemu_img_is_given_up(self):
        self.config(read_timeout=1, group='snapext')
        self.create(MIB, 'write -P 1 0 1M')
        server = self.useFixture(servers.Server(
            'qemu-nbd', '--read-only', '--shared=1', self.disk_path))
        self.uri = read.unix_uri(server.socket, '')
        disk = self.connect_to_served()
        error = self.assertRaises(encode.EncodeError, self.stage, disk)
        self.assertIn('nothing for 1 seconds', str(error))
        self.assert_nothing_left()

    def test_a_host_without_qemu_img_says_so(self):
        self.served(ZEROS)
        disk = self.connect_to_served()
        with mock.patch.dict(os.environ, PATH='/nonexistent'):
            error = self.assertRaises(encode.EncodeError, self.stage, disk)
        self.assertIn('setpriv', str(error))
        self.assert_nothing_left()


class AbortTest(SmallRoomTestCase):

    SIZE = 16 * MIB

    def setUp(self):
        super().setUp()
        self.fifo = self.path('fifo')
        os.mkfifo(self.fifo)
        self.served(TELL_AND_HANG, fifo=self.fifo)
        self.encoder = encode.VmdkEncoder(self.connect_to_served())

    def test_an_image_that_is_staged_is_given_up_at_once(self):
        def abort():
            # The server has told that qemu-img waits for it.
            with open(self.fifo):
                self.encoder.abort()

        thread = threading.Thread(target=abort)
        thread.start()
        self.addCleanup(thread.join)
        self.assertRaises(exception.DiskReadError, self.stage_aborted)

    def test_one_that_was_given_up_before_is_not_begun(self):
        self.encoder.abort()
        self.assertRaises(exception.DiskReadError, self.stage_aborted)

    def stage_aborted(self):
        with self.encoder:
            pass

    def tearDown(self):
        self.assert_nothing_left()
        super().tearDown()


class ProcessTest(SmallRoomTestCase):
    """Staging in a process of its own."""

    def setUp(self):
        super().setUp()
        self.fifo = self.path('fifo')
        os.mkfifo(self.fifo)

    def start(self, backend='threading', read_timeout=SOON):
        return self.enterContext(subprocess.Popen(
            [sys.executable, '-c', STAGE.format(backend=backend), self.uri,
             str(self.snapshots), self.fifo, str(read_timeout)],
            stdout=subprocess.PIPE, text=True))

    def await_readable(self, descriptor):
        self.assertEqual([descriptor],
                         select.select([descriptor], [], [], SOON)[0])

    def test_a_nova_compute_that_is_killed_takes_all_with_it(self):
        told = os.open(self.fifo, os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, told)
        self.served(TELL_AND_HANG, fifo=self.fifo)
        process = self.start()
        self.await_readable(told)
        [qemu_img] = self.qemu_imgs()
        pidfd = os.pidfd_open(qemu_img)
        self.addCleanup(os.close, pidfd)
        self.assertGreater(self.used(), 0)
        process.kill()
        self.await_readable(pidfd)
        process.wait()
        self.assert_nothing_left()

    def test_what_takes_long_is_waited_for_in_both_of_nova_s_modes(self):
        self.served(HANG_UNTIL_TOLD, fifo=self.fifo)
        for backend in ('threading', 'eventlet'):
            process = self.start(backend, read_timeout=1)
            self.assertEqual('True\n', process.communicate(timeout=SOON)[0])
            self.assert_nothing_left()


class FrozenGuestTest(base.GuestTestCase):
    """What the strategies serve can be read by qemu-img beside ourselves."""

    def assert_stages(self, strategy, disk, plan):
        self.config = self.useFixture(config_fixture.Config(conf.CONF)).config
        self.config(snapshots_directory=str(self.images), group='libvirt')
        with strategy(self.driver).freeze(plan) as frozen, \
                read.Disk(frozen.uri) as export:
            for encoder in ENCODERS:
                with encoder(export) as image:
                    self.assertGreaterEqual(
                        image.bytes_read, base.DISK_SIZE)
                # Once more, after qemu-img has left.
                self.assertEqual(
                    base.DISK_SIZE,
                    sum(map(len, encode.RawEncoder(export).stream())))
        self.assert_nothing_left(plan)

    def test_a_backup_job(self):
        disk = self.chained_qcow2()
        self.assert_stages(backup.BackupStrategy, disk, self.guest(disk))

    def test_a_qemu_nbd(self):
        disk = self.chained_qcow2()
        self.assert_stages(cold.ColdStrategy, disk,
                           self.guest(disk, running=False))
