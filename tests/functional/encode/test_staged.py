# SPDX-License-Identifier: Apache-2.0
"""Images of real disks, staged by qemu-img."""

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
from nova_snapext import read
from nova_snapext.strategies import backup
from nova_snapext.strategies import cold
from tests import concurrency
from tests.functional import base
from tests.functional.encode import test_images
from tests.functional.read import servers

KIB, MIB = test_images.KIB, test_images.MIB

# Seconds until an expected event counts as missing.
SOON = 60

ENCODERS = (encode.VdiEncoder, encode.VmdkEncoder)

# Scripts with which nbdkit answers a read.
ZEROS = 'dd if=/dev/zero bs=$3 count=1 status=none'
FAIL_AFTER_4_MIB = (
    'if [ $4 -ge 4194304 ]; then echo EIO >&2; exit 1; fi; ' + ZEROS)
# A killed nbdkit leaves its script running: it has to be killed as well.
DIE_WITH_NBDKIT = 'exec setpriv --pdeathsig KILL '
HANG = DIE_WITH_NBDKIT + 'sleep infinity'
SIGNAL_AND_HANG = 'echo > {fifo}; ' + HANG
HANG_UNTIL_SIGNALLED = (
    DIE_WITH_NBDKIT + 'sh -c "read _ < {fifo}; ' + ZEROS + '"')

STAGE = """
import sys
from unittest import mock

import psutil

from nova_snapext import compat
from nova_snapext import conf
from nova_snapext import encode
from nova_snapext import read

uri, directory, fifo, read_timeout = sys.argv[1:]
conf.CONF([], default_config_files=[])
conf.CONF.set_override('snapshots_directory', directory, 'libvirt')
conf.CONF.set_override('read_timeout', read_timeout, 'snapext')


def cpu_times():
    yield 1
    # Only now the server is signalled to answer.
    open(fifo, 'w').close()
    yield from range(2, 1000)


def stage():
    with read.Disk(uri) as disk, encode.VmdkEncoder(disk) as encoder:
        return sum(map(len, encoder.stream())) == encoder.size


with mock.patch.object(psutil, 'Process') as process:
    process.return_value.cpu_times.side_effect = cpu_times()
    print(compat.tpool_wrap(stage)())
"""


class StagedTestCase(test_images.EncodeTestCase):

    def setUp(self):
        super().setUp()
        self.snapshots = pathlib.Path(self.path('snapshots'))
        self.config = self.useFixture(config_fixture.Config(conf.CONF)).config
        self.config(snapshots_directory=str(self.snapshots), group='libvirt')


class Staged:
    """Staged images of the same kinds of disks as streamed images."""

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
        self.assertLessEqual(encoder.size, encoder.max_size())
        return path


def inspected(path):
    """Inspect an image with oslo.utils, as Glance does during an upload."""
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
    """Random data, which can't be compressed."""

    disk_format = 'raw'
    create_disk = test_images.FullDiskTest.create_disk

    def test_staged_image_is_not_larger_than_the_reserved_space(self):
        self.create_disk()
        for encoder in self.encoders(self.connect()):
            largest = encoder.max_size()
            self.assertLessEqual(encoder.size, largest)
            self.assertGreater(encoder.size, largest - 2 * encoder.GRAIN)


class BackingChainTest(Staged, test_images.Disks, StagedTestCase):

    create_disk = test_images.BackingChainTest.create_disk


class SmallClustersTest(Staged, test_images.Disks, StagedTestCase):

    create_disk = test_images.SmallClustersTest.create_disk


class UnalignedDiskTest(Staged, test_images.Disks, StagedTestCase):

    create_disk = test_images.UnalignedDiskTest.create_disk


class SmallFileSystemTestCase(StagedTestCase):
    """A separate file system shows leaks, also of files without a name."""

    SIZE = 4 * MIB

    def setUp(self):
        super().setUp()
        self.snapshots.mkdir()
        base.run('mount', '-t', 'tmpfs', '-o', f'size={self.SIZE}', 'tmpfs',
                 str(self.snapshots))
        self.addCleanup(base.run, 'umount', str(self.snapshots))
        self.config(reserved_host_disk_mb=0)

    def serve(self, pread, size='1M', **names):
        """Serve a disk whose reads are answered by a script."""
        server = self.useFixture(servers.nbdkit(
            'eval', f'get_size=echo {size}', 'thread_model=echo parallel',
            f'pread={pread.format(**names)}'))
        self.uri = read.unix_uri(server.socket, '')

    def connect_to_server(self, timeout=SOON):
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
        """Return the pids of qemu-img processes that read the test's disk."""
        found = []
        socket, _export = read.unix_export(self.uri)
        for process in pathlib.Path('/proc').glob('[0-9]*'):
            with contextlib.suppress(OSError):  # it has just ended
                command = (process / 'cmdline').read_bytes()
                if (command.startswith(b'qemu-img\0') and
                        os.path.dirname(socket).encode() in command):
                    found.append(int(process.name))
        return found


