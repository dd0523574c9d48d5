# SPDX-License-Identifier: Apache-2.0

import argparse
import contextlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
from unittest import mock

import fixtures
import glanceclient.exc
import jsonschema
from keystoneauth1 import exceptions as ks_exceptions
from nova import objects
from nova import utils as nova_utils
import oslo_messaging
from oslo_rootwrap import wrapper

from nova_snapext import bounded
from nova_snapext.cmd.check import ceph
from nova_snapext.cmd.check import command
from nova_snapext.cmd.check import configuration
from nova_snapext.cmd.check import directories
from nova_snapext.cmd.check import glance
from nova_snapext.cmd.check import guests
from nova_snapext.cmd.check import hypervisor
from nova_snapext.cmd.check import installation
from nova_snapext.cmd.check import item
from nova_snapext.cmd.check import security
from nova_snapext.cmd.check import trial
from nova_snapext.cmd import check_ceph
from nova_snapext.cmd import compute_config
from nova_snapext.cmd import exits
from nova_snapext.cmd import main
from nova_snapext.cmd import recover
from nova_snapext.cmd import standalone
from nova_snapext import compat
from nova_snapext import finder
from nova_snapext.hypervisor import confinement
from nova_snapext import journal
from nova_snapext import libnbd
from nova_snapext import plan as planning
from nova_snapext.snapshot import published
from nova_snapext import upload
from tests.unit import base

ROOT = pathlib.Path(__file__).parents[3]
SCHEMA = ROOT / 'doc/source/cli/check-schema.json'
FOUND = mock.Mock(origin='/venv/nova/__init__.py')
OK, WARNING, UNKNOWN, FAILED = item.Status


class CheckTestCase(base.TestCase):

    def setUp(self):
        super().setUp()
        self.host = item.Host(argparse.Namespace(
            config_file=[], config_dir=[], debug=False, trial=False))

    def patch(self, target, name, *value, **kwargs):
        patch = mock.patch.object(target, name, *value, **kwargs)
        self.addCleanup(patch.stop)
        return patch.start()

    def found(self, check, *statuses):
        """Check the statuses of the items, and return all their texts."""
        items = [*check(self.host)]
        self.assertEqual([*statuses], [one.status for one in items],
                         [*map(command.text, items)])
        return '\n'.join(map(command.text, items))

    def directory(self, mode=0o755):
        path = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        path.chmod(mode)
        return path


class InstallationTest(CheckTestCase):

    def setUp(self):
        super().setUp()
        self.specs = {'nova': FOUND, installation.MODULE: FOUND}
        self.patch(importlib.util, 'find_spec', self.specs.get)
        self.version = self.patch(importlib.metadata, 'version')
        self.version.return_value = '34.0.0'

    def test_missing_nova_is_reported_and_ends_the_checks(self):
        self.specs['nova'] = None
        items = [*command.items(self.host.options)]
        self.assertEqual([('nova', FAILED)],
                         [(one.name, one.status) for one in items])
        self.assertIn('Nova is not installed', items[0].text)

    def test_old_nova_is_reported(self):
        self.version.return_value = '30.3.0'
        self.assertIn('Nova 30.3.0 is too old: nova-snapext needs Nova 31',
                      self.found(installation.nova, FAILED))

    def test_nova_that_is_newer_than_the_tests_is_said(self):
        self.version.return_value = '35.0.0'
        self.assertIn('Nova 35.0.0 is newer than',
                      self.found(installation.nova, WARNING))

    def test_missing_module_is_reported_with_a_remedy(self):
        self.specs[installation.MODULE] = None
        self.patch(importlib, 'import_module').return_value.__path__ = ['/v']
        is_editable = self.patch(installation, '_editable')
        for editable, cause in ((False, 'nova-snapext.pth'),
                                (True, 'editable install')):
            is_editable.return_value = editable
            text = self.found(installation.driver, FAILED)
            for part in ('/v/snapext.py does not exist', cause,
                         'pip install'):
                self.assertIn(part, text)

    def test_externally_managed_python_is_told_how_pip_installs(self):
        directory = self.directory()
        (directory / 'EXTERNALLY-MANAGED').touch()
        self.patch(installation.sysconfig, 'get_path',
                   return_value=str(directory))
        self.patch(sys, 'prefix', sys.base_prefix)
        self.assertIn('--break-system-packages', installation._install())

    def test_module_that_this_install_lacks_is_not_said_to_be_elsewhere(self):
        self.specs[installation.MODULE] = None
        self.patch(installation, '_editable', return_value=False)
        self.patch(sys, 'meta_path', [*sys.meta_path, finder.Finder])
        self.assertIn('not installed with all its files',
                      self.found(installation.driver, FAILED))

    def test_failed_import_of_the_driver_is_reported_with_its_reason(self):
        self.patch(importlib, 'import_module',
                   side_effect=ImportError('no module lxml'))
        self.assertIn('no module lxml',
                      self.found(installation.driver, FAILED))

    def test_binding_that_can_not_be_used_is_reported_in_its_words(self):
        self.patch(libnbd, 'load', side_effect=libnbd.LibnbdError('old'))
        self.assertIn('old', self.found(installation.binding, FAILED))

    def test_binding_is_told_with_its_place(self):
        module = self.patch(libnbd, 'load').return_value
        module.__file__ = '/usr/lib/nbd.py'
        self.assertIn('/usr/lib/nbd.py', self.found(installation.binding, OK))

    def test_missing_programs_are_reported_with_their_packages(self):
        self.patch(shutil, 'which', lambda _program: None)
        self.assertIn('qemu-utils', self.found(installation.programs, FAILED))

    def test_missing_strategies_are_reported(self):
        self.patch(importlib.metadata, 'entry_points').return_value.names = {
            'backup', 'theirs'}
        text = self.found(installation.strategies, FAILED)
        self.assertIn('cold, external, internal, native, rbd', text)
        self.assertIn('Install the built wheel', text)

    def test_changed_names_of_packages_are_reported_with_the_versions(self):
        self.patch(compat, 'check', lambda: ['one.x: gone', 'two.y: gone'])
        text = self.found(installation.packages, FAILED)
        for part in ('one.x: gone', 'two.y: gone', 'nova 34.0.0',
                     'Nova 31 (2025.1) to 34 (2026.2) is supported'):
            self.assertIn(part, text)

    def test_expected_names_are_counted(self):
        self.patch(compat, 'check', list)
        self.assertIn(f'{len(compat.names())} names as expected',
                      self.found(installation.packages, OK))


