# SPDX-License-Identifier: Apache-2.0

import os
from unittest import mock

import fixtures
from nova import context as nova_context
from nova import exception as nova_exception
import oslo_messaging

from nova_snapext import exception
from nova_snapext import journal
from nova_snapext import plan as planning
from nova_snapext.recovery import gate
from nova_snapext.recovery import recover
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

    def test_incomplete_image_is_deleted_as_nova_s_service_user(self):
        self.leave(('image', {}))
        self.assertTrue(self.recover_all())
        self.images.delete.assert_called_once_with(
            self.service, unit_base.IMAGE_ID)
        self.assertEqual([], os.listdir(self.journal))

    def test_incomplete_image_is_deleted_as_user_of_the_next_snapshot(self):
        context = nova_context.RequestContext(user_id='u', auth_token='t')
        self.leave(('image', {}))
        recover.ensure_recovered(self.driver, context, self.instance_)
        self.images.delete.assert_called_once_with(
            context, unit_base.IMAGE_ID)

    def test_deleted_image_is_no_error(self):
        self.images.delete.side_effect = nova_exception.ImageNotFound(
            image_id=unit_base.IMAGE_ID)
        self.leave(('image', {}))
        self.assertTrue(self.recover_all())

    def test_image_that_can_not_be_deleted_stays_and_blocks_no_start(self):
        self.images.delete.side_effect = nova_exception.ImageNotAuthorized(
            image_id=unit_base.IMAGE_ID)
        self.leave(('image', {}))
        with self.assertLogs('nova_snapext.recovery.recover', 'ERROR') as logs:
            self.assertFalse(self.recover_all())
        self.assertIn(unit_base.IMAGE_ID, ' '.join(logs.output))
        self.assertEqual(['image'], self.left())
        recover.ensure_recovered(self.driver, None, self.instance_)

    def test_failed_release_does_not_keep_others_from_being_released(self):
        directory = self.useFixture(fixtures.TempDir()).path
        self.images.delete.side_effect = nova_exception.ImageNotAuthorized(
            image_id=unit_base.IMAGE_ID)
        self.leave(('work directory', {'path': f'{directory}/d'}),
                   ('image', {}), ('spell', {}, True),
                   ('work directory', {'paht': '/'}))
        os.mkdir(f'{directory}/d')
        error = self.assertRaises(
            exception.NotRecovered, recover.recover_entry, self.driver,
            journal.find(self.instance_.uuid))
        self.assertFalse(os.path.exists(f'{directory}/d'))
        self.assertEqual(['image', 'spell', 'work directory'], self.left())
        self.assertTrue(error.blocks_start)

    def test_last_resource_is_released_first(self):
        released = []
        types = recover.resource_types(self.driver)
        kinds = ('work directory', 'overlay', 'NBD export')
        for kind in kinds:
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
        directory = self.useFixture(fixtures.TempDir()).path
        self.leave(('work directory', {'path': f'{directory}/d'}), record)
        os.mkdir(f'{directory}/d')
        self.assertTrue(self.recover_all())
        self.assertTrue(os.path.exists(path))
        self.assertFalse(os.path.exists(f'{directory}/d'))
        self.assertEqual([], os.listdir(self.journal))

    def test_instance_that_nova_does_not_return_is_recovered_by_the_journal(
            self):
        for error in (nova_exception.InstanceNotFound(instance_id='i'),
                      oslo_messaging.MessagingTimeout()):
            self.get.side_effect = error
            self.leave(('guest filesystems', {'agent': True}))
            self.assertTrue(self.recover_all())
            self.assertEqual([], os.listdir(self.journal))

    def test_failed_recovery_does_not_keep_other_instances_from_theirs(self):
        self.leave(('spell', {}))
        self.leave_other(('image', {}))
        self.assertFalse(self.recover_all())
        self.assertEqual(1, len(os.listdir(self.journal)))
        self.assertEqual(['spell'], self.left())

    def test_begin_and_end_of_each_release_are_logged_for_debugging(self):
        self.leave(('image', {}))
        with self.assertLogs('nova_snapext.recovery.recover', 'DEBUG') as logs:
            self.recover_all()
        for text in ('Recovery of image begins', 'Recovery of image is done'):
            self.assertIn(text, ' '.join(logs.output))


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
            {'backup job', 'guest filesystems', 'image', 'internal snapshot',
             'managed save', 'NBD export', 'native snapshot', 'overlay',
             'passthrough devices', 'work directory'},
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
