# SPDX-License-Identifier: Apache-2.0

import dataclasses
from unittest import mock

import fixtures
import libvirt
from nova import objects
import stevedore
from stevedore import extension

from nova_snapext import exception
from nova_snapext.hypervisor import ceph
from nova_snapext import reason as reasons
from nova_snapext.snapshot import selection
from nova_snapext import strategies
from tests.unit import base

AUTO = selection.StrategyRequest(
    ('auto',), 'the configuration ([snapext]strategy)')


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
        for names in (['auto'], ['backup', 'auto']):
            self.flags(auto_strategies=names, group='snapext')
            self.assertIn('names auto, which stands for this list',
                          self.refused())

    def test_empty_name_in_a_list_is_refused(self):
        for option, value in (('strategy', 'external,,cold'),
                              ('strategy', 'external,'),
                              ('auto_strategies', ['external', '']),
                              ('allowed_image_strategies', ['auto', ''])):
            self.flags(**{option: value}, group='snapext')
            self.assertIn(f'[snapext]{option} names ', self.refused())
            self.CONF.clear_override(option, group='snapext')

    def test_auto_in_a_list_is_accepted(self):
        for text in ('auto', 'external,auto', 'auto, cold', 'auto,auto'):
            self.flags(strategy=text, group='snapext')
            self.check()

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
                '[snapext]allowed_image_strategies allows auto, rbd, backup',
                self.refused({'snapext_strategy': text}))

    def test_refusal_names_what_is_not_allowed(self):
        self.assertIn('it names native, and', self.refused(
            {'snapext_strategy': 'external,native'}))
        self.assertIn('it names an empty name, native, and', self.refused(
            {'snapext_strategy': 'external,,native'}))

    def test_auto_in_a_list_is_allowed_if_auto_is(self):
        # The operator has chosen what it stands for.
        self.flags(allowed_image_strategies=['auto', 'external'],
                   auto_strategies=['backup', 'native'], group='snapext')
        self.request_for({'snapext_strategy': 'external,auto'})
        self.flags(allowed_image_strategies=['external'], group='snapext')
        self.assertIn('it names auto, and', self.refused(
            {'snapext_strategy': 'external,auto'}))

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
        # Ceph's bindings may be missing on this machine.
        self.has_ceph = self.enterContext(mock.patch.object(
            ceph, 'is_installed', return_value=True))

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
        self.assertIn('it names bakcup', text)
        self.assertIn('there are auto, backup, cold', text)

    def test_one_unknown_name_refuses_the_whole_list(self):
        for text, named in (
                ('extrenal,cold', 'extrenal'), ('cold,extrenal', 'extrenal'),
                ('auto,extrenal', 'extrenal'), ('Cold', 'Cold'),
                ('cold,COLD', 'COLD'), ('AUTO', 'AUTO'),
                ('external,,cold', 'an empty name'),
                ('cold, ', 'an empty name'),
                ('', 'none'), (' ', 'none'), (',', 'an empty name')):
            with self.subTest(text):
                reason = self.refused(self.plan(running=False), text)
                self.assertIn(f'it names {named}', reason)

    def test_name_may_be_repeated(self):
        self.assertEqual('cold', self.selected(
            self.plan(running=False), 'external,cold,cold,external'))

    def test_unknown_name_is_for_users(self):
        error = self.assertRaises(
            exception.StrategyRefused, self.selected, self.plan(), 'hot')
        self.assertIn('it names hot; there are auto, backup',
                      error.format_message())

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

    def test_auto_in_a_list_stands_in_its_place(self):
        self.assertEqual('external', self.selected(
            self.plan(), 'external,auto'))
        self.assertEqual('cold', self.selected(
            self.plan(running=False), 'external,auto'))
        self.assertEqual('backup', self.selected(
            self.plan(), 'auto,external'))
        for text in ('auto,auto', 'auto,cold'):
            self.assertEqual('backup', self.selected(self.plan(), text))

    def test_auto_in_a_list_skips_what_disturbs(self):
        self.flags(auto_strategies=['cold', 'native'], group='snapext')
        self.unsupported('external')
        self.assertEqual('native', self.selected(
            self.plan(), 'external,auto'))

    def test_strategy_that_auto_skips_is_taken_by_its_own_name(self):
        self.flags(auto_strategies=['backup', 'cold'], group='snapext')
        self.unsupported('backup')
        self.assertEqual('cold', self.selected(
            self.plan(), 'auto,cold,native'))

    def test_auto_in_a_list_falls_back_after_the_whole_list(self):
        self.flags(auto_strategies=['cold'], group='snapext')
        self.unsupported('external')
        self.assertEqual('native', self.selected(
            self.plan(), 'external,auto,native'))
        self.assertEqual('cold', self.selected(
            self.plan(), 'external,auto'))

    def test_strategy_is_by_auto_if_its_name_does_not_come_first(self):
        for text, expected in (('auto', True), ('native', False),
                               ('native,auto', False), ('auto,native', True),
                               ('external,auto', True), ('external', False)):
            request = selection.StrategyRequest.parse(text, '')
            self.assertEqual(expected, request.is_by_auto('native'), text)

    def unsupported(self, *names, reason='no'):
        for name in names:
            self.useFixture(fixtures.MockPatchObject(
                self.strategies[name], 'unsupported_reason',
                return_value=reason))

    def test_auto_falls_back_to_a_skipped_strategy(self):
        self.flags(auto_strategies=['cold'], group='snapext')
        self.assertEqual('cold', self.selected(self.plan()))

    def test_requested_strategy_is_not_skipped(self):
        self.assertEqual('cold', self.selected(self.plan(), 'cold'))

    def test_rbd_disk_gets_rbd(self):
        for running in (True, False):
            self.assertEqual('rbd', self.selected(self.rbd(running=running)))

    def test_rbd_disk_without_a_binding_gets_backup_or_native(self):
        self.has_ceph.return_value = False
        self.assertEqual('backup', self.selected(self.rbd()))
        self.assertEqual('native', self.selected(dataclasses.replace(
            self.rbd(running=False), image_format='raw')))

    def test_rbd_disk_is_refused_with_what_to_write(self):
        for running in (True, False):
            error = self.assertRaises(
                exception.StrategyRefused, self.selected,
                self.rbd(running=running), 'external,cold')
            for text in (str(error), error.format_message()):
                self.assertIn('write "external,cold,rbd"', text)
        self.assertEqual('rbd', self.selected(
            self.rbd(running=False), 'external,cold,rbd'))
        self.assertEqual('rbd', self.selected(
            self.rbd(running=False), 'external,auto'))

    def test_disk_in_a_file_has_no_advice_about_ceph(self):
        self.assertNotIn('rbd', self.refused(
            self.plan(running=False), 'backup'))

    def test_host_with_ceph_whose_strategy_serves_no_disk_is_told(self):
        self.flags(images_type='rbd', group='libvirt')
        for strategy, is_told in (
                ('external,cold', True), ('external,cold,rbd', False),
                ('auto', False), ('external,auto', False)):
            self.flags(strategy=strategy, group='snapext')
            with mock.patch.object(selection, 'LOG') as log:
                selection.check_options(self.strategies)
            self.assertEqual(is_told, log.warning.called, strategy)

    def test_native_in_ceph_may_suspend_for_another_format_than_raw(self):
        plan = dataclasses.replace(self.rbd(), image_format='qcow2')
        self.assertEqual('native', self.selected(plan, 'native'))
        native = self.strategies['native']
        self.assertTrue(native.stops_guest(plan))
        self.assertIn('qcow2', native.auto_skip_reason(plan))

    def test_native_that_does_not_quiesce_is_refused_if_that_is_required(self):
        plan = self.rbd()
        self.useFixture(fixtures.MockPatchObject(
            objects.Instance, 'image_meta', objects.ImageMeta.from_dict({
                'properties': {'os_require_quiesce': True}})))
        self.assertIn('os_require_quiesce', self.refused(plan, 'native'))
        lvm = dataclasses.replace(plan, disk=dataclasses.replace(
            plan.disk, storage='block', path='/dev/vg/disk'))
        self.assertIn('os_require_quiesce', self.refused(lvm, 'native'))
        off = dataclasses.replace(plan, running=False)
        self.assertEqual('native', self.selected(off, 'native'))
        # A live snapshot of a file is quiesced by Nova.
        live = dataclasses.replace(plan, disk=base.QCOW2)
        self.assertEqual('native', self.selected(live, 'native'))

    def test_rbd_disk_gets_backup_on_request_and_no_other_strategy(self):
        self.assertEqual('backup', self.selected(self.rbd(), 'backup'))
        for name in ('external', 'internal', 'cold'):
            if name in self.strategies:
                self.assertIn('network storage',
                              self.refused(self.rbd(), name))

    def test_error_while_a_reason_is_found_out_is_a_reason(self):
        for error in (base.libvirt_error(libvirt.VIR_ERR_OPERATION_FAILED),
                      OSError('libvirt refuses'),
                      exception.UnexpectedState(reason='libvirt refuses')):
            with mock.patch.object(self.strategies['backup'],
                                   'unsupported_reason', side_effect=error):
                self.assertIn('libvirt refuses',
                              self.refused(self.plan(), 'backup'))
                self.assertEqual('external', self.selected(
                    self.plan(), 'backup,external'))

    def test_guest_that_ends_during_the_selection_is_no_reason(self):
        error = base.libvirt_error(libvirt.VIR_ERR_NO_DOMAIN)
        with mock.patch.object(self.strategies['backup'],
                               'unsupported_reason', side_effect=error):
            self.assertIs(error, self.assertRaises(
                type(error), self.selected, self.plan()))

    def test_job_of_the_guest_is_a_reason(self):
        plan = self.plan()
        plan.guest.job_stats.return_value = {
            'type': libvirt.VIR_DOMAIN_JOB_UNBOUNDED,
            'operation': libvirt.VIR_DOMAIN_JOB_OPERATION_DUMP}
        error = self.assertRaises(
            exception.StrategyRefused, self.selected, plan, 'backup,native')
        self.assertIn('domjobabort', str(error))
        self.assertIn('backup, native: Another operation of the server is in '
                      'progress (dump)',
                      error.format_message())
        self.assertNotIn('virsh', error.format_message())

    def test_nova_opens_no_disk_that_a_strategy_must_not_open(self):
        self.unsupported('backup', 'external')
        self.unsupported('cold', reason=reasons.UnsafeDiskReason('header'))
        self.assertIn('native: Nova\'s own snapshot would open the disk',
                      self.refused(self.plan(running=False), 'auto'))
        self.assertEqual('native', self.selected(self.plan(), 'native'))

    def test_nova_stages_no_image_on_a_host_without_space(self):
        self.flags(min_free_disk_mb=10 ** 9, group='snapext')
        error = self.assertRaises(
            exception.StrategyRefused, self.selected, self.plan())
        self.assertIn('[snapext]min_free_disk_mb keeps', str(error))
        self.assertNotIn('MiB', error.format_message())
        self.assertIn('backup, external, cold: the host has not enough free '
                      'space', error.format_message())
        self.assertIn('native: Nova\'s own snapshot needs even more',
                      error.format_message())

    def test_list_goes_on_to_a_strategy_that_needs_no_space(self):
        self.flags(min_free_disk_mb=10 ** 9, group='snapext')
        with mock.patch.object(self.strategies['backup'], 'growing_paths',
                               return_value=()):
            self.assertEqual('backup', self.selected(
                self.plan(), 'external,backup'))