class ConfigurationTest(CheckTestCase):

    def configure(self, *lines, name='nova.conf'):
        """Read a configuration file as nova-compute would."""
        path = self.directory() / name
        path.write_text('\n'.join(('[DEFAULT]', *lines)) + '\n')
        self.CONF(['--config-file', str(path)], project='nova',
                  default_config_dirs=[])
        self.addCleanup(self.CONF, [], default_config_files=[])
        self.host.source = compute_config.Source(
            ('--config-file', str(path)), None, 'named')
        return path

    def test_driver_that_is_on_is_told_with_its_file(self):
        path = self.configure('compute_driver = snapext.SnapextDriver')
        self.CONF.clear_override('compute_driver')
        self.assertIn(str(path),
                      self.found(configuration.compute_driver, OK))

    def test_driver_that_a_later_file_turns_off_is_reported_with_that_file(
            self):
        first = self.configure('compute_driver = snapext.SnapextDriver')
        second = self.directory() / 'nova-compute.conf'
        second.write_text('[DEFAULT]\ncompute_driver=libvirt.LibvirtDriver\n')
        self.CONF.clear_override('compute_driver')
        self.CONF(['--config-file', str(first), '--config-file', str(second)],
                  project='nova', default_config_dirs=[])
        text = self.found(configuration.compute_driver, FAILED)
        self.assertIn(f'compute_driver is libvirt.LibvirtDriver, set in '
                      f'{second}', text)
        self.assertIn(f'[DEFAULT] of {second}, and restart', text)

    def test_driver_that_is_not_set_is_reported(self):
        self.configure('debug = false')
        self.CONF.clear_override('compute_driver')
        self.flags(compute_driver=None)
        self.assertIn('compute_driver is not set', self.found(
            configuration.compute_driver, FAILED))

    def test_driver_that_names_an_unknown_option_is_reported_with_it(self):
        path = self.configure('compute_driver = $nope')
        self.CONF.clear_override('compute_driver')
        self.assertIn('no such option nope', self.found(
            configuration.compute_driver, FAILED))
        self.assertIn(f'[DEFAULT]compute_driver in {path} can\'t be used: no '
                      f'such option nope',
                      self.found(configuration.options, FAILED))

    def test_value_that_no_command_can_use_is_named_with_its_file(self):
        for group, line, reason in (
                ('DEFAULT', 'host = h_%st!', 'is not a valid host address'),
                ('snapext', 'journal_directory = /x/$nope',
                 'no such option nope')):
            path, name = self.configure(f'[{group}]', line), line.split()[0]
            self.CONF.clear_override(name, group=None if group == 'DEFAULT'
                                     else group)
            error = self.assertRaises(
                exits.CommandError, standalone.check_values, self.host.source)
            self.assertIn(f'[{group}]{name} in {path} can\'t be used: ',
                          str(error))
            self.assertIn(reason, str(error))
            self.assertNotIn('LocationInfo', str(error))

    def test_state_path_that_names_an_unknown_option_ends_no_check(self):
        self.configure('state_path = $nope')
        self.CONF.clear_override('state_path')
        self.assertIn('no such option nope',
                      self.found(command._become_nova, UNKNOWN))

    def test_value_that_can_not_be_used_is_reported(self):
        path = self.configure('[snapext]', 'agent_timeout = soon',
                              'detect_zeroes = maybe')
        text = self.found(configuration.options, FAILED, FAILED)
        self.assertIn(f'[snapext]agent_timeout in {path} can\'t be used: '
                      f'invalid', text)
        self.assertIn(f'[snapext]detect_zeroes in {path}', text)

    def test_check_that_needs_such_a_value_names_it_with_its_file(self):
        path = self.configure('[snapext]', 'min_free_disk_mb = -3')
        self.CONF.clear_override('min_free_disk_mb', group='snapext')
        [one] = command._run(directories.space, self.host)
        self.assertEqual(UNKNOWN, one.status)
        self.assertIn(f'Value for option min_free_disk_mb in {path} is not '
                      f'valid', one.text)
        self.assertIn('"options"', one.remedy)

    def test_strategy_that_is_not_installed_is_reported(self):
        self.configure('[snapext]', 'strategy = bakcup')
        self.assertIn('strategy names bakcup',
                      self.found(configuration.options, FAILED))

    def test_option_that_does_not_exist_is_reported_with_the_nearest(self):
        self.configure('[snapext]', 'agent_timeuot = 3')
        self.assertIn('Did you mean agent_timeout?',
                      self.found(configuration.options, WARNING))

    def test_strategy_that_serves_no_disk_in_ceph_is_reported(self):
        self.configure('[libvirt]', 'images_type = rbd', '[snapext]',
                       'strategy = external,cold')
        self.assertIn('Write "external,cold,rbd"',
                      self.found(configuration.options, FAILED))

    def test_guests_without_qemu_are_told(self):
        self.configure('[libvirt]', 'virt_type = lxc')
        self.assertIn('virt_type is lxc', self.found(
            configuration.options, WARNING))

    def test_defaults_can_be_used(self):
        self.configure('debug = false')
        self.found(configuration.options, OK)

    def test_configuration_that_can_not_be_read_is_reported(self):
        self.patch(compute_config, 'find',
                   side_effect=exits.CommandError('none found'))
        self.assertIn('none found', self.found(configuration.files, FAILED))
        self.assertIsNone(self.host.source)

    def test_configuration_of_another_user_is_unknown(self):
        self.patch(compute_config, 'find',
                   side_effect=exits.NotAllowed('run it as root'))
        text = self.found(configuration.files, UNKNOWN)
        for part in ('does not see', 'run it as root'):
            self.assertIn(part, text)

    def run_nova_compute(self, path, **attributes):
        process = mock.create_autospec(
            compute_config.Process, instance=True, pid=4,
            interpreter=attributes.get('interpreter', sys.executable))
        process.started_at.return_value = (
            path.stat().st_mtime + attributes.get('age', 1))
        self.host.source = compute_config.Source(
            ('--config-file', str(path)), process, 'running')

    def test_file_that_is_newer_than_nova_compute_is_reported(self):
        self.run_nova_compute(self.configure(), age=-2)
        self.assertIn('Restart nova-compute', self.found(
            configuration.running, WARNING))

    def test_start_that_linux_reports_too_early_is_no_warning(self):
        self.run_nova_compute(self.configure(), age=-0.9)
        self.found(configuration.running, OK)

    def test_nova_compute_of_another_python_is_reported(self):
        self.run_nova_compute(self.configure(), interpreter='/v/bin/python')
        self.assertIn('started as /v/bin/python', self.found(
            configuration.running, WARNING))

    def test_nova_compute_that_runs_is_told(self):
        self.run_nova_compute(self.configure())
        self.assertIn('process 4', self.found(configuration.running, OK))

    def test_guests_that_can_not_trim_are_told_with_the_option(self):
        self.flags(guest_trim='always', group='snapext')
        self.assertIn('hw_disk_discard is not unmap',
                      self.found(configuration.guest_trim, WARNING))
        self.flags(hw_disk_discard='unmap', group='libvirt')
        self.assertIn('new guests can',
                      self.found(configuration.guest_trim, OK))
        self.flags(preallocate_images='space')
        self.assertIn('preallocate_images is space',
                      self.found(configuration.guest_trim, WARNING))

    def test_trim_that_nobody_has_asked_for_is_no_warning(self):
        self.assertIn('hw_disk_discard',
                      self.found(configuration.guest_trim, OK))
        self.flags(guest_trim='never', group='snapext')
        self.assertIn('is never', self.found(configuration.guest_trim, OK))

    def rootwrap(self, filters='[Filters]', exec_dirs=()):
        """Configure rootwrap with one file of filters."""
        directory = self.directory()
        (directory / 'x.filters').write_text(filters)
        config = self.directory() / 'rootwrap.conf'
        config.write_text(
            f'[DEFAULT]\nfilters_path = /none,{directory}\n'
            f'exec_dirs = {",".join(map(str, exec_dirs))}\n')
        self.flags(rootwrap_config=str(config))
        return config

    def helper(self):
        """Return a directory with a privileged helper."""
        directory = self.directory()
        (directory / 'privsep-helper').touch(0o755)
        return directory

    def test_rootwrap_that_runs_the_helper_of_this_python_is_told(self):
        own = self.helper()
        self.patch(sys, 'executable', str(own / 'python3'))
        link = self.directory()
        (link / 'privsep-helper').symlink_to(own / 'privsep-helper')
        for directory in (own, link):
            self.rootwrap(exec_dirs=(self.directory(), directory))
            self.assertIn(f'runs {directory}/privsep-helper',
                          self.found(configuration.rootwrap, OK))

    def test_helper_that_rootwrap_does_not_find_is_reported(self):
        config = self.rootwrap(exec_dirs=(self.directory(),))
        text = self.found(configuration.rootwrap, FAILED)
        self.assertIn(f'in no directory of exec_dirs of {config}', text)
        self.assertIn(f'Add {os.path.dirname(sys.executable)}', text)

    def test_helper_of_another_python_is_reported(self):
        own, other = self.helper(), self.helper()
        self.patch(sys, 'executable', str(own / 'python3'))
        self.rootwrap(exec_dirs=(other, own))
        self.assertIn(f'runs {other}/privsep-helper, and not {own}/privsep',
                      self.found(configuration.rootwrap, WARNING))

    def test_rootwrap_with_the_path_of_sudo_can_be_used(self):
        self.rootwrap()
        self.assertIn('sudo\'s PATH decides',
                      self.found(configuration.rootwrap, OK))

    def test_rootwrap_allows_the_helper_without_a_filter(self):
        # So no filter is installed, and none is checked.
        helper = ['privsep-helper', '--privsep_context', 'nova_snapext.x']
        self.assertEqual('privsep-helper', wrapper.match_filter(
            wrapper.load_filters([]), helper, [str(self.helper())]).name)

    def test_filters_that_can_not_be_read_are_unknown(self):
        self.rootwrap()
        self.patch(pathlib.Path, 'read_text',
                   side_effect=PermissionError('denied'))
        self.assertIn('as root', self.found(configuration.rootwrap, UNKNOWN))

    def test_filters_that_are_broken_are_reported(self):
        for filters in ('not a filter', '[filters]'):
            self.rootwrap(filters)
            self.found(configuration.rootwrap, FAILED)

    def test_missing_rootwrap_is_reported(self):
        self.flags(rootwrap_config='/no/such/file')
        self.assertIn('does not exist',
                      self.found(configuration.rootwrap, FAILED))

    def test_sudo_alone_needs_no_filter(self):
        self.flags(disable_rootwrap=True, group='workarounds')
        self.found(configuration.rootwrap, OK)


