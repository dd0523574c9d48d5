# SPDX-License-Identifier: Apache-2.0

import os
import tempfile
from unittest import mock

from nova_snapext.encode import reservation
from tests.unit import base

MIB = 1024 * 1024


class ReserveSpaceTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.flags(reserved_host_disk_mb=0)
        statvfs = mock.patch.object(
            os, 'statvfs', return_value=mock.Mock(f_bavail=1024,
                                                  f_frsize=4096))
        statvfs.start()
        self.addCleanup(statvfs.stop)

    def file(self):
        return self.enterContext(tempfile.TemporaryFile()).fileno()

    def reserve(self, size, file=None):
        return reservation.reserve_space(file or self.file(), size,
                                         '/snapshots', 'vmdk')

    def refused(self, size):
        return str(self.assertRaises(
            reservation.InsufficientStagingSpace,
            self.reserve(size).__enter__))

    def test_all_free_space_can_be_reserved_and_no_byte_more(self):
        with self.reserve(4 * MIB):
            pass
        text = self.refused(4 * MIB + 1)
        self.assertIn(f'{4 * MIB + 1} bytes', text)
        self.assertIn(f'only {4 * MIB} bytes are free for it in /snapshots',
                      text)

    def test_reserve_of_nova_is_not_used(self):
        self.flags(reserved_host_disk_mb=1)
        with self.reserve(3 * MIB):
            pass
        self.refused(3 * MIB + 1)

    def test_reserve_larger_than_the_free_space_leaves_0_bytes(self):
        self.flags(reserved_host_disk_mb=5)
        self.assertIn(' 0 bytes are free', self.refused(1))

    def test_space_reserved_for_other_files_is_not_free(self):
        with self.reserve(3 * MIB):
            with self.reserve(MIB):
                self.refused(1)
            self.refused(MIB + 1)

    def test_space_already_written_by_another_file_is_not_counted_twice(
            self):
        file = self.file()
        with self.reserve(3 * MIB, file):
            os.posix_fallocate(file, 0, 2 * MIB)
            with self.reserve(3 * MIB):
                pass

    def test_reservation_ends_after_success_and_after_an_error(self):
        for error in (None, ValueError):
            try:
                with self.reserve(4 * MIB):
                    if error:
                        raise error
            except ValueError:
                pass
        self.refused(5 * MIB)
        with self.reserve(4 * MIB):
            pass
