# SPDX-License-Identifier: Apache-2.0

import os
import pathlib
import pwd
import subprocess
import sys
import threading
from unittest import mock

import fixtures
from nova import config
from oslo_config import cfg
import oslo_messaging
from oslotest import base

from nova_snapext.cmd import exits
from nova_snapext.cmd import standalone

NOBODY = pwd.getpwnam('nobody')


class OwnerTest(base.BaseTestCase):
    """The user of a command, with the calls that change it."""

    def setUp(self):
        super().setUp()
        self.state = self.useFixture(fixtures.TempDir()).path
        self.calls = []
        for name in ('initgroups', 'setgid', 'setuid', 'chdir'):
            self.patch(os, name, lambda *args, name=name:
                       self.calls.append((name, *args)))
        self.useFixture(fixtures.EnvironmentVariable('HOME', '/root'))
        for name in ('USER', 'LOGNAME'):
            self.useFixture(fixtures.EnvironmentVariable(name, 'root'))

    def patch(self, target, name, value):
        self.enterContext(mock.patch.object(target, name, value))

    def become(self, uid, owner):
        """Call it as a user, for a directory of an owner.

        :returns: the message with which it ends; None if it goes on
        """
        stat = os.stat

        def owned(path, *args, **kwargs):
            return (mock.Mock(st_uid=owner) if path == self.state
                    else stat(path, *args, **kwargs))

        with mock.patch.object(os, 'geteuid', return_value=uid), \
                mock.patch.object(os, 'stat', owned):
            try:
                standalone.become_owner_of_state(self.state)
            except exits.CommandError as error:
                return str(error)
        return None

    def test_root_becomes_the_owner_of_the_state(self):
        self.assertIsNone(self.become(0, NOBODY.pw_uid))
        self.assertEqual(
            [('initgroups', 'nobody', NOBODY.pw_gid),
             ('setgid', NOBODY.pw_gid), ('setuid', NOBODY.pw_uid),
             ('chdir', '/')], self.calls)
        self.assertEqual((NOBODY.pw_dir, 'nobody', 'nobody'), tuple(
            os.environ[name] for name in ('HOME', 'USER', 'LOGNAME')))

    def test_owner_goes_on_unchanged(self):
        self.assertIsNone(self.become(NOBODY.pw_uid, NOBODY.pw_uid))
        self.assertIsNone(self.become(0, 0))
        self.assertEqual([], self.calls)

    def test_any_other_user_is_refused_with_the_command_to_run(self):
        with mock.patch.object(sys, 'argv', ['/usr/bin/nova-snapext',
                                             'recover', 'a b']):
            for uid, owner, name in ((1000, NOBODY.pw_uid, 'nobody'),
                                     (1000, 0, 'root')):
                message = self.become(uid, owner)
                self.assertIn(
                    f'sudo -u {name} /usr/bin/nova-snapext recover \'a b\'',
                    message)
        self.assertEqual([], self.calls)

    def test_root_without_the_capability_is_refused(self):
        def refuse(*_args):
            raise PermissionError('no CAP_SETGID')

        self.patch(os, 'initgroups', refuse)
        message = self.become(0, NOBODY.pw_uid)
        for text in ('must run as nobody', 'no CAP_SETGID'):
            self.assertIn(text, message)

    def test_owner_without_a_name_is_refused(self):
        self.patch(pwd, 'getpwuid', mock.Mock(side_effect=KeyError))
        self.assertIn('4242', self.become(0, 4242))

    def test_missing_state_is_refused(self):
        error = self.assertRaises(
            exits.CommandError, standalone.become_owner_of_state,
            f'{self.state}/none')
        for text in ('state_path', f'{self.state}/none'):
            self.assertIn(text, str(error))

    def test_state_that_names_an_unknown_option_is_refused_with_it(self):
        self.enterContext(mock.patch.object(config, 'CONF', cfg.ConfigOpts()))
        config.CONF.register_opt(cfg.StrOpt('state_path', default='$nope'))
        config.CONF([])
        self.assertIn('no such option nope', str(self.assertRaises(
            exits.CommandError, standalone.state_path, None)))

    def test_text_for_a_terminal_has_no_control_characters(self):
        self.assertEqual('ä\n\\x1b[2J\\udcff\\t',
                         standalone.printable('ä\n\x1b[2J\udcff\t'))


class ConductorTest(base.BaseTestCase):

    def test_answer_is_that_of_the_conductor(self):
        api = mock.Mock()
        conductor = standalone.Conductor(api)
        self.assertIs(api.object_action.return_value,
                      conductor.object_action(1, x=2))
        api.object_action.assert_called_once_with(1, x=2)

    def test_rabbitmq_that_is_down_is_not_waited_for(self):
        answered = threading.Event()
        self.addCleanup(answered.set)
        self.enterContext(mock.patch.object(standalone, 'RPC_TIMEOUT', 0.01))
        conductor = standalone.Conductor(mock.Mock(
            object_action=lambda _context: answered.wait()))
        error = self.assertRaises(oslo_messaging.MessagingTimeout,
                                  conductor.object_action, None)
        self.assertIn('did not respond for 0.01 seconds', str(error))


class RootTest(base.BaseTestCase):
    """Commands of root, in a process of their own."""

    def setUp(self):
        super().setUp()
        if os.geteuid() != 0:
            self.skipTest('only root can become another user')
        self.top = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        for directory in (self.top, *self.top.parents):
            if not directory.stat().st_mode & 0o001:
                directory.chmod(0o711)
        self.state = self.top / 'state'
        self.state.mkdir()
        os.chown(self.state, NOBODY.pw_uid, NOBODY.pw_gid)
        self.config = self.top / 'nova.conf'
        self.config.write_text(
            f'[DEFAULT]\nstate_path = {self.state}\n'
            f'log_dir = {self.state}\nmy_ip = 127.0.0.1\n'
            f'transport_url = fake:/\n')

    def run_(self, *arguments):
        return subprocess.run(
            [sys.executable, '-m', 'nova_snapext.cmd.main', *arguments,
             '--config-file', self.config], capture_output=True, text=True,
            check=False, cwd=pathlib.Path(__file__).parents[3])

    def owners(self):
        """Return the owners of all files below the state."""
        return {path.stat().st_uid for path in self.top.rglob('*')
                if path != self.config}

    def test_what_a_command_of_root_creates_is_nova_s(self):
        run = self.run_('recover', '--dry-run')
        self.assertEqual(0, run.returncode, run.stderr)
        self.assertEqual({NOBODY.pw_uid}, self.owners())
        self.assertTrue(list(self.state.glob('*.log')))

    def test_nothing_is_created_without_a_state(self):
        self.state.rmdir()
        run = self.run_('drain')
        self.assertEqual(exits.NOT_DONE, run.returncode)
        self.assertIn('state_path', run.stderr)
        self.assertEqual([self.config], [*self.top.iterdir()])