class HypervisorTest(CheckTestCase):

    def setUp(self):
        super().setUp()
        self.libvirt = self.patch(hypervisor, 'ask')

    def test_libvirt_that_refuses_nova_is_reported(self):
        self.host.is_nova = True
        self.libvirt.side_effect = hypervisor.Unreachable('denied')
        text = self.found(hypervisor.connection, FAILED)
        self.assertIn('denied', text)
        self.assertIn('usermod --append --groups libvirt', text)

    def test_another_user_does_not_see_what_nova_may_do(self):
        self.assertIn('not seen by this user', self.found(
            hypervisor.connection, UNKNOWN))
        self.libvirt.side_effect = hypervisor.Unreachable('no socket')
        self.assertIn('no socket', self.found(
            hypervisor.connection, UNKNOWN))

    def test_libvirtd_of_another_host_is_told(self):
        self.host.is_nova = True
        self.libvirt.return_value = '<capabilities/>'
        self.flags(connection_uri='qemu+tls://host/system', group='libvirt')
        self.assertIn('by the network', self.found(
            hypervisor.connection, OK, WARNING))

    def test_defects_of_the_installed_versions_are_listed(self):
        self.libvirt.return_value = (7002022, 9000000, '')
        items = [*hypervisor.defects(self.host)]
        text = '\n'.join(map(command.text, items))
        self.assertIn('QEMU 7.2.22 and libvirt 9.0.0', text)
        self.assertIn('nbd-iothread', text)
        self.assertNotIn('apparmor-', text)

    def test_defects_of_apparmor_are_listed_where_it_confines_guests(self):
        self.libvirt.return_value = (7002022, 9000000,
                                     '<model>apparmor</model>')
        text = '\n'.join(map(command.text, hypervisor.defects(self.host)))
        self.assertIn('apparmor-resumed-overlay', text)

    def test_defect_that_is_fixed_here_is_no_warning(self):
        self.flags(fixed_defects=['nbd-iothread', 'nonsense'],
                   group='snapext')
        self.libvirt.return_value = (7002022, 9000000, '')
        found = {one.text: one.status
                 for one in hypervisor.defects(self.host)}
        self.assertIn(OK, [status for text, status in found.items()
                           if 'nbd-iothread: fixed here' in text])
        self.assertIn(WARNING, [status for text, status in found.items()
                                if 'names nonsense' in text])

    def test_versions_without_defects_are_told(self):
        self.libvirt.return_value = (11001003, 12008000, '')
        self.assertIn('QEMU 11.1.3 and libvirt 12.8.0: no known defects',
                      self.found(hypervisor.defects, OK))

    def test_versions_that_libvirt_does_not_tell_are_unknown(self):
        self.libvirt.side_effect = hypervisor.Unreachable('no socket')
        self.assertIn('no socket', self.found(hypervisor.defects, UNKNOWN))

    def root_helper(self, code, stderr=''):
        self.patch(os, 'geteuid', return_value=1000)
        self.patch(nova_utils, 'get_root_helper', return_value='sudo r')
        return self.patch(subprocess, 'run', return_value=mock.Mock(
            returncode=code, stderr=stderr))

    def test_root_helper_that_refuses_a_program_runs(self):
        self.root_helper(99)
        self.found(hypervisor.root_helper, OK)
        self.assertEqual(['sudo', '-n', 'r', 'true'],
                         subprocess.run.call_args.args[0])

    def test_root_helper_that_wants_a_password_is_reported(self):
        self.root_helper(1, 'sudo: a password is required\n')
        self.assertIn('a password is required', self.found(
            hypervisor.root_helper, FAILED))

    def test_rootwrap_that_fails_is_reported_in_its_last_words(self):
        self.root_helper(1, 'Traceback (most recent call last):\n'
                            '  File "x", line 1\nError: no section\n')
        text = self.found(hypervisor.root_helper, FAILED)
        self.assertIn('fails: Error: no section. Block', text)
        self.assertIn('filters_path', text)
        self.assertNotIn('sudoers', text)

    def test_missing_sudo_is_reported(self):
        self.root_helper(0).side_effect = FileNotFoundError('sudo')
        self.assertIn('Install sudo', self.found(
            hypervisor.root_helper, FAILED))


