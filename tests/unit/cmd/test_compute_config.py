# SPDX-License-Identifier: Apache-2.0

import argparse
import os
import pathlib
import sys
from unittest import mock

import fixtures
from oslo_config import cfg
from oslotest import base

from nova_snapext.cmd import compute_config
from nova_snapext.cmd import exits

PYTHON = f'{os.path.dirname(sys.executable)}/python3'


class ComputeConfigTest(base.BaseTestCase):
    """The files of a nova-compute that runs, in a /proc of the test's own."""

    def setUp(self):
        super().setUp()
        self.proc = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self.patch(compute_config, 'PROC', self.proc)
        (self.proc / 'self' / 'ns').mkdir(parents=True)
        (self.proc / 'self' / 'ns' / 'mnt').symlink_to('mnt:[1]')
        self.files = self.patch(cfg, 'find_config_files', mock.Mock(
            return_value=['/etc/nova/nova.conf',
                          '/etc/nova/nova-compute.conf']))
        self.patch(cfg, 'find_config_dirs', mock.Mock(return_value=[]))

    def patch(self, target, name, value):
        self.useFixture(fixtures.MockPatchObject(target, name, value))
        return value

    def run_(self, pid, *words, namespace='mnt:[1]', users=None,
             exe='/usr/bin/python3.11', environment=b''):
        """Run a program.

        :param users: its real, effective, saved and file system user ids
        """
        process = self.proc / str(pid)
        (process / 'ns').mkdir(parents=True)
        (process / 'ns' / 'mnt').symlink_to(namespace)
        (process / 'cwd').symlink_to('/srv')
        (process / 'cmdline').write_bytes(b''.join(
            word.encode() + b'\0' for word in words))
        (process / 'environ').write_bytes(environment)
        ids = users or 4 * (os.geteuid(),)
        (process / 'status').write_text(
            f'Name:\tx\nUid:\t{" ".join(map(str, ids))}\nGid:\t0 0 0 0\n')
        (process / 'exe').symlink_to(exe)

    def find(self, **options):
        return compute_config.find(argparse.Namespace(
            config_file=options.get('file', []),
            config_dir=options.get('dir', [])))

    def test_files_of_the_running_nova_compute_in_its_order(self):
        self.run_(7, PYTHON, '/usr/bin/nova-compute', '--config-file=/a.conf',
                  '--config-file', 'b.conf', '--log-file', '/c.log',
                  '--config-dir', '/d')
        source = self.find()
        self.assertEqual(('/a.conf', '/srv/b.conf', '/d'), source.paths())
        self.assertEqual(7, source.process.pid)
        self.assertIn('process 7', source.text)

    def test_usual_files_are_those_of_nova_compute(self):
        # Debian's nova-compute.conf decides, if it is there.
        source = self.find()
        self.assertEqual(('/etc/nova/nova.conf',
                          '/etc/nova/nova-compute.conf'), source.paths())
        self.files.assert_called_with('nova', 'nova-compute')

    def test_running_nova_compute_without_options_has_the_usual_files(self):
        self.run_(7, PYTHON, '/usr/bin/nova-compute')
        source = self.find()
        self.assertIn('/etc/nova/nova-compute.conf', source.paths())
        self.assertEqual(7, source.process.pid)

    def test_command_line_decides(self):
        self.run_(7, PYTHON, '/b/nova-compute', '--config-file', '/a.conf')
        source = self.find(file=['/x.conf'], dir=['/y'])
        self.assertEqual(('/x.conf', '/y'), source.paths())
        self.assertIsNone(source.process)
        self.assertEqual(7, self.find(file=['/a.conf']).process.pid)

    def test_programs_that_only_name_it_are_others(self):
        for pid, words in enumerate((
                ('tail', '-f', '/var/log/nova/nova-compute'),
                ('vi', 'nova-compute'), ('apt', 'install', 'nova-compute'),
                ('/usr/bin/nova-compute',), (PYTHON, '-c', 'nova-compute'),
                (PYTHON, '-s'), (PYTHON, 'x', 'nova-compute'),
                (PYTHON,), ('',)), 2):
            self.run_(pid, *words, '--config-file', '/evil.conf')
        self.assertNotIn('/evil.conf', self.find().paths())

    def test_nova_compute_in_a_container_is_not_used(self):
        self.run_(7, PYTHON, '/b/nova-compute', '--config-file', '/c.conf',
                  namespace='mnt:[2]')
        self.assertIsNone(self.find().process)
        self.files.return_value = []
        error = self.assertRaises(exits.CommandError, self.find)
        self.assertIn('in a container: run this command there', str(error))

    def test_options_of_python_are_not_those_of_nova_compute(self):
        for pid, options in enumerate((
                ('-s',), ('-sP',), ('-W', 'ignore', '-s'),
                ('-Xdev', '-X', 'utf8')), 7):
            self.run_(pid, PYTHON, *options, '/usr/bin/nova-compute',
                      '--config-file', '/a.conf')
        self.assertEqual(('/a.conf',), self.find().paths())
        self.assertEqual(4, len([*compute_config.processes()]))

    def untrusted(self):
        """Run a nova-compute with one user id of somebody else's."""
        for position in range(4):
            ids = 4 * [os.geteuid()]
            ids[position] = os.geteuid() + 4242
            self.run_(7 + position, PYTHON, '/b/nova-compute',
                      '--config-file', '/evil.conf', users=ids,
                      environment=b'PATH=/evil\0')

    def test_process_with_an_id_of_another_user_is_not_trusted(self):
        self.untrusted()
        source = self.find()
        self.assertNotIn('/evil.conf', source.paths())
        self.assertIsNone(source.process)

    def test_untrusted_process_decides_nothing_if_its_file_is_named(self):
        self.untrusted()
        source = self.find(file=['/evil.conf'])
        self.assertEqual(('/evil.conf',), source.paths())
        self.assertIsNone(source.process)
        # One that is trusted is still recognized.
        self.run_(20, PYTHON, '/b/nova-compute', '--config-file',
                  '/evil.conf')
        self.assertEqual(20, self.find(file=['/evil.conf']).process.pid)

    def test_program_that_only_calls_itself_python_is_not_trusted(self):
        self.run_(7, PYTHON, '/b/nova-compute', '--config-file', '/evil.conf',
                  exe='/usr/bin/sudo')
        self.assertNotIn('/evil.conf', self.find().paths())

    def test_program_that_this_user_is_not_told_may_be_python(self):
        self.run_(7, PYTHON, '/b/nova-compute', '--config-file', '/a.conf')
        readlink = os.readlink

        def refuse(path):
            if str(path).endswith('exe'):
                raise PermissionError
            return readlink(path)

        self.patch(os, 'readlink', refuse)
        self.assertEqual(('/a.conf',), self.find().paths())

    def test_several_with_different_files_are_refused(self):
        for pid in (7, 8):
            self.run_(pid, PYTHON, '/b/nova-compute', '--config-file',
                      f'/{pid}.conf')
        error = self.assertRaises(exits.CommandError, self.find)
        for part in ('Several nova-compute', '/7.conf', '/8.conf',
                     '--config-file'):
            self.assertIn(part, str(error))

    def test_nova_compute_of_this_python_comes_first(self):
        self.run_(7, '/elsewhere/python', '/b/nova-compute', '--config-file',
                  '/7.conf')
        self.run_(8, PYTHON, '/b/nova-compute', '--config-file', '/8.conf')
        self.assertEqual(('/8.conf',), self.find().paths())

    def test_no_configuration_at_all_is_refused(self):
        self.files.return_value = []
        self.assertIn('No configuration of Nova was found', str(
            self.assertRaises(exits.CommandError, self.find)))

    def test_file_that_may_not_be_read_is_for_another_user(self):
        path = str(self.proc / 'nova.conf')
        source = compute_config.Source(('--config-file', path), None, '')
        self.patch(compute_config, 'adopt_environment', lambda process: None)
        error = self.assertRaises(exits.CommandError, compute_config.load,
                                  source)
        self.assertNotIsInstance(error, exits.NotAllowed)
        pathlib.Path(path).touch()
        self.patch(os, 'access', lambda *_: False)
        self.assertIn('as root', str(self.assertRaises(
            exits.NotAllowed, compute_config.load, source)))

    def load(self, *arguments):
        """Return the error of reading files."""
        self.patch(compute_config, 'adopt_environment', lambda process: None)
        return self.assertRaises(
            exits.CommandError, compute_config.load,
            compute_config.Source(arguments, None, ''))

    def test_file_that_is_not_text_is_named(self):
        path = self.proc / 'nova.conf'
        path.write_bytes(b'[DEFAULT]\nx=\xff\n')
        self.assertIn(f'{path}: it is not text in UTF-8 from byte 12 on',
                      str(self.load('--config-file', str(path))))

    def test_pipe_is_left_to_oslo_config(self):
        end, other = os.pipe()
        self.addCleanup(os.close, end)
        os.write(other, b'[DEFAULT]')
        os.close(other)
        compute_config.check_files(compute_config.Source(
            ('--config-file', f'/dev/fd/{end}'), None, ''))
        self.assertEqual(b'[DEFAULT]', os.read(end, 100))

    def test_file_for_a_directory_is_refused_and_the_other_way_round(self):
        path = self.proc / 'nova.conf'
        path.touch()
        self.assertIn(f'{path}: it is no directory',
                      str(self.load('--config-dir', str(path))))
        self.assertIn(f'{self.proc}: it is a directory',
                      str(self.load('--config-file', str(self.proc))))

    def test_file_in_a_directory_that_may_not_be_read_is_for_another_user(
            self):
        path = self.proc / 'b.conf'
        path.touch()
        self.patch(os, 'access', lambda name, _mode: name != str(path))
        error = self.load('--config-dir', str(self.proc))
        self.assertIsInstance(error, exits.NotAllowed)
        self.assertIn(f'{path}: this user may not read it', str(error))

    def test_file_that_sets_an_option_last_is_named(self):
        for name, line in (('a', 'log-file = x'), ('b', 'log_file = y'),
                           ('c', 'x = y')):
            (self.proc / f'{name}.conf').write_text(f'[DEFAULT]\n{line}\n')
        source = compute_config.Source(('--config-dir', str(self.proc)),
                                       None, '')
        self.assertEqual(f' in {self.proc}/b.conf',
                         source.place_of('DEFAULT', 'log_file'))
        self.assertEqual('', source.place_of('snapext', 'log_file'))

    def environment(self, path, content=b''):
        self.run_(7, PYTHON, '/b/nova-compute', '--config-file', '/7.conf',
                  environment=content)
        self.useFixture(fixtures.EnvironmentVariable('PATH', path))
        for name in ('OS_SNAPEXT__STRATEGY', 'OS_PASSWORD'):
            self.useFixture(fixtures.EnvironmentVariable(name))
        compute_config.adopt_environment(self.find().process)

    def test_programs_and_options_are_those_of_nova_compute(self):
        self.environment('/mine', b'PATH=/opt/bin\0OS_SNAPEXT__STRATEGY=cold'
                                  b'\0OS_PASSWORD=x\0nonsense\0')
        self.assertEqual('/opt/bin', os.environ['PATH'])
        self.assertEqual('cold', os.environ['OS_SNAPEXT__STRATEGY'])
        self.assertNotIn('OS_PASSWORD', os.environ)

    def test_empty_path_is_replaced(self):
        self.environment('')
        self.assertEqual(compute_config.USUAL_PATH, os.environ['PATH'])
