# SPDX-License-Identifier: Apache-2.0

import dataclasses
from unittest import mock

import stevedore
from stevedore import extension

from nova_snapext import choose
from nova_snapext import exception
from nova_snapext import freeze
from tests.unit import base

AUTO = choose.Wish('auto', '[snapext]strategy')


class ThirdPartyStrategy(freeze.FreezingStrategy):

    name = 'third-party'

    def _reason_against(self, plan):
        return None

    def _freeze(self, plan, stack):
        raise AssertionError


class LoadTest(base.TestCase):

    def load(self, *extensions):
        manager = extension.ExtensionManager.make_test_instance(extensions)
        with mock.patch.object(stevedore, 'ExtensionManager',
                               return_value=manager):
            return choose.load_strategies(mock.Mock())

    def extension(self, name='third-party'):
        return extension.Extension(
            name, mock.Mock(value='some:Class'), ThirdPartyStrategy, None)

    def test_all_of_ours_are_entry_points_with_their_names(self):
        strategies = choose.load_strategies(mock.Mock())
        self.assertLessEqual({'backup', 'cold', 'native'}, set(strategies))
        for name, strategy in strategies.items():
            self.assertEqual(name, strategy.name)

    def test_a_third_party_s_is_loaded_and_chosen(self):
        strategies = self.load(self.extension())
        plan = base.TestCase.plan(self)
        self.assertIsInstance(
            choose.choose(plan, choose.Wish('third-party', 'x'), strategies),
            ThirdPartyStrategy)

    def test_two_of_one_name_are_an_error(self):
        error = self.assertRaises(
            exception.StrategyError, self.load, self.extension(),
            self.extension())
        self.assertIn('third-party is there twice', str(error))

    def test_one_that_can_not_be_loaded_is_an_error_that_names_it(self):
        with mock.patch.object(
                choose.stevedore, 'ExtensionManager') as manager:
            choose.load_strategies(mock.Mock())
        failed = manager.call_args.kwargs['on_load_failure_callback']
        entry_point = mock.Mock(value='some:Class')
        entry_point.name = 'mine'
        error = self.assertRaises(
            exception.StrategyError, failed, None, entry_point,
            ImportError('no such module'))
        self.assertIn('mine (some:Class)', str(error))
        self.assertIn('no such module', str(error))


class OptionsTest(base.TestCase):

    def check(self):
        choose.check_options(choose.load_strategies(mock.Mock()))

    def refused(self):
        return str(self.assertRaises(exception.StrategyError, self.check))

    def test_defaults_are_right(self):
        self.check()

    def test_unknown_names_are_refused_with_those_that_there_are(self):
        for option, value in (('strategy', 'backup,bakcup'),
                              ('preference', ['bakcup']),
                              ('requestable', ['auto', 'bakcup'])):
            with self.subTest(option):
                self.flags(**{option: value}, group='snapext')
                text = self.refused()
                self.assertIn(f'[snapext]{option} names bakcup', text)
                self.assertIn('backup, cold', text)
                self.CONF.clear_override(option, group='snapext')

    def test_no_preference_at_all_is_refused(self):
        self.flags(preference=[], group='snapext')
        self.assertIn('[snapext]preference names none', self.refused())

    def test_preference_can_not_be_auto_itself(self):
        self.flags(preference=['auto'], group='snapext')
        self.assertIn('names auto', self.refused())

    def test_requests_may_be_forbidden_altogether(self):
        self.flags(requestable=[], group='snapext')
        self.check()


class WishTest(base.TestCase):

    def wish(self, properties=None, **extra_specs):
        instance = self.instance()
        instance.flavor.extra_specs = {
            name.replace('_', ':', 1): value
            for name, value in extra_specs.items()}
        return choose.wish(instance, properties or {})

    def test_the_host_s_default_comes_last(self):
        self.assertEqual(AUTO, self.wish())
        self.flags(strategy='external', group='snapext')
        self.assertEqual(['external'], self.wish().names)

    def test_a_flavor_comes_before_the_host(self):
        asked = self.wish(snapext_strategy='external')
        self.assertEqual(['external'], asked.names)
        self.assertIn('flavor', asked.asker)

    def test_a_request_comes_before_the_flavor(self):
        asked = self.wish({'snapext_strategy': 'cold'},
                          snapext_strategy='external')
        self.assertEqual(['cold'], asked.names)

    def test_auto_is_the_order_of_preference(self):
        self.flags(preference=['cold', 'native'], group='snapext')
        self.assertEqual(['cold', 'native'], AUTO.names)

    def test_several_names_are_an_order_of_their_own(self):
        asked = self.wish({'snapext_strategy': 'backup, cold'})
        self.assertEqual(['backup', 'cold'], asked.names)
        self.assertFalse(asked.is_auto)

    def test_a_request_that_is_not_allowed_is_refused(self):
        for text in ('native', 'external,native', '', 'no such thing'):
            error = self.assertRaises(
                exception.StrategyRefused, self.wish,
                {'snapext_strategy': text})
            self.assertIn('[snapext]requestable allows auto, backup',
                          str(error))

    def test_requests_can_be_forbidden(self):
        self.flags(requestable=[], group='snapext')
        error = self.assertRaises(exception.StrategyRefused, self.wish,
                                  {'snapext_strategy': 'auto'})
        self.assertIn('allows no request', str(error))

    def test_a_flavor_that_may_not_ask_is_refused(self):
        self.flags(flavors_may_ask=False, group='snapext')
        error = self.assertRaises(exception.StrategyRefused, self.wish,
                                  snapext_strategy='external')
        self.assertIn('[snapext]flavors_may_ask', str(error))

    def test_a_flavor_may_ask_for_what_requests_may_not(self):
        self.assertEqual(['native'],
                         self.wish(snapext_strategy='native').names)


class ChooseTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.strategies = choose.load_strategies(mock.Mock())

    def chosen(self, plan, text='auto'):
        return choose.choose(
            plan, choose.Wish(text, 'a test'), self.strategies).name

    def refused(self, plan, text):
        return str(self.assertRaises(
            exception.StrategyRefused, self.chosen, plan, text))

    def disk(self, **changes):
        return dataclasses.replace(base.QCOW2, **changes)

    def rbd(self, **changes):
        return self.plan(self.disk(storage='network', format='raw',
                                   path='rbd:vms/disk'), **changes)

    def test_a_running_guest_gets_a_backup_job(self):
        self.assertEqual('backup', self.chosen(self.plan(running=True)))

    def test_a_guest_that_is_shut_off_is_read_as_it_is(self):
        self.assertEqual('cold', self.chosen(self.plan(running=False)))

    def test_qcow2_raw_and_block_disks_are_served(self):
        for disk in (self.disk(format='raw'),
                     self.disk(format='raw', storage='block',
                               path='/dev/vg/disk')):
            self.assertEqual('backup', self.chosen(self.plan(disk=disk)))

    def test_what_nobody_else_can_read_is_nova_s(self):
        for disk in (self.disk(obstacle='its root disk is encrypted'),
                     self.disk(format='ploop')):
            self.assertEqual('native', self.chosen(self.plan(disk=disk)))

    def test_image_formats_that_are_unknown_here_are_nova_s(self):
        plan = self.plan(image_format='ploop')
        self.assertEqual('native', self.chosen(plan))
        self.assertIn('images of the format ploop are Nova\'s to make',
                      self.refused(plan, 'backup'))

    def test_auto_logs_every_reason_in_one_line(self):
        self.chosen(self.plan(disk=self.disk(obstacle='it is a container')))
        [line] = [line for line in self.stdlog.logger.output.splitlines()
                  if 'it is a container' in line]
        for name in self.CONF.snapext.preference[:-1]:
            self.assertIn(f'{name}: it is a container', line)
        self.assertIn('by the strategy native', line)

    def test_what_is_asked_for_and_impossible_is_refused_with_its_reason(
            self):
        text = self.refused(self.plan(running=False), 'backup')
        self.assertIn('Strategy backup, asked for by a test', text)
        self.assertIn('backup: the guest is shut off', text)

    def test_what_is_asked_for_and_unknown_is_refused_with_what_there_is(
            self):
        text = self.refused(self.plan(), 'bakcup')
        self.assertIn('bakcup: there is none of this name', text)
        self.assertIn('backup, cold', text)

    def test_no_wish_gets_into_the_log_but_as_one_short_line(self):
        for text in ('x\n2026-11-24 CRITICAL root', '\x1b[2J\0', 'y' * 9999,
                     '../../etc', '%(instance)s {0} %s', '\ud800', '', ',',
                     'backup\n'):
            wish = choose.Wish(text, 'somebody')
            with self.assertLogs('nova_snapext.choose', 'INFO') as logs:
                choose.LOG.info('%s', 'begin')
                try:
                    choose.choose(self.plan(running=False), wish,
                                  self.strategies)
                except exception.StrategyRefused as refused:
                    choose.LOG.info('%s', refused)
            for line in logs.output:
                self.assertTrue(line.isprintable(), line)
                self.assertLess(len(line), 1000)

    def test_a_list_is_tried_in_its_order(self):
        self.assertEqual(
            'cold', self.chosen(self.plan(running=False), 'backup,cold'))

    def test_auto_prefers_nova_s_live_snapshot_to_a_suspend(self):
        self.flags(preference=['cold', 'native'], group='snapext')
        self.assertEqual('native', self.chosen(self.plan()))
        self.assertEqual('cold', self.chosen(self.plan(running=False)))

    def test_auto_suspends_where_nova_would_and_for_shorter(self):
        self.flags(preference=['cold', 'native'], group='snapext')
        self.flags(disable_libvirt_livesnapshot=True, group='workarounds')
        self.assertEqual('cold', self.chosen(self.plan()))

    def test_auto_takes_one_at_a_price_when_there_is_no_other(self):
        self.flags(preference=['cold'], group='snapext')
        self.assertEqual('cold', self.chosen(self.plan()))

    def test_asked_for_a_price_is_no_obstacle(self):
        self.assertEqual('cold', self.chosen(self.plan(), 'cold'))

    def test_an_rbd_disk_is_left_to_nova_s_direct_snapshot(self):
        for running in (True, False):
            self.assertEqual('native', self.chosen(self.rbd(running=running)))

    def test_rbd_without_a_direct_snapshot_gets_a_backup_job(self):
        plan = dataclasses.replace(self.rbd(), direct_refused='no location')
        self.assertEqual('backup', self.chosen(plan))

    def test_rbd_shut_off_stays_nova_s_as_nothing_need_be_suspended(self):
        plan = dataclasses.replace(self.rbd(running=False),
                                   direct_refused='no location')
        self.assertEqual('native', self.chosen(plan))

    def test_an_rbd_disk_is_backed_up_where_that_is_asked_for(self):
        self.assertEqual('backup', self.chosen(self.rbd(), 'backup'))
        for name in ('external', 'internal', 'cold'):
            if name in self.strategies:
                self.assertIn('network storage',
                              self.refused(self.rbd(), name))