class SecurityTest(CheckTestCase):

    def setUp(self):
        super().setUp()
        self.asked = self.patch(hypervisor, 'ask')

    def kernel(self, apparmor=None, selinux=None, models=()):
        """Be a host with security modules that confine guests."""
        directory = self.directory()
        for name, text in (('APPARMOR_ENABLED', apparmor),
                           ('SELINUX_ENFORCE', selinux)):
            file = directory / name
            if text is not None:
                file.write_text(text)
            self.patch(security, name, str(file))
        self.asked.return_value = ''.join(
            f'<secmodel><model>{model}</model></secmodel>'
            for model in models)

    def rules(self, *rules):
        """Be a host on which AppArmor confines guests, with these rules."""
        root = self.directory()
        (root / 'abstractions').mkdir()
        (root / 'abstractions' / 'libvirt-qemu').write_text('\n'.join(rules))
        self.patch(confinement, 'APPARMOR', root)
        self.patch(confinement, 'helper_forbids_merge', lambda: True)
        self.flags(work_directory='/var/lib/nova/instances/snapshots',
                   group='snapext')
        self.kernel(apparmor='Y\n', models=('apparmor', 'dac'))

    def test_apparmor_that_confines_no_guest_needs_no_rules(self):
        for host, text in (
                ({}, 'not enabled'), ({'apparmor': 'N\n'}, 'not enabled'),
                ({'apparmor': 'Y\n', 'models': ['dac']},
                 'does not confine')):
            self.kernel(**host)
            self.assertIn(text, self.found(security.apparmor, OK))

    def test_shipped_rules_of_apparmor_suffice(self):
        self.rules((ROOT / security.RULES).read_text())
        self.assertIn('allows each the sockets of its own snapshots',
                      self.found(security.apparmor, OK))

    def test_missing_rules_of_apparmor_are_reported_with_the_file(self):
        self.rules('/dev/kvm rw,')
        text = self.found(security.apparmor, FAILED)
        self.assertIn('no rule lets QEMU create a socket in '
                      '/var/lib/nova/instances/snapshots', text)
        self.assertIn(security.RULES, text)

    def test_rule_that_opens_the_snapshots_of_others_is_reported(self):
        self.rules('/var/lib/nova/instances/snapshots/** rwk,',
                   (ROOT / security.RULES).read_text())
        self.assertIn('Remove this rule',
                      self.found(security.apparmor, FAILED))

    def test_rules_that_can_not_be_read_are_unknown(self):
        self.rules()
        self.patch(confinement, 'guest_rules',
                   side_effect=PermissionError('denied'))
        self.assertIn('as root', self.found(security.apparmor, UNKNOWN))

    def test_rules_on_another_host_are_unknown(self):
        self.rules('/dev/kvm rw,')
        self.patch(confinement, 'APPARMOR', pathlib.Path('/nonexistent'))
        self.found(security.apparmor, UNKNOWN)

    def test_rules_are_compared_with_the_path_that_apparmor_sees(self):
        link = self.directory() / 'link'
        link.symlink_to('/var/lib/nova/instances/snapshots')
        self.rules((ROOT / security.RULES).read_text())
        self.flags(work_directory=str(link), group='snapext')
        self.found(security.apparmor, OK)

    def test_libvirt_with_the_fix_is_told_from_its_version(self):
        self.rules((ROOT / security.RULES).read_text())
        for forbids, told in ((True, False), (None, False), (False, True)):
            self.patch(confinement, 'helper_forbids_merge',
                       lambda forbids=forbids: forbids)
            self.assertEqual(told, 'fixed_defects' in
                             self.found(security.apparmor, OK))

    def test_confinement_that_libvirt_does_not_tell_is_unknown(self):
        self.kernel(apparmor='Y', selinux='1')
        self.asked.side_effect = hypervisor.Unreachable('no socket')
        for check in (security.apparmor, security.selinux):
            self.assertIn('no socket', self.found(check, UNKNOWN))

    def test_state_of_selinux_is_reported(self):
        for selinux, models, status, text in (
                (None, [], OK, 'not enabled'),
                ('0', ['selinux'], OK, 'permissive'),
                ('1', ['dac'], OK, 'does not confine'),
                ('1', ['selinux', 'dac'], WARNING, 'ausearch -m avc')):
            self.kernel(selinux=selinux, models=models)
            self.assertIn(text, self.found(security.selinux, status))


