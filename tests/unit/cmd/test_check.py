# SPDX-License-Identifier: Apache-2.0

import contextlib
import importlib.metadata
import importlib.util
import io
from unittest import mock

from nova_snapext.cmd import check
from nova_snapext.cmd import main
from tests.unit import base

FOUND = mock.Mock(origin='/venv/nova/__init__.py')


class CheckTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.specs = {'nova': FOUND, check.MODULE: FOUND, 'nbd': FOUND}
        self.patch(importlib.util, 'find_spec', self.specs.get)
        self.version = self.patch(importlib.metadata, 'version')
        self.version.return_value = '34.0.0'
        self.patch(importlib, 'import_module').return_value.__path__ = [
            '/venv/nova/virt']

    def patch(self, target, name, *value):
        patch = mock.patch.object(target, name, *value)
        self.addCleanup(patch.stop)
        return patch.start()

    def problem(self, test):
        return str(self.assertRaises(check.Problem, test))

    def test_a_missing_module_says_which_file_and_how_to_install_it(self):
        self.specs[check.MODULE] = None
        self.patch(check, '_editable', lambda: False)
        problem = self.problem(check.driver_loads)
        self.assertIn('snapext.py', problem)
        self.assertIn('another prefix', problem)
        self.assertIn('pip install', problem)

    def test_an_editable_install_is_named_as_the_cause(self):
        self.specs[check.MODULE] = None
        self.patch(check, '_editable', lambda: True)
        self.assertIn('editable install', self.problem(check.driver_loads))

    def test_a_driver_that_can_not_be_imported_says_why(self):
        importlib.import_module.side_effect = ImportError('no module lxml')
        self.assertIn('no module lxml', self.problem(check.driver_loads))

    def test_no_nova_at_all_is_named_and_ends_the_checks(self):
        self.specs['nova'] = None
        [(passed, text)] = check.results()
        self.assertFalse(passed)
        self.assertIn('Nova is not installed', text)

    def test_an_old_nova_is_named(self):
        self.version.return_value = '33.1.0'
        self.assertIn('too old', self.problem(check.nova_installed))

    def test_a_missing_binding_says_how_to_get_it(self):
        self.specs['nbd'] = None
        problem = self.problem(check.nbd_binding)
        self.assertIn('python3-libnbd', problem)
        self.assertIn('--system-site-packages', problem)

    def test_an_old_libnbd_is_named(self):
        nbd = importlib.import_module('nbd')
        nbd.NBD.return_value.get_version.return_value = '1.8.3'
        self.assertIn('1.14 or newer', self.problem(check.nbd_binding))

    def test_missing_programs_are_named_with_their_packages(self):
        self.patch(check.shutil, 'which', lambda _program: None)
        self.assertIn('qemu-utils', self.problem(check.programs))

    def test_the_strategies_that_are_installed_are_listed(self):
        self.assertIn('backup, cold, external, internal, native',
                      check.strategies())

    def test_strategies_that_are_not_installed_are_named(self):
        self.patch(importlib.metadata, 'entry_points').return_value.names = {
            'backup', 'theirs'}
        problem = self.problem(check.strategies)
        self.assertIn('cold, external, internal, native', problem)
        self.assertIn('Install the built wheel', problem)

    def test_the_exit_code_tells(self):
        for results, code in (([(True, 'a')], 0),
                              ([(False, 'a'), (True, 'b')], 1)):
            self.patch(check, 'results', lambda results=results: results)
            with contextlib.redirect_stdout(io.StringIO()):
                self.assertEqual(code, main.main(['check']))
