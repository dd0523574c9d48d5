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
        self.host = self.CONF.host
        self.parent = self.useFixture(fixtures.TempDir()).path

    def restore(self, directory):
        plan = self.plan()
        plan.instance.host = self.host
        return native_snapshot.NativeSnapshot.restore(
            mock.Mock(), plan,
            {'power_state': 1, 'directory': directory})

    def release(self, directory):
        with mock.patch.object(native_snapshot.domain, 'find',
                               return_value=None):
            self.restore(directory).release()

    def assert_refused(self, directory):
        error = self.assertRaises(
            exception.JournalRecordError, self.release, directory)
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
        self.release(path)
        self.assertEqual([], os.listdir(self.parent))
        self.release(path)

    def test_path_with_a_double_slash_is_removed(self):
        # Nova makes it from options that end with a slash.
        directory, name = os.path.split(self.novas(NAME))
        self.release(f'{directory}//{name}')
        self.assertEqual([], os.listdir(self.parent))

    def test_guest_is_put_back_whatever_the_directory_is(self):
        guest = mock.Mock()
        guest.is_active.return_value = True
        guest.has_persistent_configuration.return_value = False
        snapshot = self.restore('/etc')
        with mock.patch.object(native_snapshot.domain, 'find',
                               return_value=guest), \
                mock.patch.object(native_snapshot.jobs, 'wait_for_no_job'):
            self.assertRaises(
                exception.JournalRecordError, snapshot.release)
        guest.get_xml_desc.assert_called_once_with(
            dump_inactive=True, dump_sensitive=True)

    def test_guest_that_runs_on_another_host_now_is_not_started_here(self):
        self.host = 'another'
        guest = mock.Mock()
        with mock.patch.object(native_snapshot.domain, 'find',
                               return_value=guest):
            self.restore(None).release()
        self.assertEqual([], guest.mock_calls)

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