class DirectoriesTest(CheckTestCase):

    def setUp(self):
        super().setUp()
        self.top = self.directory()
        self.host.qemu = (4242, 4242)
        self.flags(work_directory=str(self.top / 'work'), group='snapext')
        self.flags(journal_directory=str(self.top / 'journal'),
                   group='snapext')
        self.flags(instances_path=str(self.top))
        self.patch(directories, '_file_system', return_value='ext4')

    def test_directories_that_can_be_created_are_right(self):
        self.host.qemu = None
        for check in (directories.work_directory, directories.instances_path,
                      directories.journal_directory):
            self.found(check, OK)

    def test_work_directory_is_short_enough_for_a_socket(self):
        self.host.qemu = None
        for length, status in ((44, OK), (45, FAILED)):
            self.flags(work_directory='/tmp/'.ljust(length, 'x'),
                       group='snapext')
            text = self.found(directories.work_directory, status)
        self.assertIn('can have 44', text)

    def test_directory_that_qemu_may_not_search_is_named(self):
        below = self.top / 'a' / 'b'
        below.mkdir(parents=True)
        self.flags(instances_path=str(below))
        for parent in self.top.parents:
            if not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o001)
        self.found(directories.instances_path, OK)
        (self.top / 'a').chmod(0o750)
        text = self.found(directories.instances_path, FAILED)
        self.assertIn(f'may not search {self.top / "a"} (mode 750)', text)
        self.assertIn(f'chmod o+x {self.top / "a"}', text)

    def test_group_of_qemu_may_search_by_the_mode_of_the_group(self):
        (self.top / 'a').mkdir()
        os.chown(self.top / 'a', -1, 4242)
        (self.top / 'a').chmod(0o710)
        for parent in self.top.parents:
            if not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o001)
        self.assertEqual([], [*directories._way_of_qemu(
            'x', str(self.top / 'a'), (4242, 4242))])

    def test_supplementary_groups_of_qemu_count(self):
        (self.top / 'a').mkdir()
        os.chown(self.top / 'a', -1, 4343)
        (self.top / 'a').chmod(0o710)
        self.patch(directories.pwd, 'getpwuid').return_value.pw_name = 'q'
        groups = self.patch(os, 'getgrouplist', return_value=[4242, 4343])
        for parent in self.top.parents:
            if not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o001)
        self.top.chmod(0o711)
        found = [*directories._way_of_qemu(
            'x', str(self.top / 'a'), (4242, 4242))]
        self.assertEqual([], found)
        groups.assert_called_once_with('q', 4242)

    def test_directory_that_nova_can_not_create_is_reported(self):
        self.host.qemu = None
        (self.top / 'file').touch()
        self.flags(journal_directory=str(self.top / 'file' / 'journal'),
                   group='snapext')
        text = self.found(directories.journal_directory, FAILED)
        self.assertIn(f'{self.top / "file"} is no directory', text)
        self.assertIn(f'Change the option, or move {self.top / "file"} away',
                      text)
        self.patch(os, 'access', lambda _path, mode: not mode & os.W_OK)
        self.assertIn('install -d', self.found(
            directories.work_directory, FAILED))

    def test_parent_that_nova_may_not_search_is_named(self):
        self.host.qemu = None
        self.patch(os, 'access', lambda _path, mode: not mode & os.X_OK)
        text = self.found(directories.journal_directory, FAILED)
        self.assertIn(f'can\'t reach [snapext]journal_directory '
                      f'{self.top / "journal"}', text)
        self.assertIn(f'chmod o+x {self.top}', text)
        self.assertNotIn('install', text)

    def test_file_in_the_place_of_a_directory_is_reported_once(self):
        for directory in (self.top, self.top.parent):
            directory.chmod(0o711)
        (self.top / 'work').touch(0o600)
        text = self.found(directories.work_directory, FAILED)
        self.assertIn('is no directory', text)

    def test_directory_that_others_may_write_to_is_reported(self):
        self.host.qemu = None
        for name, check in (('journal', directories.journal_directory),
                            ('work', directories.work_directory)):
            (self.top / name).mkdir()
            (self.top / name).chmod(0o777)
            self.assertIn('mode 777', self.found(check, FAILED))

    def test_journal_that_a_restart_forgets_is_reported(self):
        directories._file_system.return_value = 'tmpfs'
        self.assertIn('forgets everything', self.found(
            directories.journal_directory, FAILED))

    def test_journal_on_shared_storage_is_told(self):
        directories._file_system.return_value = 'nfs4'
        self.assertIn('nfs4', self.found(
            directories.journal_directory, WARNING))

    def test_missing_directories_of_libvirt_are_told(self):
        self.flags(libvirt_config_directory='/no/qemu', group='snapext')
        self.assertIn('[snapext]libvirt_config_directory (/no/qemu)',
                      self.found(directories.libvirt_directories, WARNING))

    def space(self, free, files=1000, blocks=1000):
        self.flags(reserved_host_disk_mb=512)
        self.patch(os, 'statvfs', return_value=mock.Mock(
            f_bavail=min(blocks, free), f_frsize=1 << 20, f_files=1000,
            f_favail=files))

    def test_space_that_is_left_is_told(self):
        self.space(4096, blocks=4096)
        self.assertIn('3584 MiB free', self.found(directories.space, OK, OK))

    def test_missing_space_is_reported_with_both_options(self):
        self.space(1023, blocks=4096)
        text = self.found(directories.space, FAILED, FAILED)
        self.assertIn('511 MiB free (less [DEFAULT]reserved_host_disk_mb)',
                      text)
        self.assertIn('keeps 512 MiB', text)

    def test_file_system_without_space_for_files_is_reported(self):
        self.space(4096, files=0, blocks=4096)
        self.assertIn('no more files', self.found(
            directories.space, FAILED, OK, FAILED, OK, FAILED))

    def test_full_file_system_of_the_journal_is_reported(self):
        self.space(0)
        self.assertIn('is full', self.found(
            directories.space, FAILED, FAILED, FAILED))


