# SPDX-License-Identifier: Apache-2.0

import os
import tempfile
from unittest import mock

import fixtures

from nova_snapext import exception
from nova_snapext.resources import native_snapshot
from tests.unit import base

NAME = '0123456789abcdef' * 2


class RecordTest(base.TestCase):
    """Which directory a journal may name."""

    def setUp(self):
        super().setUp()
        self.parent = self.useFixture(fixtures.TempDir()).path

    def restore(self, directory):
        return native_snapshot.NativeSnapshot.restore(
            mock.Mock(), self.plan(),
            {'power_state': 1, 'directory': directory})

    def assert_refused(self, directory):
        error = self.assertRaises(
            exception.JournalRecordError, self.restore, directory)
        self.assertIn(repr(directory), str(error))

    def novas(self, *names):
        """Create a directory as Nova's tempdir() does."""
        path = tempfile.mkdtemp(dir=self.parent)
        os.chmod(path, 0o701)
        for name in names:
            open(os.path.join(path, name), 'w').close()
        return path

    def test_novas_directory_is_removed(self):
        path = self.novas(NAME, f'{NAME}.delta')
        snapshot = self.restore(path)
        with mock.patch.object(native_snapshot.domain, 'find',
                               return_value=None):
            snapshot.release()
        self.assertEqual([], os.listdir(self.parent))
        self.restore(path)

    def test_snapshot_without_a_directory_is_restored(self):
        self.assertIsNone(self.restore(None).directory)

    def test_other_directories_are_refused(self):
        path = self.novas()
        os.symlink(path, os.path.join(self.parent, 'tmp01234567'))
        open(os.path.join(self.parent, 'tmp76543210'), 'w').close()
        for value in (7, [path], '', '/etc', self.parent, f'{path}/',
                      f'{path}/../{os.path.basename(path)}', f'/{path}',
                      f'{path}\0', self.novas('file'), self.novas(NAME[1:]),
                      os.path.join(self.parent, 'tmp01234567'),
                      os.path.join(self.parent, 'tmp76543210')):
            self.assert_refused(value)
