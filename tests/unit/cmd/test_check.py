# SPDX-License-Identifier: Apache-2.0

import contextlib
import importlib.metadata
import importlib.util
import io
import pathlib
import subprocess
import sys
from unittest import mock

import fixtures

from nova_snapext.cmd import check
from nova_snapext.cmd import main
from nova_snapext import compat
from nova_snapext.hypervisor import confinement
from nova_snapext.hypervisor import known_defects
from nova_snapext.hypervisor import privsep
from nova_snapext.resources import work_directory
from tests.unit import base

ROOT = pathlib.Path(__file__).parents[3]
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

    def test_missing_module_is_reported_with_its_path_and_a_remedy(self):
        self.specs[check.MODULE] = None
        self.patch(check, '_editable', lambda: False)
        problem = self.problem(check.driver_loads)
        self.assertIn('snapext.py', problem)
        self.assertIn('another prefix', problem)
        self.assertIn('pip install', problem)

    def test_editable_install_is_reported_as_the_cause(self):
        self.specs[check.MODULE] = None
        self.patch(check, '_editable', lambda: True)
        self.assertIn('editable install', self.problem(check.driver_loads))

    def test_failed_import_of_the_driver_is_reported_with_its_reason(self):
        importlib.import_module.side_effect = ImportError('no module lxml')
        self.assertIn('no module lxml', self.problem(check.driver_loads))

    def rootwrap(self, *filters):
        """Configure rootwrap with one file of filters."""
        directory = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        (directory / 'x.filters').write_text('\n'.join(filters))
        config = directory / 'rootwrap.conf'
        config.write_text(f'[DEFAULT]\nfilters_path = /none,{directory}\n')
        self.patch(check, 'ROOTWRAP_CONFIG', str(config))

    def test_filter_that_is_shipped_allows_the_helper(self):
        shipped = (pathlib.Path(__file__).parents[3] /
                   'etc/nova/rootwrap.d/snapext.filters')
        self.rootwrap(shipped.read_text())
        self.assertIn('x.filters', check.privileges())

    def test_missing_filter_is_reported_with_the_file_to_copy(self):
        self.rootwrap(
            'a: RegExpFilter, privsep-helper, root, privsep-helper, '
            '--privsep_context, nova.privsep.sys_admin_pctxt',
            '# privsep-helper, --privsep_context, ' + check.PRIVSEP_CONTEXT)
        problem = self.problem(check.privileges)
        self.assertIn(check.PRIVSEP_CONTEXT, problem)
        self.assertIn('etc/nova/rootwrap.d/snapext.filters', problem)

    def test_remedy_names_the_file_that_pip_has_installed(self):
        self.rootwrap()
        installed = importlib.metadata.PackagePath(
            '../../../etc/nova/rootwrap.d/snapext.filters')
        installed.dist = mock.Mock()
        installed.dist.locate_file = lambda path: (
            pathlib.Path('/venv/lib/python3/site-packages') / path)
        self.patch(importlib.metadata, 'files').return_value = [installed]
        self.assertIn('Copy /venv/etc/nova/rootwrap.d/snapext.filters there',
                      self.problem(check.privileges))

    def test_host_without_rootwrap_needs_no_filter(self):
        self.patch(check, 'ROOTWRAP_CONFIG', '/no/such/file')
        self.assertIn('no rootwrap', check.privileges())

    def test_unreadable_rootwrap_is_reported(self):
        self.rootwrap('x')
        self.patch(pathlib.Path, 'read_text', mock.Mock(
            side_effect=PermissionError('denied')))
        self.assertIn('denied', self.problem(check.privileges))

    def test_checked_context_is_the_one_of_the_driver(self):
        self.assertEqual(privsep.context.pypath, check.PRIVSEP_CONTEXT)

    def test_missing_nova_is_reported_and_ends_the_checks(self):
        self.specs['nova'] = None
        [(passed, text)] = check.results()
        self.assertFalse(passed)
        self.assertIn('Nova is not installed', text)

    def test_old_nova_is_reported(self):
        self.version.return_value = '33.1.0'
        problem = self.problem(check.nova_installed)
        self.assertIn('too old', problem)
        self.assertIn('34 (2026.2) or newer', problem)

    def test_missing_binding_is_reported_with_its_package(self):
        self.specs['nbd'] = None
        problem = self.problem(check.nbd_binding)
        self.assertIn('python3-libnbd', problem)
        self.assertIn('--system-site-packages', problem)

    def test_old_libnbd_is_reported(self):
        nbd = importlib.import_module('nbd')
        nbd.NBD.return_value.get_version.return_value = '1.8.3'
        self.assertIn('1.14 or newer', self.problem(check.nbd_binding))

    def test_missing_programs_are_reported_with_their_packages(self):
        self.patch(check.shutil, 'which', lambda _program: None)
        self.assertIn('qemu-utils', self.problem(check.programs))

    def test_installed_strategies_are_listed(self):
        self.assertIn('backup, cold, external, internal, native',
                      check.strategies())

    def test_missing_strategies_are_reported(self):
        self.patch(importlib.metadata, 'entry_points').return_value.names = {
            'backup', 'theirs'}
        problem = self.problem(check.strategies)
        self.assertIn('cold, external, internal, native', problem)
        self.assertIn('Install the built wheel', problem)

    def test_expected_names_are_counted_with_the_versions(self):
        self.patch(compat, 'check', list)
        self.assertEqual(
            f'{len(compat.NAMES)} names as expected in {compat.versions()}',
            check.compatible())

    def test_changed_names_are_reported_with_the_versions(self):
        self.patch(compat, 'check', lambda: ['one.x: gone', 'two.y: gone'])
        problem = self.problem(check.compatible)
        for text in ('one.x: gone', 'two.y: gone', 'nova 34.0.0',
                     'Nova 34 (2026.2) or newer is supported'):
            self.assertIn(text, problem)

    def test_names_are_not_checked_if_the_driver_can_not_be_imported(self):
        checked = self.patch(compat, 'check')
        importlib.import_module.side_effect = ImportError('no module lxml')
        self.patch(check, 'CHECKS', (check.driver_loads, check.compatible))
        [(passed, text)] = check.results()
        self.assertFalse(passed)
        self.assertIn('no module lxml', text)
        checked.assert_not_called()

    def libvirt(self, qemu, libvirt):
        fake = mock.Mock(libvirtError=RuntimeError)
        fake.openReadOnly.return_value.getVersion.return_value = qemu
        fake.openReadOnly.return_value.getLibVersion.return_value = libvirt
        importlib.import_module.side_effect = {
            'libvirt': fake,
            'nova_snapext.hypervisor.known_defects': known_defects,
            'nova_snapext.hypervisor.confinement': confinement,
            'nova_snapext.resources.work_directory': work_directory}.get
        return fake

    def test_defects_of_the_installed_versions_are_listed(self):
        self.libvirt(7002022, 9000000)
        report = check.defects()
        self.assertIn('QEMU 7.2.22 and libvirt 9.0.0: 5 known', report)
        self.assertIn('nbd-iothread: guests whose root disk has an iothread: '
                      'refused: backup', report)
        self.assertNotIn('mirror-pause-deadlock', report)

    def test_versions_without_defects_are_reported(self):
        self.libvirt(11001003, 12008000)
        self.assertEqual('QEMU 11.1.3 and libvirt 12.8.0: no known defects',
                         check.defects())

    def test_libvirt_that_can_not_be_asked_is_no_problem(self):
        self.libvirt(0, 0).openReadOnly.side_effect = RuntimeError('no socket')
        self.assertIn('not checked: no socket', check.defects())
        importlib.import_module.side_effect = [
            known_defects, ImportError('no libvirt')]
        self.assertIn('not checked: no libvirt', check.defects())

    def kernel(self, apparmor=None, selinux=None, models=()):
        """Be a host with security modules that confine guests.

        :param apparmor: what its kernel says of AppArmor, None if nothing
        :param selinux: what it says of SELinux
        :param models: what libvirt confines guests by
        """
        directory = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        for name, text in (('APPARMOR_ENABLED', apparmor),
                           ('SELINUX_ENFORCE', selinux)):
            file = directory / name
            if text is not None:
                file.write_text(text)
            self.patch(check, name, str(file))
        fake = self.libvirt(7002022, 9000000)
        fake.openReadOnly.return_value.getCapabilities.return_value = ''.join(
            f'<secmodel><model>{model}</model></secmodel>'
            for model in models)
        return fake

    def apparmor(self, *rules):
        """Be a host on which AppArmor confines guests, with these rules."""
        root = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        (root / 'abstractions').mkdir()
        (root / 'abstractions' / 'libvirt-qemu').write_text('\n'.join(rules))
        self.patch(confinement, 'APPARMOR', root)
        self.patch(confinement, 'helper_forbids_merge', lambda: True)
        self.patch(check, '_work_directory', lambda: check.WORK_DIRECTORY)
        return self.kernel(apparmor='Y\n', models=('apparmor', 'dac'))

    def test_apparmor_that_confines_no_guest_needs_no_rules(self):
        for host, text in (
                ({}, 'not enabled'), ({'apparmor': 'N\n'}, 'not enabled'),
                ({'apparmor': 'Y\n', 'models': ['dac']},
                 'does not confine')):
            self.kernel(**host)
            self.assertIn(text, check.apparmor())

    def test_shipped_rules_of_apparmor_suffice(self):
        self.apparmor((ROOT / check.RULES).read_text())
        self.assertIn('allows each the sockets of its own snapshots',
                      check.apparmor())

    def test_missing_rules_of_apparmor_are_reported_with_the_file(self):
        self.apparmor('/dev/kvm rw,')
        problem = self.problem(check.apparmor)
        self.assertIn('no rule lets QEMU create a socket in '
                      '/var/lib/nova/instances/snapshots', problem)
        self.assertIn(check.RULES, problem)

    def test_rule_that_opens_the_snapshots_of_others_is_reported(self):
        self.apparmor('/var/lib/nova/instances/snapshots/** rwk,',
                      (ROOT / check.RULES).read_text())
        problem = self.problem(check.apparmor)
        self.assertIn('snapshots/**. Remove this rule', problem)

    def test_rules_that_can_not_be_read_are_reported(self):
        self.apparmor()
        self.patch(pathlib.Path, 'read_text', mock.Mock(side_effect=[
            'Y', PermissionError('denied')]))
        self.assertIn('denied', self.problem(check.apparmor))

    def test_rules_on_another_host_are_no_problem(self):
        self.apparmor('/dev/kvm rw,')
        self.patch(confinement, 'APPARMOR', pathlib.Path('/nonexistent'))
        self.assertIn('not checked', check.apparmor())

    def test_rules_are_compared_with_the_path_that_apparmor_sees(self):
        link = pathlib.Path(self.useFixture(fixtures.TempDir()).path, 'link')
        link.symlink_to('/var/lib/nova/instances/snapshots')
        self.apparmor((ROOT / check.RULES).read_text())
        self.patch(check, '_work_directory', lambda: str(link))
        self.assertIn('allows each', check.apparmor())

    def test_work_directory_is_short_enough_for_a_socket(self):
        self.libvirt(7002022, 9000000)
        for length, is_problem in ((44, False), (45, True)):
            path = '/w'.ljust(length, 'x')
            self.patch(check, '_work_directory', lambda path=path: path)
            if is_problem:
                self.assertIn('can have 44',
                              self.problem(check.work_directory))
            else:
                self.assertEqual(f'work directory {path}',
                                 check.work_directory())

    def test_libvirt_with_the_fix_is_told_from_its_version(self):
        self.apparmor((ROOT / check.RULES).read_text())
        for forbids, told in ((True, False), (None, False), (False, True)):
            self.patch(confinement, 'helper_forbids_merge',
                       lambda forbids=forbids: forbids)
            self.assertEqual(told, 'fixed_defects' in check.apparmor())

    def test_libvirt_that_can_not_be_asked_about_confinement_is_no_problem(
            self):
        host = self.kernel(apparmor='Y', selinux='1')
        host.openReadOnly.side_effect = RuntimeError('no socket')
        for test in (check.apparmor, check.selinux):
            self.assertIn('not checked: no socket', test())

    def test_state_of_selinux_is_reported(self):
        for selinux, models, text in (
                (None, [], 'not enabled'), ('0', ['selinux'], 'permissive'),
                ('1', ['dac'], 'does not confine'),
                ('1', ['selinux', 'dac'], 'ausearch -m avc')):
            self.kernel(selinux=selinux, models=models)
            self.assertIn(text, check.selinux())

    def test_security_modules_that_nobody_may_ask_are_taken_to_be_there(self):
        self.kernel(apparmor='Y', selinux='1', models=('apparmor', 'selinux'))
        self.patch(confinement, 'guest_rules', list)
        self.patch(confinement, 'has_rules', lambda: True)
        self.patch(check, '_work_directory', lambda: '/w')
        self.patch(pathlib.Path, 'read_text', mock.Mock(
            side_effect=PermissionError('denied')))
        self.assertIn('no rule lets', self.problem(check.apparmor))
        self.assertIn('ausearch', check.selinux())

    def test_work_directory_is_that_of_the_configuration(self):
        conf = mock.MagicMock()
        conf.CONF.snapext.work_directory = '/srv/snapshots'
        importlib.import_module.side_effect = [conf]
        self.assertEqual('/srv/snapshots', check._work_directory())

    def test_work_directory_is_the_default_without_a_configuration(self):
        conf = mock.MagicMock()
        conf.CONF.config_file, conf.CONF.config_dir = [], []
        conf.CONF.snapext.work_directory = '/venv/instances/snapshots'
        for result in (conf, ImportError('no module nova')):
            importlib.import_module.side_effect = [result]
            with contextlib.redirect_stderr(io.StringIO()):
                self.assertEqual(check.WORK_DIRECTORY,
                                 check._work_directory())

    def test_failed_check_sets_the_exit_code(self):
        for results, code in (([(True, 'a')], 0),
                              ([(False, 'a'), (True, 'b')], 1)):
            self.patch(check, 'results', lambda results=results: results)
            with contextlib.redirect_stdout(io.StringIO()):
                self.assertEqual(code, main.main(['check']))

    def test_command_is_imported_without_nova(self):
        subprocess.run(
            (sys.executable, '-c',
             'import sys; import nova_snapext.cmd.main; '
             'sys.exit("nova" in sys.modules)'), check=True)