class FileSystemTest(CheckTestCase):

    def test_kind_is_that_of_the_nearest_mount(self):
        mounts = self.directory() / 'mountinfo'
        mounts.write_text(
            '1 0 0:1 / / rw - ext4 /dev/vda rw\n'
            '2 1 0:2 / /var rw shared:1 - xfs /dev/vdb rw\n'
            '3 2 0:3 / /var/a\\040b rw - tmpfs tmpfs rw\n')
        self.patch(directories, 'MOUNTS', str(mounts))
        for path, kind in (('/none', 'ext4'), ('/var/none', 'xfs'),
                           ('/var/a b/c', 'tmpfs'), ('/variant', 'ext4')):
            self.patch(directories, '_existing', lambda path: path)
            self.assertEqual(kind, directories._file_system(path))


class GlanceTest(CheckTestCase):

    def setUp(self):
        super().setUp()
        self.auth = mock.Mock()
        self.auth.get_access.return_value.role_names = ['admin', 'service']
        self.patch(glance, '_requests', self.requests)
        self.client = mock.Mock()
        self.client.get.side_effect = lambda url: (None, self.answers[url])
        self.answers = {'/v2/images?limit=1': {}, '/v2/info/usage': {}}
        self.flags(send_service_user_token=True, group='service_user')
        from keystoneauth1 import loading
        self.load = self.patch(loading, 'load_auth_from_conf_options',
                               return_value=self.auth)

    @contextlib.contextmanager
    def requests(self):
        yield self.client, 'http://glance/'

    def test_token_with_the_role_is_right(self):
        self.assertIn('admin, service', self.found(glance.service_user, OK))

    def test_token_without_the_role_is_told(self):
        self.auth.get_access.return_value.role_names = ['member']
        self.assertIn('openstack role add', self.found(
            glance.service_user, WARNING))

    def test_service_token_that_is_not_sent_is_told(self):
        self.flags(send_service_user_token=False, group='service_user')
        self.assertIn('token expires', self.found(
            glance.service_user, WARNING, OK))

    def test_missing_credentials_are_reported(self):
        self.load.return_value = None
        self.assertIn('no auth_type', self.found(
            glance.service_user, FAILED))
        # One cause is one failure.
        for check in (glance.answer, glance.properties):
            self.assertIn('see "service-user"', self.found(check, UNKNOWN))
        self.client.get.assert_not_called()
        self.client.post.assert_not_called()

    def test_refused_credentials_are_reported_without_the_password(self):
        self.auth.password = 'geheim'
        self.auth.get_access.side_effect = ks_exceptions.Unauthorized('401')
        text = self.found(glance.service_user, FAILED)
        self.assertIn('401', text)
        self.assertNotIn('geheim', text)
        self.found(glance.answer, UNKNOWN)

    def test_glance_that_responds_is_told(self):
        self.assertIn('http://glance/', self.found(glance.answer, OK, OK, OK))

    def test_glance_that_does_not_respond_is_reported(self):
        self.client.get.side_effect = glanceclient.exc.CommunicationError(
            'refused')
        self.assertIn('refused', self.found(glance.answer, FAILED))

    def test_quotas_are_told(self):
        self.answers['/v2/info/usage'] = {'usage': {
            'image_size_total': {'limit': 10, 'usage': 9},
            'image_count_total': {'limit': -1, 'usage': 5}}}
        text = self.found(glance.answer, OK, WARNING, WARNING, OK)
        self.assertIn('image_size_total of Nova\'s service project is used '
                      'with 9 of 10', text)
        self.assertIn('openstack registered limit list', text)

    def test_quota_that_is_full_is_told(self):
        self.answers['/v2/info/usage'] = {'usage': {
            'image_count_total': {'limit': 5, 'usage': 5},
            'image_stage_total': {'limit': 0, 'usage': 0}}}
        text = self.found(glance.answer, OK, WARNING, WARNING, WARNING, OK)
        for quota in ('image_count_total', 'image_stage_total'):
            self.assertIn(f'The quota {quota} of Nova\'s service project is '
                          f'used with', text)
        self.assertIn('with 5 of 5', text)

    def test_glance_without_quotas_is_told(self):
        def get(url):
            if url == '/v2/info/usage':
                raise glanceclient.exc.HTTPNotFound
            return None, {}
        self.client.get.side_effect = get
        self.assertIn('no quotas', self.found(glance.answer, OK, OK, OK))

    def test_properties_that_glance_protects_are_named(self):
        def patch(url, data, headers):
            if 'snapext_consistency' in data:
                raise glanceclient.exc.HTTPForbidden('protected')
        self.client.patch.side_effect = patch
        text = self.found(glance.properties, WARNING)
        self.assertIn('snapext_consistency', text)
        self.assertNotIn('snapext_frozen_at', text)
        self.assert_deleted()

    def created(self):
        """Return the id of the image that the check has created."""
        return self.client.post.call_args.kwargs['data']['id']

    def assert_deleted(self):
        self.client.delete.assert_called_once_with(
            f'/v2/images/{self.created()}')
        self.assertEqual([], os.listdir(self.journal))

    def test_image_of_the_check_is_deleted_whatever_happens(self):
        self.client.patch.side_effect = OSError('reset')
        self.found(glance.properties, FAILED)
        self.assert_deleted()

    def test_image_that_can_not_be_deleted_is_named(self):
        self.client.delete.side_effect = glanceclient.exc.HTTPForbidden('no')
        text = self.found(glance.properties, FAILED, OK)
        self.assertIn(f'openstack image delete {self.created()}', text)

    def test_quota_that_refuses_an_image_is_reported(self):
        self.client.post.side_effect = (
            glanceclient.exc.HTTPOverLimit('image_count_total'))
        self.assertIn('image_count_total', self.found(
            glance.properties, FAILED))
        self.assertEqual([], os.listdir(self.journal))

    def test_image_that_may_exist_after_an_error_of_glance_is_told(self):
        self.client.post.side_effect = (
            glanceclient.exc.HTTPServiceUnavailable())
        self.found(glance.properties, FAILED)
        self.assertEqual([f'image {self.created()}'],
                         [one['name'] for one in trial.left()])

    def test_image_that_a_kill_leaves_is_told_and_deleted_later(self):
        self.client.post.side_effect = SystemExit
        self.assertRaises(SystemExit, next, glance.properties(self.host))
        self.assertEqual([f'image {self.created()}'],
                         [one['name'] for one in trial.left()])
        discard = self.patch(upload, 'discard', return_value='it is locked')
        driver = mock.Mock()
        driver._host.list_guests.return_value = []
        with trial.locked_journal():
            [locked] = trial.recover(driver)
        self.assertEqual((FAILED, True), (
            locked.status, 'it is locked' in locked.text))
        discard.return_value = None
        self.assertTrue(recover.recover_trials(driver))
        self.assertEqual(self.created(), discard.call_args.args[1])
        self.assertEqual(([], []), (trial.left(), os.listdir(self.journal)))

    def test_trial_that_runs_is_not_disturbed(self):
        with contextlib.ExitStack() as other:
            with trial.own_journal():
                other.enter_context(journal.locked())
            self.assertIn('Another', self.found(glance.properties, UNKNOWN))
        self.client.post.assert_not_called()


