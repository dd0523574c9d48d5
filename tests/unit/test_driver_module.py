# SPDX-License-Identifier: Apache-2.0

import logging
import pathlib
import runpy
from unittest import mock

import fixtures

from nova_snapext import compat
from nova_snapext import driver
from tests.unit import base

MODULE = pathlib.Path(__file__).parents[2] / 'nova/virt/snapext.py'


class DriverModuleTest(base.TestCase):
    """nova.virt.snapext, as nova-compute imports it."""

    def failure(self, error):
        """Return what the log says if the driver can't be imported."""
        log = self.useFixture(fixtures.FakeLogger(level=logging.ERROR))
        failing = mock.MagicMock()
        type(failing).SnapextDriver = mock.PropertyMock(side_effect=error)
        with mock.patch.dict('sys.modules',
                             {'nova_snapext.driver': failing}):
            ended = self.assertRaises(
                SystemExit, runpy.run_path, str(MODULE))
        self.assertEqual(1, ended.code)
        return log.output

    def test_class_of_the_module_is_the_driver(self):
        self.assertIs(driver.SnapextDriver,
                      runpy.run_path(str(MODULE))['SnapextDriver'])

    def test_missing_package_is_one_line_in_the_log(self):
        output = self.failure(ImportError('no\nlibnbd. Install it.'))
        self.assertIn('no libnbd. Install it. "nova-snapext check"', output)
        self.assertEqual(1, len(output.splitlines()))

    def test_old_nova_is_named_and_not_what_it_lacks(self):
        with mock.patch.object(compat, 'too_old', lambda: 'Nova 30 is old'):
            output = self.failure(ImportError('cannot import name x'))
        self.assertIn('Nova 30 is old.', output)
        self.assertNotIn('cannot import', output)
