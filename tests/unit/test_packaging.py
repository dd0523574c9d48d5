# SPDX-License-Identifier: Apache-2.0

import email
import importlib.metadata
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import unittest
import zipfile

from oslotest import base
from packaging import version

ROOT = pathlib.Path(__file__).parents[2]

#: As "python -m build" without isolation. Not with the host's packages: they
#: may not work with this setuptools.
BUILD = f"""
import sys
sys.path.insert(0, {sysconfig.get_path('purelib')!r})
import pathlib
import runpy
from pbr import build
directory = sys.argv[1]  # setuptools changes it
pathlib.Path(directory, 'result').write_text(' '.join((
    build.build_sdist(directory), build.build_wheel(directory),
    runpy.run_path('doc/source/conf.py')['release'])))
"""


def git(*arguments):
    # A checkout may belong to another user than the tests'.
    return subprocess.run(('git', '-c', 'safe.directory=*', *arguments),
                          check=True, capture_output=True, text=True).stdout


@unittest.skipIf(version.parse(importlib.metadata.version('pbr')) <
                 version.parse('7.1'),
                 'this pbr needs the pkg_resources of older setuptools')
@unittest.skipUnless((ROOT / '.git').exists(),
                     'pbr needs the history of git for the version')
class ArchivesTest(base.BaseTestCase):
    """The archives of a copy of this checkout, as it is now."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(directory.cleanup)
        copy = pathlib.Path(directory.name, 'copy')
        git('clone', '--quiet', '--shared', '--no-checkout', str(ROOT),
            str(copy))
        listed = git('-C', str(ROOT), 'ls-files', '-z', '--cached',
                     '--others', '--exclude-standard').split('\0')
        cls.files = {name for name in listed if name and
                     (ROOT / name).is_file()}
        for name in cls.files:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
        git('-C', str(copy), 'add', '--all')
        subprocess.run(
            (sys.executable, '-S', '-c', BUILD, directory.name),
            cwd=copy, check=True, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL)
        sdist, wheel, cls.docs_version = pathlib.Path(
            directory.name, 'result').read_text().split()
        with tarfile.open(pathlib.Path(directory.name, sdist)) as archive:
            cls.sdist = {name.partition('/')[2]
                         for name in archive.getnames()}
            cls.pkg_info = archive.extractfile(
                f'{sdist.removesuffix(".tar.gz")}/PKG-INFO').read()
        with zipfile.ZipFile(pathlib.Path(directory.name, wheel)) as archive:
            cls.wheel = set(archive.namelist())
            [metadata] = [name for name in cls.wheel
                          if name.endswith('.dist-info/METADATA')]
            cls.metadata = archive.read(metadata)
            cls.start = archive.read('nova-snapext.pth').decode()

    def test_source_archive_has_all_files_of_the_checkout(self):
        # pbr leaves this one out.
        self.assertEqual({'.gitignore'}, self.files - self.sdist)

    def test_wheel_has_all_modules(self):
        self.assertEqual(
            set(), {name for name in self.files
                    if re.fullmatch(r'(nova|nova_snapext)/.*\.py', name)} -
            self.wheel)

    def test_wheel_has_data_files_where_the_documentation_says(self):
        data = {name.partition('.data/data/')[2] for name in self.wheel}
        wanted = {name for name in self.files
                  if name.startswith('etc/apparmor.d/')}
        self.assertEqual(set(), wanted - data)

    def test_wheel_starts_the_finder_and_nothing_else(self):
        self.assertEqual('import nova_snapext.finder; '
                         'nova_snapext.finder.register()\n', self.start)

    def test_archives_and_documentation_have_one_version(self):
        versions = {email.message_from_bytes(text)['Version']
                    for text in (self.pkg_info, self.metadata)}
        self.assertEqual({self.docs_version}, versions)

    def test_paths_in_the_readme_are_in_the_source_archive(self):
        paths = re.findall(r'^\.\. _[^:]+: (?!https?:)(\S+)$',
                           (ROOT / 'README.rst').read_text(), re.MULTILINE)
        self.assertTrue(paths)
        self.assertEqual(set(), set(paths) - self.sdist)
