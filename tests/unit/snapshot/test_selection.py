# SPDX-License-Identifier: Apache-2.0

import dataclasses
from unittest import mock

import stevedore
from stevedore import extension

from nova_snapext import exception
from nova_snapext.snapshot import selection
from nova_snapext import strategies
from tests.unit import base

AUTO = selection.StrategyRequest(('auto',), '[snapext]strategy')


class ThirdPartyStrategy(strategies.FreezingStrategy):

    name = 'third-party'

    def unsupported_guest_reason(self, plan):
        return None

    def freeze_disk(self, plan, stack):
        raise AssertionError


class LoadTest(base.TestCase):

    def load(self, *extensions):
        manager = extension.ExtensionManager.make_test_instance(extensions)
        with mock.patch.object(stevedore, 'ExtensionManager',
                               return_value=manager):
            return selection.load_strategies(mock.Mock())

    def extension(self, name='third-party'):
        return extension.Extension(
            name, mock.Mock(value='some:Class'), ThirdPartyStrategy, None)

    def test_each_strategy_has_the_name_of_its_entry_point(self):
        strategies = selection.load_strategies(mock.Mock())
        self.assertLessEqual({'backup', 'cold', 'native'}, set(strategies))
        for name, strategy in strategies.items():
            self.assertEqual(name, strategy.name)

    def test_strategy_of_another_package_is_loaded_and_selected(self):
        strategies = self.load(self.extension())
        plan = base.TestCase.plan(self)
        self.assertIsInstance(
            selection.select(plan, selection.StrategyRequest(
                ('third-party',), 'x'), strategies),
            ThirdPartyStrategy)

    def test_two_strategies_of_one_name_are_refused(self):
        error = self.assertRaises(
            exception.StrategyConfigError, self.load, self.extension(),
            self.extension())
        self.assertIn('third-party is installed twice', str(error))

    def test_strategy_that_can_not_be_loaded_is_named_in_the_error(self):
        with mock.patch.object(
                selection.stevedore, 'ExtensionManager') as manager:
            selection.load_strategies(mock.Mock())
        failed = manager.call_args.kwargs['on_load_failure_callback']
        entry_point = mock.Mock(value='some:Class')
        entry_point.name = 'mine'
        error = self.assertRaises(
            exception.StrategyConfigError, failed, None, entry_point,
            ImportError('no such module'))
        self.assertIn('mine (some:Class)', str(error))
        self.assertIn('no such module', str(error))


class OptionsTest(base.TestCase):

    def check(self):
        selection.check_options(selection.load_strategies(mock.Mock()))

    def refused(self):
        return str(self.assertRaises(
            exception.StrategyConfigError, self.check))

    def test_defaults_are_accepted(self):
        self.check()

    def test_unknown_name_is_refused_with_the_installed_ones(self):
        for option, value in (
                ('strategy', 'backup,bakcup'),
                ('auto_strategies', ['bakcup']),
                ('allowed_image_strategies', ['auto', 'bakcup']),
                ('allowed_flavor_strategies', ['auto', 'bakcup'])):
            with self.subTest(option):
                self.flags(**{option: value}, group='snapext')
                text = self.refused()
                self.assertIn(f'[snapext]{option} names bakcup', text)
                self.assertIn('backup, cold', text)
                self.CONF.clear_override(option, group='snapext')

    def test_empty_auto_strategies_are_refused(self):
        self.flags(auto_strategies=[], group='snapext')
        self.assertIn('[snapext]auto_strategies names none', self.refused())

    def test_empty_strategy_is_refused(self):
        self.flags(strategy='', group='snapext')
        self.assertIn('[snapext]strategy names none', self.refused())

    def test_auto_among_auto_strategies_is_refused(self):
        self.flags(auto_strategies=['auto'], group='snapext')
        self.assertIn('names auto', self.refused())

    def test_empty_allowed_strategies_are_accepted(self):
        self.flags(allowed_image_strategies=[], allowed_flavor_strategies=[],
                   group='snapext')
        self.check()


