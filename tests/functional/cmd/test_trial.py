# SPDX-License-Identifier: Apache-2.0
"""``nova-snapext check``, with a real libvirtd."""

import argparse
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
from unittest import mock

import fixtures

from nova_snapext.cmd.check import guests
from nova_snapext.cmd.check import hypervisor
from nova_snapext.cmd.check import item
from nova_snapext.cmd.check import trial
from nova_snapext.cmd import recover
from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.resources import trial_guest
from nova_snapext.strategies import external
from tests.functional import base


class CheckTestCase(base.GuestTestCase):

    def setUp(self):
        super().setUp()
        self.checked = item.Host(argparse.Namespace(debug=False), is_nova=True,
                                 libvirt=True, driver=self.driver)

    def found(self, check):
        """Return the items of a check, by name."""
        return {one.name: one for one in check(self.checked)}

    def domains(self):
        return [domain.name() for domain in
                self.host.get_connection().listAllDomains()]

    def assert_nothing_is_left(self):
        self.assertEqual([], self.domains())
        self.assertEqual([], os.listdir(self.images))
        self.assertEqual([], list(self.freezes.glob('*')))
        self.assertEqual([], os.listdir(self.journal))


class TrialTest(CheckTestCase):

    def test_each_strategy_freezes_reads_and_puts_back(self):
        found = self.found(trial.trial)
        self.assertEqual(
            {}, {name: one for name, one in found.items()
                 if one.status is not item.Status.OK})
        for name in ('backup', 'external', 'internal', 'cold',
                     'cold (shut off)'):
            self.assertIn('frozen for', found[f'trial {name}'].text)
        self.assertIn('is removed', found['trial'].text)
        self.assert_nothing_is_left()

    def test_strategy_that_fails_is_reported_and_the_others_are_tried(self):
        with mock.patch.object(
                external.ExternalStrategy, 'freeze_disk',
                side_effect=exception.UnexpectedState(reason='no space')):
            found = self.found(trial.trial)
        one = found['trial external']
        self.assertIs(item.Status.FAILED, one.status)
        self.assertIn('no space', one.text)
        self.assertIs(item.Status.OK, found['trial internal'].status)
        self.assert_nothing_is_left()

    def test_content_that_differs_is_reported(self):
        with mock.patch.object(trial, '_read', return_value=b'x'):
            found = self.found(trial.trial)
        self.assertIn('not what the disk contains',
                      found['trial backup'].text)
        self.assert_nothing_is_left()

    def test_guest_that_can_not_start_is_removed(self):
        with mock.patch.object(trial_guest, 'MEMORY', 1 << 40):
            found = self.found(trial.trial)
        self.assertIs(item.Status.FAILED, found['trial'].status)
        self.assert_nothing_is_left()

    def interrupt(self):
        """Leave what a killed trial leaves."""
        with mock.patch.object(trial_guest.TrialGuest, 'release',
                               side_effect=OSError('killed')):
            found = self.found(trial.trial)
        self.assertIs(item.Status.FAILED, found['trial'].status)
        [name] = self.domains()
        return name

    def test_next_trial_removes_what_a_killed_one_has_left(self):
        name = self.interrupt()
        texts = [one.text for one in trial.trial(self.checked)]
        self.assertIn(f'{name}, which an earlier trial had left, is removed',
                      texts)
        self.assert_nothing_is_left()

    def test_recover_removes_what_a_killed_trial_has_left(self):
        self.interrupt()
        self.assertTrue(recover.recover_trials(self.driver))
        self.assert_nothing_is_left()

    def test_next_trial_removes_a_guest_whose_journal_is_lost(self):
        name = self.interrupt()
        shutil.rmtree(trial.directory())
        texts = [one.text for one in trial.trial(self.checked)]
        self.assertIn(f'{name}, which an earlier trial had left, is removed',
                      texts)
        self.assert_nothing_is_left()

    def test_strategy_of_another_package_is_tried(self):
        other = external.ExternalStrategy(self.driver)
        other.name = 'other'
        self.useFixture(fixtures.MockPatchObject(
            self.driver, 'strategies',
            {**self.driver.strategies, 'other': other}))
        found = self.found(trial.trial)
        self.assertIn('frozen for', found['trial other'].text)
        self.assertNotIn('trial native', found)
        self.assert_nothing_is_left()

    def test_recover_finds_a_guest_whose_journal_is_lost(self):
        self.interrupt()
        shutil.rmtree(trial.directory())
        self.assertTrue(recover.recover_trials(self.driver))
        self.assert_nothing_is_left()

    def test_strategy_of_another_package_that_fails_ends_no_trial(self):
        self.useFixture(fixtures.MockPatchObject(
            self.driver, 'strategies',
            {**self.driver.strategies, 'other': mock.Mock(
                unsupported_reason=mock.Mock(return_value=None),
                freeze=mock.Mock(side_effect=KeyError('x')))}))
        found = self.found(trial.trial)
        self.assertIs(item.Status.FAILED, found['trial other'].status)
        self.assertIs(item.Status.OK, found['trial cold (shut off)'].status)
        self.assert_nothing_is_left()

    def test_journal_that_names_another_guest_is_refused(self):
        plan = self.guest(self.qcow2())
        self.assertRaises(
            exception.JournalRecordError, trial_guest.TrialGuest.restore,
            self.driver, plan, {'pool': None})

    def test_recovery_touches_no_domain_of_another_name(self):
        plan = self.guest(self.qcow2())
        guest = trial_guest.TrialGuest(self.host, plan.instance)
        guest.directory = str(self.images / 'none')
        self.assertRaises(exception.UnexpectedState, guest.release)
        self.assertEqual([plan.instance.name], self.domains())
        self.assertTrue(plan.guest.is_active())


