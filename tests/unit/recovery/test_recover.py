# SPDX-License-Identifier: Apache-2.0

import os
import threading
from unittest import mock

import fixtures
from nova import exception as nova_exception
import oslo_messaging

from nova_snapext import bounded
from nova_snapext import exception
from nova_snapext.hypervisor import ceph
from nova_snapext import journal
from nova_snapext import plan as planning
from nova_snapext.recovery import gate
from nova_snapext.recovery import rbd_leftovers
from nova_snapext.recovery import recover
from nova_snapext.resources import guest_filesystems
from nova_snapext.resources import trial_guest
from nova_snapext import strategies
from tests.unit import base as unit_base
from tests.unit.recovery import base


class Charm(journal.Resource):
    """A resource of a strategy in another package."""

    kind = 'charm'
    restored = None

    def record(self):
        return {}

    @classmethod
    def restore(cls, driver, target, record):
        cls.restored = target
        return cls()

    def release(self):
        pass


class OtherCharm(Charm):
    pass


class CharmStrategy(strategies.Strategy):

    name = 'charm'
    resource_types = (Charm,)

    def unsupported_reason(self, plan):
        return None


class RecoverTest(base.RecoveryTestCase):

    FILESYSTEMS = ('guest filesystems', {'agent': True, 'qemu': ''})

    def test_failed_release_does_not_keep_others_from_being_released(self):
        self.leave(('work directory', {'paht': '/'}), self.FILESYSTEMS,
                   ('spell', {}, True), self.FILESYSTEMS)
        error = self.assertRaises(
            exception.NotRecovered, recover.recover_entry, self.driver,
            journal.find(self.instance_.uuid))
        self.assertEqual(['work directory', 'spell'], self.left())
        self.assertTrue(error.blocks_start)

    def test_reason_is_in_the_journal_for_operators(self):
        self.leave(('spell', {}))
        self.recover_all()
        self.assertIn('no installed strategy',
                      journal.find(self.instance_.uuid).problem)

    def test_repeated_failure_is_logged_once_until_its_reason_changes(self):
        restore = self.patch(guest_filesystems.GuestFilesystems, 'restore')
        self.leave(self.FILESYSTEMS)
        for reason, expected in (('a job', True), ('a job', False),
                                 ('no space', True), ('a job', False)):
            restore.side_effect = exception.UnexpectedState(reason=reason)
            with self.assertLogs(recover.LOG.logger, 'DEBUG') as logs:
                self.assertFalse(self.recover_all())
            levels = {record.levelname for record in logs.records}
            self.assertIs(expected, 'ERROR' in levels)
            self.assertIs(False, not expected and 'WARNING' in levels)
            self.assertIn(reason, ' '.join(logs.output))

    def test_failure_after_a_success_is_logged_again(self):
        for _ in range(2):
            self.leave(('spell', {}))
            with self.assertLogs(recover.LOG.logger, 'ERROR'):
                self.assertFalse(self.recover_all())
            os.unlink(journal.find(self.instance_.uuid).path)
            self.assertTrue(recover.recover_instance(
                self.driver, self.instance_.uuid))

    def test_entries_that_are_set_apart_are_recovered_too(self):
        for _ in range(2):
            self.leave(self.FILESYSTEMS)
            journal.find(self.instance_.uuid).set_apart()
        self.leave(self.FILESYSTEMS)
        recover.recover_instance(self.driver, self.instance_.uuid)
        self.assertEqual([], journal.find_all(self.instance_.uuid))

    def test_unusable_journal_is_an_error_before_a_start(self):
        entry = self.leave(self.FILESYSTEMS)
        with open(entry.path, 'w') as file:
            file.write('nonsense')
        self.assertRaises(
            exception.NotRecovered, recover.ensure_recovered, self.driver,
            None, self.instance_)

    def test_last_resource_is_released_first(self):
        released = []
        types = recover.resource_types(self.driver)
        kinds = ('work directory', 'overlay', 'NBD export')
        for kind in kinds:
            self.useFixture(fixtures.MockPatchObject(
                types[kind], 'check_record'))
            self.useFixture(fixtures.MockPatchObject(
                types[kind], 'restore',
                lambda *_args, kind=kind: mock.Mock(
                    release=lambda: released.append(kind))))
        self.leave(*((kind, {}) for kind in kinds))
        self.recover_all()
        self.assertEqual([*reversed(kinds)], released)

    def test_disks_of_an_instance_on_another_host_are_not_touched(self):
        path, record = self.overlay()
        self.instance_.host = 'elsewhere'
        release = self.patch(guest_filesystems.GuestFilesystems, 'release')
        self.leave(self.FILESYSTEMS, record)
        self.assertTrue(self.recover_all())
        self.assertTrue(os.path.exists(path))
        release.assert_called_once_with()
        self.assertEqual([], os.listdir(self.journal))

    def test_instance_that_nova_does_not_return_is_recovered_by_the_journal(
            self):
        for error in (nova_exception.InstanceNotFound(instance_id='i'),
                      oslo_messaging.MessagingTimeout()):
            self.get.side_effect = error
            self.leave(('guest filesystems', {'agent': True, 'qemu': ''}))
            self.assertTrue(self.recover_all())
            self.assertEqual([], os.listdir(self.journal))

    def test_guest_is_thawed_while_nova_does_not_answer(self):
        answer = threading.Event()
        self.addCleanup(answer.set)
        self.get.side_effect = lambda *_args, **_kwargs: answer.wait()
        self.leave(('guest filesystems', {'agent': True, 'qemu': ''}))
        with mock.patch.object(bounded, 'NOVA_TIMEOUT', 0):
            self.assertTrue(self.recover_all())
        self.assertEqual([], os.listdir(self.journal))

    def test_failed_recovery_does_not_keep_other_instances_from_theirs(self):
        self.leave(('spell', {}))
        self.leave_other(self.FILESYSTEMS)
        self.assertFalse(self.recover_all())
        self.assertEqual(1, len(os.listdir(self.journal)))
        self.assertEqual(['spell'], self.left())

    def test_begin_and_end_of_each_release_are_logged_for_debugging(self):
        self.leave(self.FILESYSTEMS)
        with self.assertLogs('nova_snapext.recovery.recover', 'DEBUG') as logs:
            self.recover_all()
        for text in ('Recovery of guest filesystems begins',
                     'Recovery of guest filesystems is done'):
            self.assertIn(text, ' '.join(logs.output))


