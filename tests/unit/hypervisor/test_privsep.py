# SPDX-License-Identifier: Apache-2.0

import configparser
import pathlib
import subprocess
import sys
from unittest import mock

from oslo_rootwrap import wrapper

from nova_snapext.hypervisor import privsep
from tests.unit import base

FILTERS = pathlib.Path(__file__).parents[3] / 'etc/nova/rootwrap.d'
MODULES = ('import sys; import nova_snapext.hypervisor.privsep; '
           'print(*sys.modules)')


class PrivsepTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.chown = self.patch('os.chown')

    def patch(self, name):
        patcher = mock.patch(name)
        self.addCleanup(patcher.stop)
        return patcher.start()

    def test_daemon_imports_neither_nova_nor_libvirt(self):
        modules = subprocess.run(
            [sys.executable, '-W', 'ignore', '-c', MODULES], check=True,
            capture_output=True, text=True).stdout.split()
        self.assertIn('nova_snapext.hypervisor.privsep', modules)
        self.assertEqual([], [
            module for module in modules
            if module.partition('.')[0] in ('nova', 'libvirt')])

    def test_daemon_can_not_run_programs(self):
        modules = [name for name in vars(privsep)
                   if name in ('processutils', 'subprocess')]
        self.assertEqual([], modules)

    def test_rootwrap_filter_allows_the_helper(self):
        [rule] = [rule for rule in wrapper.load_filters([str(FILTERS)])
                  if rule.name == 'privsep-rootwrap-snapext']
        command = privsep.context.helper_command('/tmp/tmp1234/privsep.sock')
        command = command[command.index('privsep-helper'):]
        del command[1:command.index('--privsep_context')]
        command[1:1] = ['--config-file', '/etc/nova/nova.conf']
        self.assertTrue(rule.match(command))
        command[command.index('--privsep_context') + 1] = 'os.system'
        self.assertFalse(rule.match(command))

    def test_filters_are_installed(self):
        setup = configparser.ConfigParser()
        setup.read(FILTERS.parents[2] / 'setup.cfg')
        self.assertIn('etc/nova/rootwrap.d = etc/nova/rootwrap.d/*',
                      setup['files']['data_files'])

    def test_chown_without_group_keeps_group(self):
        privsep.chown('/i/disk', 64055)
        self.chown.assert_called_once_with('/i/disk', 64055, -1)

    def test_chown_with_group_changes_both(self):
        privsep.chown('/i/disk', 64055, 0)
        self.chown.assert_called_once_with('/i/disk', 64055, 0)
