# SPDX-License-Identifier: Apache-2.0

import argparse
import contextlib
import importlib.metadata
import io
import pathlib
from unittest import mock

from oslo_upgradecheck import upgradecheck

from nova_snapext.cmd.check import configuration
from nova_snapext.cmd.check import item
from nova_snapext.cmd import exits
from nova_snapext.cmd import standalone
from nova_snapext.cmd import status
from nova_snapext.cmd import upgrade
from nova_snapext.cmd import upgrade_checks
from nova_snapext import compat
from tests.unit import base

SUCCESS, WARNING, FAILURE = upgradecheck.Code


class UpgradeTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.commands = upgrade_checks.UpgradeCommands(argparse.Namespace(
            config_file=[], config_dir=[], debug=False))
        self.commands._host.source = mock.Mock()
        self.become = self.patch(standalone, 'become_owner_of_state')
        self.collect = self.patch(status, 'collect')
        self.collect.return_value = {
            'unusable': [], 'set_aside': [], 'outstanding': False}

    def patch(self, target, name):
        patch = mock.patch.object(target, name)
        self.addCleanup(patch.stop)
        return patch.start()

    def test_host_that_is_ready_passes(self):
        with mock.patch.object(compat, 'check', list), mock.patch.object(
                configuration, 'options',
                lambda host: [item.ok('options', 'x')]), \
                contextlib.redirect_stdout(io.StringIO()):
            self.assertEqual(SUCCESS, self.commands.check())

    def test_nova_that_is_too_old_fails(self):
        version = importlib.metadata.version
        with mock.patch.object(
                importlib.metadata, 'version',
                lambda name: '30.0.0' if name == 'nova' else version(name)), \
                mock.patch.object(compat, 'check', list):
            result = self.commands.packages()
        self.assertEqual(FAILURE, result.code)
        self.assertIn('too old', result.details)

    def test_option_that_can_not_be_used_fails(self):
        with mock.patch.object(
                configuration, 'options',
                lambda host: [item.failed('options', 'x', 'y')]):
            result = self.commands.options_()
        self.assertEqual((FAILURE, 'x y'), (result.code, result.details))

    def test_file_of_another_version_fails(self):
        self.collect.return_value['unusable'] = ['x']
        self.assertEqual(FAILURE, self.commands.journal().code)

    def test_interrupted_snapshot_is_a_warning(self):
        self.collect.return_value['outstanding'] = True
        self.assertEqual(WARNING, self.commands.journal().code)

    def test_another_user_is_warned_that_he_sees_no_journal(self):
        self.become.side_effect = exits.CommandError('run it as nova')
        result = self.commands.journal()
        self.assertEqual((WARNING, 'run it as nova'),
                         (result.code, result.details))

    def test_configuration_that_can_not_be_read_is_one_sentence(self):
        path = pathlib.Path(self.journal, 'nova.conf')
        path.write_text('[DEFAULT\npassword=geheim\n')
        latin = pathlib.Path(self.journal, 'latin.conf')
        latin.write_bytes(b'[DEFAULT]\nx=\xff\n')
        for option in (f'--config-file={path}', '--config-file=/no/nova.conf',
                       '--config-dir=/no', f'--config-file={latin}'):
            errors = io.StringIO()
            # The command ends the log of its process.
            with contextlib.redirect_stderr(errors), \
                    mock.patch('logging.disable'):
                self.assertEqual(255, upgrade.main(
                    [option, 'upgrade', 'check']))
            [line] = errors.getvalue().splitlines()
            self.assertIn('can\'t be read', line)
            self.assertIn(option.split('=')[1], line)
            self.assertNotIn('geheim', line)

    def test_option_of_the_journal_that_can_not_be_used_fails(self):
        with mock.patch.object(standalone, 'check_values',
                               side_effect=exits.CommandError('bad host')):
            result = self.commands.journal()
        self.assertEqual((FAILURE, 'bad host'), (result.code, result.details))

    def test_missing_configuration_fails(self):
        self.commands._host.source = None
        with mock.patch.object(
                configuration, 'files',
                lambda host: [item.failed('configuration', 'none')]):
            self.assertEqual(FAILURE, self.commands.options_().code)
        self.assertEqual(WARNING, self.commands.journal().code)