class GuestsTest(CheckTestCase):

    def test_without_rights_nothing_is_said_of_guests(self):
        self.found(guests.driver, UNKNOWN)
        self.found(guests.guests)

    def test_driver_that_can_not_be_created_is_reported(self):
        self.host.is_nova = self.host.libvirt = True
        self.patch(command.standalone, 'create_driver',
                   side_effect=RuntimeError('no'))
        self.assertIn('RuntimeError: no', self.found(guests.driver, FAILED))

    def test_conductor_that_does_not_respond_is_asked_once(self):
        get = self.patch(objects.Instance, 'get_by_uuid',
                         side_effect=oslo_messaging.MessagingTimeout)
        guest = mock.Mock(uuid='u')
        guest.name = 'n'
        instance, asking = guests._instance(guest, True)
        self.assertIsInstance(instance, planning.UnknownInstance)
        guests._instance(guest, asking)
        get.assert_called_once()

    def test_conductor_that_does_not_respond_is_reported(self):
        self.host.driver = mock.Mock()
        self.host.driver._host.list_guests.return_value = [mock.Mock()]
        self.patch(guests, 'is_of_nova', return_value=True)
        self.patch(guests, '_instance', return_value=(mock.Mock(), False))
        self.patch(guests, '_of_one', return_value=item.ok('guest', 'x'))
        self.assertIn('conductor does not respond', self.found(
            guests.guests, OK, UNKNOWN))

    def test_snapshot_in_progress_is_no_failure(self):
        self.host.driver = mock.Mock()
        self.host.driver._host.list_guests.return_value = [mock.Mock()]
        self.patch(guests, 'is_of_nova', return_value=True)
        instance = planning.UnknownInstance('u', 'n')
        self.patch(guests, '_instance', return_value=(instance, True))
        of_one = self.patch(guests, '_of_one',
                            return_value=item.failed('guest u', 'a job runs'))
        runs = [mock.Mock(instance_uuid='u', strategy='backup')]
        running = self.patch(published, 'running', return_value=runs)
        self.assertIn('in progress, by backup',
                      self.found(guests.guests, OK))
        of_one.assert_not_called()
        # It begins while the guest is looked at.
        running.side_effect = [[], runs]
        self.assertIn('in progress', self.found(guests.guests, OK))
        # It is another guest's.
        running.side_effect = None
        runs[0].instance_uuid = 'v'
        self.assertIn('a job runs', self.found(guests.guests, FAILED))

    def test_domains_of_others_are_left_out(self):
        self.host.driver = mock.Mock()
        self.host.driver._host.list_guests.return_value = [mock.Mock()]
        self.patch(guests, 'is_of_nova', return_value=False)
        self.assertIn('no guest', self.found(guests.guests, OK))

    def test_findings_about_ceph_become_items(self):
        self.patch(check_ceph, 'ceph_findings', return_value=[
            (True, 'may write'), (False, 'may not read')])
        self.assertIn('may not read', self.found(ceph.ceph, OK, FAILED))