class StagingSpaceTest(SmallFileSystemTestCase):

    def disk(self, *commands):
        self.create(64 * MIB, *commands)
        disk = self.connect()
        self.uri = disk.uri
        return disk

    def test_image_that_may_not_fit_is_refused_before_it_is_written(self):
        disk = self.disk('write -P 1 0 4M')
        for encoder in ENCODERS:
            with mock.patch.object(
                    subprocess, 'Popen', side_effect=AssertionError
            ) as qemu_img:
                error = self.assertRaises(
                    encode.InsufficientStagingSpace, self.stage, disk, encoder)
            qemu_img.assert_not_called()
            # In whole pages, as the file is on a tmpfs.
            pages = -(-encoder(disk).max_size() // mmap.PAGESIZE)
            self.assertIn(f'may take {pages * mmap.PAGESIZE} bytes',
                          str(error))
            self.assertIn(f'only {self.SIZE} bytes are free for it in '
                          f'{self.snapshots}', str(error))
            self.assert_nothing_left()

    def test_image_that_fits_is_staged_and_its_space_is_freed(self):
        disk = self.disk('write -P 1 0 2M')
        for encoder in ENCODERS:
            with encoder(disk) as image:
                self.assertEqual([], list(self.snapshots.iterdir()))
                self.assertGreater(self.used(), 0)
                self.assertEqual(image.size, sum(map(len, image.stream())))
            self.assert_nothing_left()

    def test_error_during_the_upload_frees_the_space(self):
        disk = self.disk('write -P 1 0 2M')

        def send():
            with encode.VdiEncoder(disk) as image:
                next(image.stream())
                raise exception.ImageMismatch(image='i', reason='r')

        self.assertRaises(exception.ImageMismatch, send)
        self.assert_nothing_left()

    def test_full_file_system_fails_with_the_message_of_qemu_img(self):
        disk = self.disk('write -P 1 0 8M')
        with mock.patch.object(encode.VmdkEncoder, 'max_size',
                               return_value=0):
            error = self.assertRaises(encode.EncodeError, self.stage, disk)
        self.assertIn('No space left on device', str(error))
        self.assert_nothing_left()

    def test_rate_limit_in_mib_is_passed_to_qemu_img_in_bytes(self):
        disk = self.disk('write -P 1 0 1M')
        self.config(read_rate_limit_mbps=64, group='snapext')
        with mock.patch.object(subprocess, 'Popen',
                               side_effect=subprocess.Popen) as qemu_img, \
                encode.VmdkEncoder(disk):
            pass
        [command] = qemu_img.call_args.args
        self.assertIn(('-r', str(64 * MIB)), itertools.pairwise(command))

    def test_allocated_data_counts_in_bytes_read(self):
        disk = self.disk('write -P 1 0 1M', 'write -P 2 8M 64k')
        with encode.VmdkEncoder(disk) as image:
            self.assertEqual(MIB + 64 * KIB, image.bytes_read)


class BrokenDiskTest(SmallFileSystemTestCase):

    SIZE = 16 * MIB

    def test_server_that_dies_during_staging_is_a_read_error(self):
        # The script's parent is the server.
        self.serve('kill -KILL $PPID')
        disk = self.connect_to_server()
        error = self.assertRaises(exception.DiskReadError, self.stage, disk)
        self.assertIn('Could not encode the vmdk image: qemu-img: ',
                      ''.join(traceback.format_exception(error)))
        self.assert_nothing_left()

    def test_unreadable_part_fails_with_the_message_of_qemu_img(self):
        self.serve(FAIL_AFTER_4_MIB, size='8M')
        disk = self.connect_to_server()
        error = self.assertRaises(encode.EncodeError, self.stage, disk)
        self.assertIn('Input/output error', str(error))
        self.assertIn('4194304', str(error))
        self.assert_nothing_left()

    def test_server_that_does_not_respond_is_a_read_error(self):
        self.config(read_timeout=1, group='snapext')
        self.serve(HANG)
        disk = self.connect_to_server(timeout=0.5)
        error = self.assertRaises(exception.DiskReadError, self.stage, disk)
        self.assertIn('did not respond', str(error))
        self.assert_nothing_left()

    def test_server_that_accepts_no_second_client_is_an_encode_error(self):
        self.config(read_timeout=1, group='snapext')
        self.create(MIB, 'write -P 1 0 1M')
        server = self.useFixture(servers.Server(
            'qemu-nbd', '--read-only', '--shared=1', self.disk_path))
        self.uri = read.unix_uri(server.socket, '')
        disk = self.connect_to_server()
        error = self.assertRaises(encode.EncodeError, self.stage, disk)
        self.assertIn('no progress for 1 seconds', str(error))
        self.assert_nothing_left()

    def test_missing_program_is_named_in_the_error(self):
        self.serve(ZEROS)
        disk = self.connect_to_server()
        with mock.patch.dict(os.environ, PATH='/nonexistent'):
            error = self.assertRaises(encode.EncodeError, self.stage, disk)
        self.assertIn('setpriv', str(error))
        self.assert_nothing_left()


class AbortTest(SmallFileSystemTestCase):

    SIZE = 16 * MIB

    def setUp(self):
        super().setUp()
        self.fifo = self.path('fifo')
        os.mkfifo(self.fifo)
        self.serve(SIGNAL_AND_HANG, fifo=self.fifo)
        self.encoder = encode.VmdkEncoder(self.connect_to_server())

    def test_abort_during_staging_ends_qemu_img(self):
        def abort():
            # The server has signalled that qemu-img waits for it.
            with open(self.fifo):
                self.encoder.abort()

        thread = threading.Thread(target=abort)
        thread.start()
        self.addCleanup(thread.join)
        self.assertRaises(exception.DiskReadError, self.stage_aborted)

    def test_abort_before_staging_prevents_it(self):
        self.encoder.abort()
        self.assertRaises(exception.DiskReadError, self.stage_aborted)

    def stage_aborted(self):
        with self.encoder:
            pass

    def tearDown(self):
        self.assert_nothing_left()
        super().tearDown()


class ProcessTest(SmallFileSystemTestCase):
    """Staging in a separate process."""

    def setUp(self):
        super().setUp()
        self.fifo = self.path('fifo')
        os.mkfifo(self.fifo)

    def start(self, backend=concurrency.BACKENDS[0], read_timeout=SOON):
        process = self.enterContext(subprocess.Popen(
            [sys.executable, '-c', concurrency.beginning(backend) + STAGE,
             self.uri, str(self.snapshots), self.fifo, str(read_timeout)],
            stdout=subprocess.PIPE, text=True))
        # Does nothing if the process has ended.
        self.addCleanup(process.kill)
        return process

    def await_readable(self, descriptor):
        self.assertEqual([descriptor],
                         select.select([descriptor], [], [], SOON)[0])

    def test_kill_of_nova_compute_ends_qemu_img_and_frees_the_space(self):
        signalled = os.open(self.fifo, os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, signalled)
        self.serve(SIGNAL_AND_HANG, fifo=self.fifo)
        process = self.start()
        self.await_readable(signalled)
        [qemu_img] = self.qemu_imgs()
        pidfd = os.pidfd_open(qemu_img)
        self.addCleanup(os.close, pidfd)
        self.assertGreater(self.used(), 0)
        process.kill()
        self.await_readable(pidfd)
        process.wait()
        self.assert_nothing_left()

    def test_slow_disk_is_staged_under_threading_and_eventlet(self):
        self.serve(HANG_UNTIL_SIGNALLED, fifo=self.fifo)
        for backend in concurrency.BACKENDS:
            process = self.start(backend, read_timeout=1)
            self.assertEqual('True\n', process.communicate(timeout=SOON)[0])
            self.assert_nothing_left()


class FrozenGuestTest(base.GuestTestCase):
    """qemu-img can read the exports of the strategies as a second client."""

    def assert_stages(self, strategy, disk, plan):
        self.config = self.useFixture(config_fixture.Config(conf.CONF)).config
        self.config(snapshots_directory=str(self.images), group='libvirt')
        with strategy(self.driver).freeze(plan) as frozen, \
                read.Disk(frozen.uri) as export:
            for encoder in ENCODERS:
                with encoder(export) as image:
                    self.assertGreaterEqual(
                        image.bytes_read, base.DISK_SIZE)
                # Again, after qemu-img has disconnected.
                self.assertEqual(
                    base.DISK_SIZE,
                    sum(map(len, encode.RawEncoder(export).stream())))
        self.assert_nothing_left(plan)

    def test_export_of_a_backup_job_is_staged(self):
        disk = self.chained_qcow2()
        self.assert_stages(backup.BackupStrategy, disk, self.guest(disk))

    def test_export_of_qemu_nbd_is_staged(self):
        disk = self.chained_qcow2()
        self.assert_stages(cold.ColdStrategy, disk,
                           self.guest(disk, running=False))