class GuestsTest(CheckTestCase):

    def setUp(self):
        super().setUp()
        self.enterContext(mock.patch.object(
            guests, 'is_of_nova', return_value=True))
        self.enterContext(mock.patch.object(
            guests, '_instance', side_effect=self.instance))

    @staticmethod
    def instance(guest, asking):
        instance = base.planning.UnknownInstance(guest.uuid, guest.name)
        # The disks of these guests are not where Nova has them.
        instance.root_device_name = '/dev/vda'
        return instance, asking

    def test_strategy_of_each_guest_is_told_with_the_reasons(self):
        running = self.guest(self.qcow2())
        shut_off = self.guest(self.qcow2(), running=False)
        found = self.found(guests.guests)
        text = found[f'guest {running.instance.uuid}'].text
        self.assertIn('(running): backup (others: ', text)
        self.assertIn('external: possible, too', text)
        text = found[f'guest {shut_off.instance.uuid}'].text
        self.assertIn('(shut off): cold', text)
        self.assertIn('backup: the guest is shut off', text)

    def test_guest_that_no_strategy_serves_is_reported(self):
        conf.CONF.set_override('strategy', 'external', 'snapext')
        self.addCleanup(conf.CONF.clear_override, 'strategy', 'snapext')
        plan = self.guest(self.qcow2(), running=False)
        one = self.found(guests.guests)[f'guest {plan.instance.uuid}']
        self.assertIs(item.Status.FAILED, one.status)
        self.assertIn('external: the guest is shut off', one.text)

    def test_nothing_is_changed(self):
        plan = self.guest(self.qcow2())
        before = plan.guest.get_xml_desc()
        self.found(guests.guests)
        self.assertEqual(before, plan.guest.get_xml_desc())
        self.assert_nothing_left(plan)


class LibvirtTest(CheckTestCase):

    def test_versions_of_libvirt_and_qemu_are_told(self):
        [first, *_] = hypervisor.defects(self.checked)
        self.assertRegex(first.text, r'QEMU \d+\.\d+\.\d+ and libvirt \d+')

    def test_libvirtd_that_responds_tells_the_user_of_qemu(self):
        one = self.found(hypervisor.connection)['libvirt']
        self.assertIs(item.Status.OK, one.status)
        self.assertIsNotNone(self.checked.qemu)

    def test_libvirtd_that_hangs_is_reported(self):
        self.enterContext(mock.patch.object(hypervisor, 'TIMEOUT', 1))
        daemon = self.libvirtd.daemons[1].identity()
        daemon.signal(signal.SIGSTOP)
        try:
            one = self.found(hypervisor.connection)['libvirt']
        finally:
            daemon.signal(signal.SIGCONT)
        self.assertIs(item.Status.FAILED, one.status)
        self.assertIn('did not respond for 1 seconds', one.text)

    def test_libvirtd_that_does_not_run_is_reported_with_a_remedy(self):
        conf.CONF.set_override('connection_uri',
                               'qemu:///system?socket=/none', 'libvirt')
        one = self.found(hypervisor.connection)['libvirt']
        self.assertIs(item.Status.FAILED, one.status)
        self.assertIn('usermod', one.remedy)


class KilledTrialTest(CheckTestCase):
    """The trial in a process of its own, which is killed."""

    SCRIPT = '''
import argparse, os, signal, sys
from unittest import mock
from oslo_concurrency import processutils
from nova import objects
from nova.virt import fake
from nova_snapext import conf, driver
from nova_snapext.cmd.check import item, trial
from nova_snapext.hypervisor import privsep
objects.register_all()
conf.CONF([])
for text in sys.argv[1:]:
    name, value = text.split('=', 1)
    group, _, name = name.rpartition('.')
    conf.CONF.set_override(name, value, group or None)
privsep.context.client_mode = False
made = driver.SnapextDriver(fake.FakeVirtAPI())
made._host.initialize()
read = trial._read
def killed(frozen):
    os.kill(os.getpid(), signal.SIGKILL)
trial._read = killed
host = item.Host(argparse.Namespace(debug=False), driver=made)
for one in trial.trial(host):
    print(one, flush=True)
'''

    def test_killed_in_the_middle_and_all_is_removed(self):
        options = conf.CONF
        run = subprocess.run(
            [sys.executable, '-c', self.SCRIPT,
             *(f'libvirt.{name}={options.libvirt[name]}' for name in
               ('connection_uri', 'virt_type')),
             *(f'snapext.{name}={options.snapext[name]}' for name in (
                 'work_directory', 'journal_directory',
                 'libvirt_config_directory', 'libvirt_save_directory')),
             f'instances_path={options.instances_path}',
             f'state_path={self.images}'],
            capture_output=True, text=True, check=False,
            cwd=pathlib.Path(__file__).parents[3])
        self.assertEqual(-signal.SIGKILL, run.returncode, run.stderr)
        [name] = self.domains()
        self.assertTrue(re.match('nova-snapext-trial-', name))
        self.assertTrue(recover.recover_trials(self.driver))
        self.assert_nothing_is_left()
