# SPDX-License-Identifier: Apache-2.0
"""The compression that the options ask for, with and without zstandard."""

from unittest import mock

from nova_snapext.encode import codec
from nova_snapext import exception
from tests.unit import base


class OptionsTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.flags(snapshot_compression=True, group='libvirt')

    def without_zstandard(self):
        patcher = mock.patch.object(codec, 'zstandard', None)
        patcher.start()
        self.addCleanup(patcher.stop)

    def ask_for(self, name):
        self.flags(compression_type=name, group='snapext')

    def test_zstd_is_used_where_it_is_installed_and_zlib_elsewhere(self):
        self.assertEqual('zstd', codec.type_in_use())
        self.without_zstandard()
        self.assertEqual('zlib', codec.type_in_use())

    def test_what_the_option_names_is_used(self):
        self.ask_for('zlib')
        self.assertEqual('zlib', codec.type_in_use())

    def test_zstd_asked_for_by_name_needs_its_package(self):
        self.ask_for('zstd')
        codec.check_options()
        self.without_zstandard()
        self.assertRaises(exception.CompressionUnavailable,
                          codec.check_options)

    def test_package_is_not_needed_if_nothing_is_compressed(self):
        self.ask_for('zstd')
        self.without_zstandard()
        self.flags(snapshot_compression=False, group='libvirt')
        codec.check_options()

    def test_zlib_in_place_of_zstd_is_logged_unless_it_was_asked_for(self):
        self.without_zstandard()
        with mock.patch.object(codec.LOG, 'warning') as warning:
            codec.check_options()
            warning.assert_called_once()
            self.ask_for('zlib')
            codec.check_options()
            warning.assert_called_once()
