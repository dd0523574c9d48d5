# SPDX-License-Identifier: Apache-2.0
"""The commands in processes of their own: other users, and without a PATH."""

import os
import pathlib
import pwd
import socket
import subprocess
import sys

import fixtures
from oslotest import base

from nova_snapext.cmd import exits

ROOT = pathlib.Path(__file__).parents[3]


# The command, whose patience with libvirtd is short.
HANGING = """
import sys
from nova_snapext.cmd.check import hypervisor
from nova_snapext.cmd import main
from nova_snapext import compat
hypervisor.TIMEOUT = 0.5
code = main.main()
if compat.concurrency_mode_threading():
    print('native threads', file=sys.stderr)
main.standalone.end(code)
"""

# A command in a Python that has this package and the standard library only.
BARE = """
import sys
sys.path.insert(0, sys.argv.pop(1))
sys.argv[0] = sys.argv.pop(1)
from nova_snapext.cmd import main
from nova_snapext.cmd import upgrade
commands = {'nova-snapext': main, 'nova-snapext-status': upgrade}
commands[sys.argv[0]].console()
"""


class WithoutNovaTest(base.BaseTestCase):
    """The commands where no other package is installed."""

    def run_(self, *arguments):
        run = subprocess.run(
            [sys.executable, '-S', '-I', '-c', BARE, str(ROOT), *arguments],
            capture_output=True, text=True, check=False, cwd='/')
        self.assertNotIn('Traceback', run.stderr)
        return run

    def test_check_reports_that_nova_is_missing(self):
        run = self.run_('nova-snapext', 'check')
        self.assertIn(f'FAIL  nova: Nova is not installed for '
                      f'{sys.executable}.', run.stdout)
        self.assertEqual(exits.FOUND, run.returncode)

    def test_version_and_help_are_printed(self):
        for arguments in (('--version',), ('--help',), ('check', '--help')):
            run = self.run_('nova-snapext', *arguments)
            self.assertEqual(('', 0), (run.stderr, run.returncode))

    def test_each_other_command_names_check(self):
        for code, *arguments in (
                (exits.NOT_DONE, 'nova-snapext', 'status'),
                (exits.NOT_DONE, 'nova-snapext', 'recover'),
                (exits.NOT_DONE, 'nova-snapext', 'drain'),
                (255, 'nova-snapext-status', 'upgrade', 'check')):
            run = self.run_(*arguments)
            self.assertIn('"nova-snapext check" tells what is missing',
                          run.stderr)
            self.assertEqual(code, run.returncode)