class SnapshotInCephTest(base.RecoveryTestCase):
    """A snapshot in Ceph, of an instance that may have been deleted."""

    RECORD = ('RBD snapshot', {'pool': 'vms', 'image': 'i_disk',
                               'snapshot': f'snapext-{"0" * 32}'})

    def setUp(self):
        super().setUp()
        self.steps = mock.Mock()
        for owner, name in ((ceph, 'remove_snapshot'),
                            (rbd_leftovers, 'delete_disks_of_deleted')):
            self.steps.attach_mock(self.patch(owner, name), name)
        self.delete = self.steps.delete_disks_of_deleted

    def test_disk_is_deleted_while_the_journal_has_the_snapshot(self):
        # Also if Nova still had the instance when the recovery began.
        self.delete.side_effect = lambda _uuid: self.assertEqual(
            ['RBD snapshot'], self.left())
        self.leave(self.RECORD)
        self.assertTrue(self.recover_all())
        self.assertEqual(
            [mock.call.remove_snapshot(mock.ANY),
             mock.call.delete_disks_of_deleted(self.instance_.uuid)],
            self.steps.mock_calls)
        self.assertEqual([], os.listdir(self.journal))

    def test_disk_is_deleted_whatever_else_is_left(self):
        self.leave(('spell', {}), self.RECORD)
        self.assertFalse(self.recover_all())
        self.delete.assert_called_once()
        self.assertEqual(['spell'], self.left())

    def test_snapshot_whose_disk_is_left_stays_in_the_journal(self):
        self.leave(self.RECORD)
        self.delete.side_effect = exception.ReleaseFailed(
            instance='i', reason='rbd rm vms/i_disk')
        with self.assertLogs(recover.LOG.logger, 'ERROR') as logs:
            self.assertFalse(self.recover_all())
        self.assertIn('rbd rm vms/i_disk', ' '.join(logs.output))
        self.assertEqual(['RBD snapshot'], self.left())
        self.delete.side_effect = None
        self.assertTrue(self.recover_all())

    def test_nova_is_not_asked_for_other_snapshots_or_for_a_trial(self):
        self.patch(trial_guest.TrialGuest, 'restore')
        self.leave(('guest filesystems', {'agent': True, 'qemu': ''}))
        self.assertTrue(self.recover_all())
        self.leave(('trial guest', {'pool': None}), self.RECORD)
        self.assertTrue(self.recover_all())
        self.delete.assert_not_called()