class RequestTest(base.TestCase):

    def request_for(self, properties=None, **extra_specs):
        instance = self.instance()
        instance.flavor.extra_specs = {
            name.replace('_', ':', 1): value
            for name, value in extra_specs.items()}
        return selection.request_for(instance, properties or {})

    def refused(self, *args, **kwargs):
        return str(self.assertRaises(
            exception.StrategyRefused, self.request_for, *args, **kwargs))

    def test_option_is_used_without_another_request(self):
        self.assertEqual(AUTO, self.request_for())
        self.flags(strategy='external', group='snapext')
        self.assertEqual(('external',), self.request_for().names)

    def test_request_of_flavor_precedes_option(self):
        request = self.request_for(snapext_strategy='external')
        self.assertEqual(('external',), request.names)
        self.assertIn('flavor', request.source)

    def test_request_of_image_precedes_flavor(self):
        request = self.request_for({'snapext_strategy': 'cold'},
                                   snapext_strategy='external')
        self.assertEqual(('cold',), request.names)
        self.assertIn('image property', request.source)

    def test_several_names_are_kept_in_their_order(self):
        request = self.request_for({'snapext_strategy': 'backup, cold'})
        self.assertEqual(('backup', 'cold'), request.names)
        self.assertFalse(request.is_auto)

    def test_auto_with_spaces_is_auto(self):
        self.assertTrue(
            self.request_for({'snapext_strategy': ' auto\n'}).is_auto)

    def test_request_of_image_outside_its_list_is_refused(self):
        for text in ('native', 'external,native', '', 'no such thing'):
            self.assertIn(
                '[snapext]allowed_image_strategies allows auto, backup',
                self.refused({'snapext_strategy': text}))

    def test_empty_list_refuses_all_requests_of_images(self):
        self.flags(allowed_image_strategies=[], group='snapext')
        self.assertIn('allows no request',
                      self.refused({'snapext_strategy': 'auto'}))

    def test_request_of_flavor_outside_its_list_is_refused(self):
        self.flags(allowed_flavor_strategies=['auto', 'backup'],
                   group='snapext')
        for text in ('external', 'backup,external', ''):
            self.assertIn(
                '[snapext]allowed_flavor_strategies allows auto, backup',
                self.refused(snapext_strategy=text))
        self.request_for(snapext_strategy='backup')

    def test_empty_list_refuses_all_requests_of_flavors(self):
        self.flags(allowed_flavor_strategies=[], group='snapext')
        self.assertIn('[snapext]allowed_flavor_strategies allows no request',
                      self.refused(snapext_strategy='auto'))

    def test_flavor_may_request_native_by_default_and_image_may_not(self):
        self.assertEqual(
            ('native',), self.request_for(snapext_strategy='native').names)
        self.refused({'snapext_strategy': 'native'})

    def test_strategy_of_another_package_is_refused_until_it_is_listed(self):
        self.assertIn('[snapext]allowed_flavor_strategies',
                      self.refused(snapext_strategy='third-party'))
        self.flags(allowed_flavor_strategies=['third-party'], group='snapext')
        self.assertEqual(('third-party',), self.request_for(
            snapext_strategy='third-party').names)


class SelectTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.strategies = selection.load_strategies(mock.Mock())

    def selected(self, plan, text='auto'):
        return selection.select(
            plan, selection.StrategyRequest.parse(text, 'a test'),
            self.strategies).name

    def refused(self, plan, text):
        return str(self.assertRaises(
            exception.StrategyRefused, self.selected, plan, text))

    def disk(self, **changes):
        return dataclasses.replace(base.QCOW2, **changes)

    def rbd(self, **changes):
        return self.plan(self.disk(storage='network', format='raw',
                                   path='rbd:vms/disk'), **changes)

    def test_running_guest_gets_backup(self):
        self.assertEqual('backup', self.selected(self.plan(running=True)))

    def test_guest_that_is_shut_off_gets_cold(self):
        self.assertEqual('cold', self.selected(self.plan(running=False)))

    def test_raw_and_block_disks_are_supported(self):
        for disk in (self.disk(format='raw'),
                     self.disk(format='raw', storage='block',
                               path='/dev/vg/disk')):
            self.assertEqual('backup', self.selected(self.plan(disk=disk)))

    def test_disk_that_only_nova_can_read_gets_native(self):
        for disk in (
                self.disk(unsupported_reason='its root disk is encrypted'),
                self.disk(format='ploop')):
            self.assertEqual('native', self.selected(self.plan(disk=disk)))

    def test_unknown_image_format_gets_native(self):
        plan = self.plan(image_format='ploop')
        self.assertEqual('native', self.selected(plan))
        self.assertIn('only Nova\'s own snapshot can create images of the '
                      'format ploop', self.refused(plan, 'backup'))

    def test_reasons_of_auto_are_logged_in_one_line(self):
        self.selected(self.plan(disk=self.disk(
            unsupported_reason='it is a container')))
        [line] = [line for line in self.stdlog.logger.output.splitlines()
                  if 'it is a container' in line]
        for name in self.CONF.snapext.auto_strategies[:-1]:
            self.assertIn(f'{name}: it is a container', line)
        self.assertIn('by the strategy native', line)

    def test_unsupported_request_is_refused_with_its_reason(self):
        text = self.refused(self.plan(running=False), 'backup')
        self.assertIn('Strategy backup, requested by a test', text)
        self.assertIn('backup: the guest is shut off', text)

    def test_unknown_request_is_refused_with_the_installed_names(self):
        text = self.refused(self.plan(), 'bakcup')
        self.assertIn('bakcup: not installed', text)
        self.assertIn('backup, cold', text)

    def test_untrusted_request_is_one_short_printable_line_in_the_log(self):
        for text in ('x\n2026-11-24 CRITICAL root', '\x1b[2J\0', 'y' * 9999,
                     '../../etc', '%(instance)s {0} %s', '\ud800', '', ',',
                     'backup\n'):
            request = selection.StrategyRequest.parse(text, 'somebody')
            with self.assertLogs('nova_snapext.snapshot.selection',
                                 'INFO') as logs:
                selection.LOG.info('%s', 'begin')
                try:
                    selection.select(self.plan(running=False), request,
                                     self.strategies)
                except exception.StrategyRefused as refused:
                    selection.LOG.info('%s', refused)
            for line in logs.output:
                self.assertTrue(line.isprintable(), line)
                self.assertLess(len(line), 1000)

    def test_names_are_tried_in_their_order(self):
        self.assertEqual(
            'cold', self.selected(self.plan(running=False), 'backup,cold'))

    def test_auto_uses_the_order_of_auto_strategies(self):
        for names in (['cold', 'native'], ['native', 'cold']):
            self.flags(auto_strategies=names, group='snapext')
            self.assertEqual(names[0],
                             self.selected(self.plan(running=False)))

    def test_auto_skips_cold_if_native_would_be_live(self):
        self.flags(auto_strategies=['cold', 'native'], group='snapext')
        self.assertEqual('native', self.selected(self.plan()))
        self.assertEqual('cold', self.selected(self.plan(running=False)))

    def test_auto_selects_cold_if_native_would_suspend_too(self):
        self.flags(auto_strategies=['cold', 'native'], group='snapext')
        self.flags(disable_libvirt_livesnapshot=True, group='workarounds')
        self.assertEqual('cold', self.selected(self.plan()))

    def test_auto_falls_back_to_a_skipped_strategy(self):
        self.flags(auto_strategies=['cold'], group='snapext')
        self.assertEqual('cold', self.selected(self.plan()))

    def test_requested_strategy_is_not_skipped(self):
        self.assertEqual('cold', self.selected(self.plan(), 'cold'))

    def test_rbd_disk_gets_native(self):
        for running in (True, False):
            self.assertEqual('native',
                             self.selected(self.rbd(running=running)))

    def test_rbd_disk_without_a_direct_snapshot_gets_backup(self):
        plan = dataclasses.replace(self.rbd(), direct_refused='no location')
        self.assertEqual('backup', self.selected(plan))

    def test_rbd_disk_of_a_guest_that_is_shut_off_gets_native(self):
        plan = dataclasses.replace(self.rbd(running=False),
                                   direct_refused='no location')
        self.assertEqual('native', self.selected(plan))

    def test_rbd_disk_gets_backup_on_request_and_no_other_strategy(self):
        self.assertEqual('backup', self.selected(self.rbd(), 'backup'))
        for name in ('external', 'internal', 'cold'):
            if name in self.strategies:
                self.assertIn('network storage',
                              self.refused(self.rbd(), name))