class UsersTest(base.TestCase):
    """What users read of a refusal."""

    SECRETS = ('/var/lib/nova', '4711 MiB', '0000:3b:00.0', 'compute17')

    def refusal(self, *found):
        names = ('backup', 'external', 'internal', 'cold')
        available = {name: mock.create_autospec(
            strategies.FreezingStrategy, instance=True)
            for name in names[:len(found)]}
        for (name, strategy), reason in zip(
                available.items(), found, strict=True):
            strategy.name = name
            strategy.unsupported_reason.return_value = reason
        return self.assertRaises(
            exception.StrategyRefused, selection.select, self.plan(),
            selection.StrategyRequest(tuple(available), 'x'), available)

    def test_plain_reason_is_hidden_from_users_and_complete_for_operators(
            self):
        secret = ' '.join(self.SECRETS)
        error = self.refusal(secret)
        self.assertIn(secret, str(error))
        for text in self.SECRETS:
            self.assertNotIn(text, error.format_message())
        self.assertIn('backup: the host can\'t (ask an operator why)',
                      error.format_message())

    def test_reason_for_users_is_shown(self):
        error = self.refusal(reasons.UserReason('its disk is raw'))
        self.assertIn('backup: its disk is raw', error.format_message())

    def test_reason_may_have_a_part_for_users(self):
        error = self.refusal(reasons.UserReason('/secret is raw', 'it is raw'))
        self.assertIn('/secret is raw', str(error))
        self.assertIn('backup: it is raw', error.format_message())
        self.assertNotIn('/secret', error.format_message())

    def test_same_reasons_are_shown_once(self):
        error = self.refusal('/a', reasons.UserReason('off'), '/b',
                             reasons.UserReason('off'))
        self.assertIn('backup, internal: the host can\'t (ask an operator '
                      'why); external, cold: off', error.format_message())


class SelectAfterTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.strategies = selection.load_strategies(mock.Mock())
        self.failed = {}

    def fail(self, name, failure=exception.FreezeFailed, reason='AppArmor'):
        self.failed[name] = failure(
            strategy=name, disk='vda', instance='i', reason=reason)
        return self.failed[name]

    def after(self, text='auto', **plan):
        return selection.select_after(
            self.plan(**plan), selection.StrategyRequest.parse(text, 'x'),
            self.strategies, self.failed).name

    def raised(self, text='auto', **plan):
        return self.assertRaises(
            exception.SnapextError, self.after, text, **plan)

    def test_next_strategy_is_selected_and_one_line_says_why(self):
        self.fail('backup')
        with self.assertLogs('nova_snapext.snapshot.selection',
                             'WARNING') as logs:
            self.assertEqual('external', self.after())
        [line] = logs.output
        for text in ('by the strategy external, and not by backup',
                     'AppArmor'):
            self.assertIn(text, line)

    def test_auto_ends_with_the_snapshot_of_nova(self):
        self.fail('backup')
        self.fail('external')
        self.assertEqual('native', self.after())

    def test_single_strategy_fails_as_it_is(self):
        error = self.fail('backup')
        text = str(error)
        self.assertIs(error, self.raised('backup'))
        self.assertEqual(text, str(error))

    def test_last_failure_contains_all_reasons(self):
        self.fail('external', reason='no overlay')
        error = self.fail('cold', reason='no memory')
        self.assertIs(error, self.raised('external,backup,cold',
                                         running=False))
        for text in ('no memory', 'No other strategy', 'no overlay',
                     'backup: the guest is shut off'):
            self.assertEqual(1, str(error).count(text), text)

    def test_disturbed_guest_is_left_alone(self):
        error = self.fail('cold', exception.FreezeFailedForGood)
        self.assertIs(error, self.raised('cold,backup'))

    def test_guest_that_stood_still_is_not_stopped_again(self):
        error = self.fail('internal', exception.GuestStoodStill)
        self.assertIs(error, self.raised('internal,cold'))
        self.assertIn('it would stop the guest again', str(error))
        self.assertEqual('backup', self.after('internal,cold,backup'))

    def test_guest_that_nova_would_suspend_is_not_stopped_again(self):
        self.fail('internal', exception.GuestStoodStill)
        self.flags(disable_libvirt_livesnapshot=True, group='workarounds')
        self.raised('internal,native')

    def test_nova_stages_no_image_after_a_lack_of_space(self):
        self.failed['backup'] = exception.InsufficientSpace(
            instance='i', path='/w', free=1, shrinks=0, min_free=2)
        self.assertEqual('external', self.after('backup,native,external'))
        self.raised('backup,native')
