# SPDX-License-Identifier: Apache-2.0

import os
import tempfile
from unittest import mock

from nova_snapext.encode import room
from tests.unit import base

MIB = 1024 * 1024


class ClaimedTest(base.TestCase):

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

    def claimed(self, size, file=None):
        return room.claimed(file or self.file(), size, '/snapshots', 'vmdk')

    def refused(self, size):
        return str(self.assertRaises(
            room.NoRoom, self.claimed(size).__enter__))

    def test_all_that_is_free_may_be_taken_and_no_byte_more(self):
        with self.claimed(4 * MIB):
            pass
        text = self.refused(4 * MIB + 1)
        self.assertIn(f'{4 * MIB + 1} bytes', text)
        self.assertIn(f'in /snapshots there are {4 * MIB} bytes free', text)

    def test_what_nova_reserves_is_left_alone(self):
        self.flags(reserved_host_disk_mb=1)
        with self.claimed(3 * MIB):
            pass
        self.refused(3 * MIB + 1)

    def test_what_is_reserved_may_be_used_up_already(self):
        self.flags(reserved_host_disk_mb=5)
        self.assertIn(' 0 bytes free', self.refused(1))

    def test_what_others_may_still_write_is_left_to_them(self):
        with self.claimed(3 * MIB):
            with self.claimed(MIB):
                self.refused(1)
            self.refused(MIB + 1)

    def test_what_others_have_written_is_not_free_any_more_anyway(self):
        file = self.file()
        with self.claimed(3 * MIB, file):
            os.posix_fallocate(file, 0, 2 * MIB)
            with self.claimed(3 * MIB):
                pass

    def test_a_claim_ends_however_its_file_was_left(self):
        for error in (None, ValueError):
            try:
                with self.claimed(4 * MIB):
                    if error:
                        raise error
            except ValueError:
                pass
        self.refused(5 * MIB)
        with self.claimed(4 * MIB):
            pass