class ProcessTest(base.BaseTestCase):
    def run_(self, *arguments, user=None, module='main', **environment):
        return subprocess.run(
            [sys.executable, '-P', '-c', f'from nova_snapext.cmd import '
             f'{module}; {module}.console()', *arguments],
            capture_output=True, text=True, check=False, cwd='/', user=user,
            env={'PYTHONPATH': str(ROOT), 'HOME': '/', **environment})

    def config(self, text):
        directory = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        for parent in (directory, *directory.parents):
            if not parent.stat().st_mode & 0o001:
                parent.chmod(0o711)
        path = directory / 'nova.conf'
        path.write_text(text.format(directory=directory))
        path.chmod(0o644)
        return directory, str(path)

    def assert_clean(self, run):
        self.assertEqual('', run.stderr)
        self.assertNotIn('Traceback', run.stdout)
        self.assertNotIn('Warning', run.stdout)

    def test_empty_path_is_no_obstacle(self):
        _directory, path = self.config(
            '[DEFAULT]\nstate_path={directory}\nmy_ip=127.0.0.1\n')
        run = self.run_('check', '--config-file', path, PATH='')
        self.assert_clean(run)
        self.assertIn('ok    programs: qemu-nbd', run.stdout)
        self.assertEqual(exits.FOUND, run.returncode)

    def test_nobody_is_told_that_he_does_not_see_everything(self):
        _directory, path = self.config(
            '[DEFAULT]\nstate_path=/root\nmy_ip=127.0.0.1\n'
            'compute_driver=snapext.SnapextDriver\n')
        if not os.access(sys.executable, os.X_OK) or os.geteuid() != 0:
            self.skipTest('only root can be nobody')
        run = self.run_('check', '--config-file', path,
                        user=pwd.getpwnam('nobody').pw_uid)
        self.assert_clean(run)
        self.assertIn('This user does not see', run.stdout)
        self.assertIn('sudo -u root', run.stdout)

    def test_broken_configuration_is_reported_without_its_content(self):
        _directory, path = self.config('[DEFAULT\npassword=geheim\n')
        for command_, code in (('check', exits.FOUND),
                               ('recover', exits.NOT_DONE)):
            run = self.run_(command_, '--config-file', path)
            self.assertEqual(code, run.returncode, run.stderr)
            output = run.stdout + run.stderr
            self.assertIn('can\'t be read', output)
            self.assertNotIn('geheim', output)
            self.assertNotIn('Traceback', output)

    def test_value_of_an_option_of_the_command_line_is_reported(self):
        # oslo.config ends the process.
        _directory, path = self.config('[DEFAULT]\ndebug = yes please\n')
        for command_, code in ((('check',), exits.FOUND),
                               (('recover',), exits.NOT_DONE),
                               (('status', '--format', 'prometheus'),
                                exits.NOT_DONE)):
            run = self.run_(*command_, '--config-file', path)
            self.assertEqual(code, run.returncode)
            self.assertIn(f'[DEFAULT]debug in {path} can\'t be used: Invalid '
                          f'Boolean value: yes please. Correct it.',
                          run.stdout + run.stderr)
        self.assertIn('nova_snapext_status_success 0', run.stdout)
        run = self.run_('--config-file', path, 'upgrade', 'check',
                        module='upgrade')
        self.assertEqual(255, run.returncode)
        self.assertIn('[DEFAULT]debug', run.stderr)

    def test_value_that_names_an_unknown_option_is_reported(self):
        _directory, path = self.config('[DEFAULT]\nlog_file = $nope\n')
        run = self.run_('recover', '--config-file', path)
        self.assertIn(f'no such option nope in group [DEFAULT]. Correct '
                      f'{path}.', run.stderr)

    def test_log_of_nova_is_no_output_of_a_command(self):
        _directory, path = self.config(
            '[DEFAULT]\nstate_path={directory}\nmy_ip=127.0.0.1\n'
            'transport_url=fake:/\n[libvirt]\n'
            'connection_uri=qemu:///system?socket={directory}/none\n')
        for command_ in ('recover', 'drain'):
            run = self.run_(command_, '--config-file', path)
            self.assertEqual(exits.NOT_DONE, run.returncode, run.stderr)
            self.assertEqual('There is nothing to clean up in the journal.\n',
                             run.stdout)
            [line] = run.stderr.splitlines()
            self.assertIn('/none\': No such file or directory. Check that '
                          'libvirtd runs', line)
        # What is asked for goes to stderr.
        run = self.run_('--debug', 'recover', '--config-file', path)
        self.assertNotIn('nova.virt', run.stdout)
        self.assertIn('nova.virt.libvirt.host', run.stderr)

    def test_log_that_can_not_be_written_is_reported(self):
        for option in ('log_file', 'log_config_append'):
            _directory, path = self.config(
                f'[DEFAULT]\nstate_path={{directory}}\n{option}=/no/x\n')
            run = self.run_('recover', '--dry-run', '--config-file', path)
            self.assertEqual(exits.NOT_DONE, run.returncode)
            self.assertIn('Nova\'s log can\'t be written', run.stderr)
            self.assertIn('/no/x', run.stderr)

    def test_missing_configuration_is_reported(self):
        for command_ in ('check', 'status'):
            run = self.run_(command_, '--config-file', '/no/nova.conf')
            self.assertIn('/no/nova.conf: it does not exist',
                          run.stdout + run.stderr)
            self.assertNotEqual(0, run.returncode)

    def test_version_and_help_need_no_configuration(self):
        self.assertIn('nova 3', self.run_('--version').stdout)
        for arguments in ((), ('check',), ('status',), ('recover',),
                          ('drain',)):
            run = self.run_(*arguments, '--help')
            self.assertEqual(0, run.returncode)
            for part in ('examples:', 'exit codes:'):
                self.assertIn(part, run.stdout)
            self.assertLess(max(map(len, run.stdout.splitlines())), 80)
            if arguments:
                self.assertIn('--config-dir DIRECTORY', run.stdout)

    def test_libvirtd_that_hangs_is_reported(self):
        directory, path = self.config(
            '[DEFAULT]\nstate_path={directory}\nmy_ip=127.0.0.1\n'
            '[libvirt]\n'
            'connection_uri=qemu:///system?socket={directory}/socket\n')
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(str(directory / 'socket'))
            silent.listen()
            run = subprocess.run(
                [sys.executable, '-P', '-c', HANGING, 'check',
                 '--config-file', path], capture_output=True, text=True,
                check=False, cwd='/', timeout=60,
                env={'PYTHONPATH': str(ROOT), 'HOME': '/'})
        self.assertIn('libvirtd did not respond for 0.5 seconds', run.stdout)
        self.assertIn(' checks: ', run.stdout, run.stderr)
        self.assertIn('native threads', run.stderr)

    def test_wrong_usage_has_a_code_of_its_own(self):
        self.assertEqual(exits.USAGE, self.run_('chekc').returncode)

    def shell(self, script, *arguments):
        """Run the commands in a shell, as "$@" and "$STATUS"."""
        start = 'from nova_snapext.cmd import {0}; {0}.console()'
        return subprocess.run(
            ['sh', '-c', script, 'sh', sys.executable, '-P', '-c',
             start.format('main'), *arguments],
            capture_output=True, text=True, check=False, cwd='/',
            env={'PYTHONPATH': str(ROOT), 'HOME': '/', 'STATUS':
                 f"{sys.executable} -P -c '{start.format('upgrade')}'"})

    def test_descriptors_that_are_closed_end_no_command(self):
        _directory, path = self.config(
            '[DEFAULT]\nstate_path={directory}\nmy_ip=127.0.0.1\n')
        for code, script in (
                (exits.CLEAN, f'"$@" status --config-file {path} >&-'),
                (exits.CLEAN, f'"$@" status --config-file {path} <&- >&- '
                              f'2>&-'),
                (exits.NOT_DONE, '"$@" status --config-file /none 2>&-'),
                (exits.FOUND, '"$@" check --config-file /none 2>&-'),
                (255, 'eval "$STATUS" --config-file /none upgrade check '
                      '2>&-')):
            run = self.shell(script)
            self.assertEqual((code, ''), (run.returncode, run.stderr), script)
            self.assertNotIn('Traceback', run.stdout)

    def test_output_that_can_not_be_written_is_an_error(self):
        for arguments in ('--version', '--help', 'check --config-file /none'):
            run = self.shell(f'"$@" {arguments} > /dev/full')
            self.assertEqual(exits.NOT_DONE, run.returncode)
            self.assertIn('No space left on device', run.stderr)
            self.assertNotIn('Traceback', run.stderr)
        run = self.shell('"$@" status --config-file /none 2> /dev/full')
        self.assertEqual(exits.NOT_DONE, run.returncode)

    def test_directory_that_was_removed_is_no_obstacle(self):
        directory, path = self.config(
            '[DEFAULT]\nstate_path={directory}\nmy_ip=127.0.0.1\n')
        gone = f'mkdir {directory}/gone; cd {directory}/gone; rmdir ../gone;'
        for command_ in (f'"$@" status --config-file {path}',
                         f'eval "$STATUS" --config-file {path} upgrade '
                         f'check'):
            run = self.shell(f'{gone} {command_}')
            self.assertIn(run.returncode, (0, 1), run.stderr)
            self.assertEqual('', run.stderr)

    def test_reader_that_has_enough_is_no_error(self):
        run = subprocess.run(
            ['sh', '-c', f'{sys.executable} -m nova_snapext.cmd.main check '
                         f'--config-file /no | true'],
            capture_output=True, text=True, check=False, cwd=ROOT)
        self.assertEqual('', run.stderr)