class CommandTest(CheckTestCase):

    def setUp(self):
        super().setUp()
        self.items = []
        self.patch(command, 'items',
                   lambda options: (one for one in self.items))
        self.patch(command.signal, 'signal')

    def run_(self, *arguments):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            return main.main(['check', *arguments]), printed.getvalue()

    def test_exit_code_is_that_of_the_worst_item(self):
        for make, code in ((item.ok, 0), (item.warning, 0),
                           (item.unknown, 3), (item.failed, 1)):
            self.items = [item.ok('a', 'x'), make('b', 'y')]
            self.assertEqual(code, self.run_()[0])
        self.items = [item.unknown('a', 'x'), item.failed('b', 'y')]
        self.assertEqual(1, self.run_()[0])

    def test_text_has_a_remedy_and_no_control_characters(self):
        self.items = [item.failed('a', 'x\x1b', 'Do it.')]
        printed = self.run_()[1]
        self.assertIn('FAIL  a: x\\x1b\n      -> Do it.', printed)
        self.assertIn('1 checks: 1 failed.', printed)

    def test_json_is_as_documented(self):
        self.items = [item.ok('a', 'x'), item.failed('b', 'y', 'z')]
        printed = json.loads(self.run_('--format', 'json')[1])
        jsonschema.validate(printed, json.loads(SCHEMA.read_text()))
        self.assertEqual('failed', printed['status'])
        self.assertEqual(['a', 'b'],
                         [one['name'] for one in printed['items']])

    def test_check_that_fails_by_mistake_does_not_end_the_others(self):
        def broken(_host):
            raise KeyError('x')
            yield
        [one] = command._run(broken, self.host)
        self.assertIs(UNKNOWN, one.status)
        self.assertIn('KeyError', one.text)

    def test_check_that_can_not_be_made_has_the_name_of_its_items(self):
        for check in (*command.INSTALLED, configuration.files,
                      *command.CONFIGURED, *command.AS_NOVA, *command.TRIAL):
            self.assertIn(f"'{command.name_of(check)}'",
                          inspect.getsource(inspect.getmodule(check)))
        for check, name in ((configuration.guest_trim, 'guest-trim'),
                            (configuration.compute_driver, 'compute-driver')):
            [one] = command._run(check, self.host)
            self.assertEqual(name, one.name)

    def test_check_that_hangs_is_not_waited_for(self):
        answered, ended = threading.Event(), threading.Event()

        def hanging_check(_host):
            yield item.ok('first', 'x')
            answered.wait()
            ended.set()

        # Even a busy machine finds the first one in time.
        limits, call = iter((60, 0.01)), bounded.call
        self.patch(bounded, 'call', lambda function, _seconds: call(
            function, next(limits)))
        first, last = command._run(hanging_check, self.host)
        self.assertEqual(('first', 'hanging-check', UNKNOWN),
                         (first.name, last.name, last.status))
        self.assertIn('did not respond for 0.01 seconds', last.text)
        answered.set()
        ended.wait()

    def test_no_trial_follows_one_that_hangs(self):
        # That one would change the journal of the next.
        def hanging(_host):
            yield item.ok('first', 'x')

        following = mock.Mock(__name__='following', return_value=iter(()))
        self.patch(command, 'TRIAL', (hanging, following))
        self.patch(bounded, 'call',
                   side_effect=bounded.NoResponse('nobody responds'))
        [found] = command._run_all(command.TRIAL, self.host)
        self.assertIn('nobody responds', found.text)
        following.assert_not_called()

    def test_check_that_is_interrupted_removes_what_it_has_made(self):
        removed, kept = [], []

        def making(_host):
            try:
                yield item.ok('first', 'x')
            finally:
                removed.append(True)

        def check(host):
            # Python would close one that nobody refers to.
            kept.append(making(host))
            return kept[0]

        running = command._run(check, self.host)
        next(running)
        running.close()
        self.assertEqual([True], removed)
