# SPDX-License-Identifier: Apache-2.0

import contextlib
import pathlib
import tempfile
import types
import unittest
from unittest import mock

from devbench import cases
from devbench import measure
from devbench import runner
from devcloud import errors

MIB = 1 << 20


class RunTest(unittest.TestCase):

    def setUp(self):
        self.root = pathlib.Path(self.enterContext(
            tempfile.TemporaryDirectory()))
        state = types.SimpleNamespace(
            root=self.root, bin=str, snapshots=self.root / 'snapshots')
        self.saved = []
        self.run_ = runner.Run(
            state, ('best PUT', 'backup', 'Nova cold', 'cold, shut off'), 2,
            1, (), lambda text: None,
            lambda results: self.saved.append([
                len(runs) for case in results['cases']
                for runs in case['runs'].values()]))
        self.configured = []
        self.powered = []
        self.turns = []
        self.failing = set()
        self.results = None
        for target, name, replacement in (
                (runner.guest, 'image', lambda *_args: 'image'),
                (runner.host, 'packages', lambda *_args: {}),
                (runner.host, 'facts', dict),
                (runner.api.Client, 'admin', mock.Mock()),
                (runner.api.Client, 'demo', mock.Mock()),
                (runner, 'make_flavors', mock.Mock()),
                (runner.compute, 'configure', self.configure),
                (runner.servers, 'show', self.show),
                (runner.servers, 'action', mock.MagicMock()),
                (runner.servers, 'await_status', self.await_status),
                (runner.Run, '_power', self.power),
                (runner, 'await_writes', mock.Mock()),
                (runner.Run, 'remove_leftovers', mock.Mock()),
                (runner.Run, '_prepare', self.prepare),
                (measure, 'Turn', self.turn)):
            self.enterContext(mock.patch.object(target, name, replacement))
        self.status = 'ACTIVE'

    def configure(self, _state, settings, reset):
        self.configured.append(settings)
        return self.configured[-2:-1] != [settings]

    def await_status(self, _client, _server, status, timeout):
        self.turns.append(('warm up', status))

    def show(self, _client, _server):
        return {'status': self.status}

    def power(self, _server, on):
        self.powered.append(on)
        self.status = 'ACTIVE' if on else 'SHUTOFF'

    def prepare(self, case, image, stack):
        if case.name in self.failing:
            raise errors.CloudError('no guest')
        return (measure.Guest('server', None, None, MIB), {
            'data': MIB, 'allocated': MIB, 'virtual': case.disk << 30,
            'ready_made': MIB})

    def turn(self, _state, one, _subject, _baseline):
        def run():
            if one.name in self.failing:
                raise errors.CloudError('the snapshot failed')
            self.turns.append((one.name, self.status))
            return {'wall': 1.0, 'sent': MIB}
        return types.SimpleNamespace(run=run)

    def start(self, *names):
        results = []
        save = self.run_.save
        self.run_.save = lambda found: (results.append(found), save(found))
        self.run_.run([cases.BY_NAME[name] for name in names])
        return results[-1]

    def test_results_are_saved_after_each_turn(self):
        self.start('raw')
        self.assertEqual([1, 2, 3, 4, 5, 6, 7, 8, 8],
                         [sum(counts) for counts in self.saved])

    def test_guest_is_shut_off_only_for_contestants_that_need_it(self):
        self.start('raw')
        for name, status in self.turns:
            if name == 'warm up':
                continue
            self.assertEqual('SHUTOFF' if name == 'cold, shut off'
                             else 'ACTIVE', status)
        self.assertEqual([False, True] * 2, self.powered[:4])

    def test_each_turn_has_settings_of_contestant_and_case(self):
        self.start('raw')
        for settings in self.configured[:-1]:
            self.assertIn('libvirt.images_type=raw', settings)
        self.assertTrue(any(
            'workarounds.disable_libvirt_livesnapshot=True' in settings
            for settings in self.configured))
        self.assertEqual((), self.configured[-1])

    def test_new_nova_compute_takes_a_snapshot_before_each_measured_one(self):
        self.start('raw')
        self.assertEqual([
            ('warm up', 'ACTIVE'), ('best PUT', 'ACTIVE'),
            ('backup', 'ACTIVE'),
            ('warm up', 'ACTIVE'), ('Nova cold', 'ACTIVE'),
            ('warm up', 'SHUTOFF'), ('cold, shut off', 'SHUTOFF'),
            # The second round.
            ('warm up', 'ACTIVE'), ('Nova cold', 'ACTIVE'),
            ('warm up', 'SHUTOFF'), ('cold, shut off', 'SHUTOFF'),
            ('backup', 'ACTIVE'), ('best PUT', 'ACTIVE')], self.turns)

    def test_failed_turn_is_reported_and_the_others_continue(self):
        self.failing = {'backup'}
        [case] = self.start('raw')['cases']
        self.assertEqual(['round 1: backup: the snapshot failed',
                          'round 2: backup: the snapshot failed'],
                         case['failures'])
        self.assertEqual(
            [2, 0, 2, 2], [len(runs) for runs in case['runs'].values()])

    def test_failed_case_is_reported_and_the_others_continue(self):
        self.failing = {'raw'}
        results = self.start('raw', 'block')
        self.assertEqual(['raw: no guest'], results['failures'])
        self.assertEqual(['block'],
                         [case['name'] for case in results['cases']])

    def test_finished_case_leaves_nothing_behind(self):
        with contextlib.suppress(KeyError):
            self.start('raw')
        self.assertEqual([], list(self.root.iterdir()))
