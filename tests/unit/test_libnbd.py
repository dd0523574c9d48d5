# SPDX-License-Identifier: Apache-2.0

import importlib.machinery
import importlib.util
import pathlib
import subprocess
import sys
from unittest import mock

import fixtures
from oslotest import base

from nova_snapext import libnbd

ROOT = pathlib.Path(__file__).parents[2]

#: A binding of this Python, without compiled parts.
BINDING = """
import libnbdmod

class NBD:
    def get_version(self):
        return %r
"""


class LoadTest(base.BaseTestCase):
    """A virtual environment that does not see the host's packages."""

    def setUp(self):
        super().setUp()
        self.directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path)
        for name, value in (('DIRECTORIES', ('/none', str(self.directory))),
                            ('MODULE', 'nbd_of_test'),
                            ('COMPILED', 'libnbdmod_of_test')):
            self.useFixture(fixtures.MockPatchObject(libnbd, name, value))
        self.useFixture(fixtures.MockPatch('sys.modules', {**sys.modules}))

    def install(self, suffix, version='1.24.1', text=BINDING):
        """Install a binding into the host's directory.

        :param suffix: of the compiled part, which is Python here
        """
        (self.directory / 'nbd_of_test.py').write_text(
            (text % version).replace('libnbdmod', 'libnbdmod_of_test'))
        (self.directory / f'libnbdmod_of_test{suffix}').write_text('')

    def load(self):
        # The loader of a suffix is fixed in the interpreter.
        locate = importlib.util.spec_from_file_location
        with mock.patch.object(
                importlib.util, 'spec_from_file_location',
                lambda name, path: locate(
                    name, path, loader=importlib.machinery.SourceFileLoader(
                        name, str(path)))):
            return libnbd.load()

    def error(self):
        """Return the text of the error, which is one line."""
        text = str(self.assertRaises(libnbd.LibnbdError, self.load))
        self.assertNotIn('\n', text)
        return text

    def test_binding_of_the_host_is_loaded_alone(self):
        self.install(importlib.machinery.EXTENSION_SUFFIXES[0])
        (self.directory / 'openssl_of_test.py').write_text('')
        module = self.load()
        self.assertIs(sys.modules['nbd_of_test'], module)
        self.assertNotIn(str(self.directory), sys.path)
        self.assertRaises(ImportError, __import__, 'openssl_of_test')

    def test_binding_that_python_finds_is_used(self):
        self.useFixture(fixtures.MockPatchObject(libnbd, 'MODULE', 'nbd'))
        self.install(importlib.machinery.EXTENSION_SUFFIXES[0])
        self.assertEqual('nbd', libnbd.load().__name__)

    def test_missing_binding_is_reported_with_its_package(self):
        text = self.error()
        for part in ('Install the package python3-libnbd', 'not on PyPI',
                     'container'):
            self.assertIn(part, text)

    def test_binding_of_another_python_is_reported_with_both(self):
        self.install('.cpython-39-x86_64-linux-gnu.so')
        text = self.error()
        for part in ('cpython-39', sys.executable, '/usr/bin/python3'):
            self.assertIn(part, text)

    def test_compiled_part_without_a_version_is_used_by_its_directory(self):
        self.install('.so')
        self.assertIn('another Python', self.error())
        own = self.directory / f'python{libnbd.PYTHON}'
        own.mkdir()
        for file in ('nbd_of_test.py', 'libnbdmod_of_test.so'):
            (self.directory / file).rename(own / file)
        self.useFixture(fixtures.MockPatchObject(
            libnbd, 'DIRECTORIES', (str(own),)))
        self.assertEqual('1.24.1', self.load().NBD().get_version())

    def test_old_binding_is_reported_with_its_file(self):
        self.install(importlib.machinery.EXTENSION_SUFFIXES[0], '1.8.3')
        text = self.error()
        for part in ('1.8.3', str(self.directory), '1.14 or newer'):
            self.assertIn(part, text)

    def test_binding_that_can_not_be_imported_leaves_no_module(self):
        self.install(importlib.machinery.EXTENSION_SUFFIXES[0],
                     text='raise ImportError("%s:\\n no libnbd.so.0")')
        text = self.error()
        for part in ('no libnbd.so.0', 'python3-libnbd', 'again'):
            self.assertIn(part, text)
        self.assertNotIn('nbd_of_test', sys.modules)

    def test_other_package_of_the_same_name_is_reported_with_its_file(self):
        self.install(importlib.machinery.EXTENSION_SUFFIXES[0],
                     text='# %s')
        self.assertIn(f'{self.directory}/nbd_of_test.py is not libnbd',
                      self.error())


class RealBindingTest(base.BaseTestCase):

    def test_isolated_python_loads_the_binding_of_the_host(self):
        # As a virtual environment without the system's packages.
        printed = subprocess.run(
            ('/usr/bin/python3', '-I', '-S', '-c',
             f'import sys; sys.path.insert(0, {str(ROOT)!r})\n'
             'from nova_snapext import libnbd; loaded = libnbd.load()\n'
             'import nbd; print(nbd is loaded, nbd.NBD().get_version())\n'
             'print(any("dist-packages" in path for path in sys.path))'),
            check=True, capture_output=True, text=True).stdout
        self.assertRegex(printed, r'^True 1\.\d+\.\d+\nFalse\n$')
