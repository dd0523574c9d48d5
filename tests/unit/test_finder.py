# SPDX-License-Identifier: Apache-2.0

import pathlib
import shutil
import subprocess

import fixtures
from oslotest import base

ROOT = pathlib.Path(__file__).parents[2]

#: Without its site directories, where a real Nova may be.
PYTHON = ('/usr/bin/python3', '-I', '-S')

#: A driver without its imports.
STAND_IN = 'class SnapextDriver: pass\n'


class FinderTest(base.BaseTestCase):
    """A distribution's Nova, and pip's nova-snapext in another directory."""

    def setUp(self):
        super().setUp()
        root = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self.distribution, self.pip = root / 'dist-packages', root / 'pip'
        self.install_nova()
        (self.pip / 'nova/virt').mkdir(parents=True)
        (self.pip / 'nova/virt/snapext.py').write_text(STAND_IN)
        (self.pip / 'nova_snapext').mkdir()
        for name in ('__init__.py', 'finder.py'):
            shutil.copy(ROOT / 'nova_snapext' / name,
                        self.pip / 'nova_snapext')
        shutil.copy(ROOT / 'nova-snapext.pth', self.pip)

    def install_nova(self):
        shutil.rmtree(self.distribution, ignore_errors=True)
        (self.distribution / 'nova/virt').mkdir(parents=True)
        (self.distribution / 'nova/__init__.py').touch()
        (self.distribution / 'nova/virt/__init__.py').touch()

    def run_python(self, program):
        """Run a program where both directories are site directories.

        :returns: what it prints
        """
        result = subprocess.run(
            (*PYTHON, '-c', f'import site, sys\n'
             # As /usr/local is before /usr.
             f'site.addsitedir({str(self.pip)!r})\n'
             f'site.addsitedir({str(self.distribution)!r})\n{program}'),
            capture_output=True, text=True)
        return result.stdout + result.stderr

    def found(self):
        return self.run_python('from nova.virt import snapext\n'
                               'print(snapext.SnapextDriver, '
                               'snapext.__file__)')

    def test_driver_beside_the_nova_of_a_distribution_is_found(self):
        self.assertIn(f'{self.pip}/nova/virt/snapext.py', self.found())

    def test_driver_is_found_after_nova_was_installed_again(self):
        self.found()
        self.install_nova()
        self.assertIn(f'{self.pip}/nova/virt/snapext.py', self.found())

    def test_without_the_start_file_the_driver_is_not_found(self):
        (self.pip / 'nova-snapext.pth').unlink()
        self.assertIn('cannot import name', self.found())

    def test_driver_in_the_directory_of_nova_comes_first(self):
        own = self.distribution / 'nova/virt/snapext.py'
        own.write_text(STAND_IN)
        self.assertIn(str(own), self.found())

    def test_missing_module_is_an_import_error(self):
        (self.pip / 'nova/virt/snapext.py').unlink()
        self.assertIn('ImportError', self.found())

    def test_other_missing_module_is_an_import_error(self):
        self.assertIn('No module named',
                      self.run_python('import nova.virt.other'))

    def test_start_of_python_imports_the_finder_alone(self):
        program = ('print(sorted(set(sys.modules) - before))\n'
                   'print(sum(getattr(f, "__module__", "") == '
                   '"nova_snapext.finder" for f in sys.meta_path))')
        started = subprocess.run(
            (*PYTHON, '-c', 'import site, sys, encodings.utf_8\n'
             'before = set(sys.modules)\n'
             f'site.addsitedir({str(self.pip)!r})\n'
             f'site.addsitedir({str(self.pip)!r})\n{program}'),
            check=True, capture_output=True, text=True).stdout
        self.assertEqual(
            "['nova_snapext', 'nova_snapext.finder']\n1\n", started)