class ResourceTypesTest(base.RecoveryTestCase):

    def setUp(self):
        super().setUp()
        self.useFixture(fixtures.MockPatchObject(Charm, 'restored', None))

    def load(self, *resource_types):
        """Load a strategy of another package."""
        strategy = CharmStrategy(self.driver)
        strategy.resource_types = resource_types
        self.driver.strategies['charm'] = strategy

    def test_kinds_of_all_our_resources_are_known(self):
        self.assertEqual(
            {'backup job', 'guest filesystems', 'internal snapshot',
             'managed save', 'NBD export', 'native snapshot', 'overlay',
             'passthrough devices', 'RBD clone', 'RBD copy', 'RBD export',
             'RBD snapshot', 'native RBD snapshot', 'trial guest',
             'work directory'},
            {*recover.resource_types(self.driver)})

    def test_resource_of_another_package_is_recovered_by_its_strategy(self):
        self.load(Charm)
        self.leave(('charm', {}, True), strategy='charm')
        self.assertTrue(self.recover_all())
        self.assertEqual([], os.listdir(self.journal))
        self.assertIsInstance(Charm.restored, planning.Target)
        self.assertEqual(
            (self.instance_, self.plan_.disk, unit_base.IMAGE_ID),
            (Charm.restored.instance, Charm.restored.disk,
             Charm.restored.image_id))

    def test_class_that_two_strategies_share_is_one_kind(self):
        self.load(Charm)
        self.driver.strategies['again'] = self.driver.strategies['charm']
        self.assertIs(Charm, recover.resource_types(self.driver)['charm'])

    def test_two_classes_of_one_kind_keep_the_driver_from_starting(self):
        self.load(Charm, OtherCharm)
        error = self.assertRaises(exception.StrategyConfigError,
                                  gate.InstanceGate, self.driver)
        for text in ("'charm'", '.Charm', '.OtherCharm'):
            self.assertIn(text, str(error))

    def test_resource_of_an_uninstalled_package_is_kept_and_reported(self):
        self.leave(('charm', {}), strategy='enchanter')
        with self.assertLogs('nova_snapext.recovery.recover', 'ERROR') as logs:
            self.assertFalse(self.recover_all())
        self.assertEqual(['charm'], self.left())
        self.assertIn("Install the package of the strategy 'enchanter'",
                      ' '.join(logs.output))

    def test_resource_of_an_uninstalled_package_blocks_no_start(self):
        self.leave(('charm', {}))
        recover.ensure_recovered(self.driver, None, self.instance_)
        self.assertEqual(['charm'], self.left())

    def test_unknown_resource_blocks_a_start_if_its_record_says_so(self):
        self.leave(('charm', {}, True), strategy='enchanter')
        error = self.assertRaises(
            exception.NotRecovered, recover.ensure_recovered, self.driver,
            None, self.instance_)
        self.assertIn("strategy 'enchanter'", str(error))
        self.assertEqual(['charm'], self.left())

    def test_package_that_is_installed_again_recovers_its_resource(self):
        self.leave(('charm', {}, True))
        self.assertFalse(self.recover_all())
        self.load(Charm)
        self.assertTrue(self.recover_all())
        self.assertEqual([], os.listdir(self.journal))
