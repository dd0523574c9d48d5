# SPDX-License-Identifier: Apache-2.0

import ast
import inspect
import json
import os
import pathlib
import textwrap
from unittest import mock

import fixtures
from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from nova import thread_pool_factory
from nova.virt import fake
from nova.virt.libvirt import driver as nova_driver
import oslo_messaging
from oslo_utils.fixture import uuidsentinel as uuids

from nova_snapext import driver
from nova_snapext import exception
from nova_snapext.freeze import libvirtd
from nova_snapext.freeze import overlay
from nova_snapext import journal
from nova_snapext import recovery
from tests.unit import base


class RecoveryTestCase(base.TestCase):

    def setUp(self):
        super().setUp()
        self.flags(instances_path=self.useFixture(fixtures.TempDir()).path)
        self.driver = driver.SnapextDriver(fake.FakeVirtAPI(), read_only=True)
        self.patch(self.driver._host, 'get_guest').side_effect = (
            nova_exception.InstanceNotFound(instance_id='i'))
        self.images = self.patch(self.driver, '_image_api')
        self.plan_ = self.plan()
        self.instance_ = self.plan_.instance
        self.instance_.host = self.CONF.host
        self.get = self.patch(objects.Instance, 'get_by_uuid')
        self.get.return_value = self.instance_
        self.service = nova_context.RequestContext(user_id='nova')
        self.patch(nova_context, 'get_nova_service_user_context'
                   ).return_value = self.service

    def patch(self, target, name):
        return self.useFixture(fixtures.MockPatchObject(target, name)).mock

    def leave(self, *records):
        with mock.patch.object(journal.Entry, 'close'), \
                journal.opened(self.plan_, 'external') as entry:
            entry.records = [journal.Record(kind, data)
                             for kind, data in records]
            entry.write()
        return entry

    def left(self):
        [path] = pathlib.Path(self.journal).glob('*.json')
        return [record['kind'] for record
                in json.loads(path.read_text())['records']]

    def overlay(self):
        directory = os.path.join(self.CONF.instances_path,
                                 self.instance_.uuid)
        os.makedirs(directory, exist_ok=True)
        path = os.path.join(directory, overlay.NAME)
        pathlib.Path(path).touch()
        return path, ('overlay', {
            'path': path, 'below': [], 'ran': True, 'qemu': '',
            'pivoting': False, 'merged': False})


class RecoverTest(RecoveryTestCase):

    def test_an_image_in_limbo_is_deleted_as_nova_s_service_user(self):
        self.leave(('image', {}))
        self.assertTrue(recovery.recover_all(self.driver))
        self.images.delete.assert_called_once_with(
            self.service, base.IMAGE_ID)
        self.assertEqual([], os.listdir(self.journal))

    def test_it_is_deleted_as_whoever_asks_for_the_next_snapshot(self):
        context = nova_context.RequestContext(user_id='u', auth_token='t')
        self.leave(('image', {}))
        recovery.ensure_whole(self.driver, context, self.instance_)
        self.images.delete.assert_called_once_with(context, base.IMAGE_ID)

    def test_an_image_that_is_gone_is_no_error(self):
        self.images.delete.side_effect = nova_exception.ImageNotFound(
            image_id=base.IMAGE_ID)
        self.leave(('image', {}))
        self.assertTrue(recovery.recover_all(self.driver))

    def test_an_image_that_can_not_be_deleted_stays_in_the_journal(self):
        self.images.delete.side_effect = nova_exception.ImageNotAuthorized(
            image_id=base.IMAGE_ID)
        self.leave(('image', {}))
        with self.assertLogs('nova_snapext.recovery', 'ERROR') as logs:
            self.assertFalse(recovery.recover_all(self.driver))
        self.assertIn(base.IMAGE_ID, ' '.join(logs.output))
        self.assertEqual(['image'], self.left())
        # But it keeps nobody from starting the guest.
        recovery.ensure_whole(self.driver, None, self.instance_)

    def test_each_is_released_whatever_becomes_of_the_others(self):
        directory = self.useFixture(fixtures.TempDir()).path
        self.images.delete.side_effect = nova_exception.ImageNotAuthorized(
            image_id=base.IMAGE_ID)
        self.leave(('directory', {'path': f'{directory}/d'}), ('image', {}),
                   ('spell', {}), ('directory', {'paht': '/'}))
        os.mkdir(f'{directory}/d')
        error = self.assertRaises(
            exception.NotRecovered, recovery.recover, self.driver,
            journal.find(self.instance_.uuid))
        self.assertFalse(os.path.exists(f'{directory}/d'))
        self.assertEqual(['image', 'spell', 'directory'], self.left())
        self.assertTrue(error.vital)

    def test_the_last_one_made_is_released_first(self):
        released = []
        for name in ('qemu-nbd', 'overlay', 'directory'):
            self.useFixture(fixtures.MockPatchObject(
                recovery.RESOURCES[name], 'restore',
                lambda *_args, name=name: mock.Mock(
                    release=lambda: released.append(name))))
        self.leave(('directory', {}), ('overlay', {}), ('qemu-nbd', {}))
        recovery.recover_all(self.driver)
        self.assertEqual(['qemu-nbd', 'overlay', 'directory'], released)

    def test_the_disks_of_an_instance_on_another_host_are_left(self):
        path, record = self.overlay()
        self.instance_.host = 'elsewhere'
        directory = self.useFixture(fixtures.TempDir()).path
        self.leave(('directory', {'path': f'{directory}/d'}), record)
        os.mkdir(f'{directory}/d')
        self.assertTrue(recovery.recover_all(self.driver))
        self.assertTrue(os.path.exists(path))
        self.assertFalse(os.path.exists(f'{directory}/d'))
        self.assertEqual([], os.listdir(self.journal))

    def test_an_instance_that_nova_does_not_tell_of_is_taken_as_known(self):
        for error in (nova_exception.InstanceNotFound(instance_id='i'),
                      oslo_messaging.MessagingTimeout()):
            self.get.side_effect = error
            self.leave(('filesystems', {'agent': True}))
            self.assertTrue(recovery.recover_all(self.driver))
            self.assertEqual([], os.listdir(self.journal))

    def test_one_that_fails_does_not_keep_the_others_from_it(self):
        self.leave(('spell', {}))
        other = self.plan()
        other.instance.uuid = uuids.other
        self.plan_ = other
        self.leave(('image', {}))
        self.assertFalse(recovery.recover_all(self.driver))
        self.assertEqual(1, len(os.listdir(self.journal)))
        self.assertEqual(['spell'], self.left())


class ReconnectTest(RecoveryTestCase):
    """libvirtd is back, as Nova's Host tells the driver."""

    def setUp(self):
        super().setUp()
        self.enabled = self.patch(self.driver, '_set_host_enabled')
        self.patch(thread_pool_factory, 'spawn').side_effect = (
            lambda function, *args: function(*args))
        self.leave(('image', {}))

    def reconnect(self):
        self.driver._handle_conn_event(True, None)
        self.enabled.assert_called_once_with(True, None)

    def start(self):
        self.patch(nova_driver.LibvirtDriver, 'init_host')
        serves = libvirtd.Watch.serves
        self.watch = self.patch(libvirtd, 'Watch')
        self.watch.serves.side_effect = serves
        self.patch(recovery, 'recover_all')
        with mock.patch.object(journal, 'locked'):
            self.driver.init_host('host')

    def test_what_it_has_kept_from_being_cleaned_up_is(self):
        self.start()
        self.reconnect()
        self.assertEqual([], os.listdir(self.journal))

    def test_of_a_snapshot_that_runs_it_is_when_that_has_ended(self):
        self.start()
        with self.driver._only_one(self.instance_.uuid):
            self.reconnect()
            self.assertEqual(['image'], self.left())
        self.assertEqual([], os.listdir(self.journal))

    def test_one_that_fails_is_told_and_does_not_keep_the_others_from_it(self):
        self.start()
        other = self.plan()
        other.instance.uuid = uuids.other
        self.plan_ = other
        self.leave(('image', {}))
        find = self.patch(recovery, '_find_instance')
        find.side_effect = [ZeroDivisionError(), self.instance_]
        with self.assertLogs('nova_snapext.driver', 'ERROR') as logs:
            self.reconnect()
        self.assertIn('failed. It is tried again', logs.output[0])
        self.assertEqual(1, len(os.listdir(self.journal)))

    def test_before_the_service_has_cleaned_up_it_does_that(self):
        self.reconnect()
        self.assertEqual(['image'], self.left())

    def test_libvirtd_is_watched_for_as_long_as_asked_for(self):
        self.flags(libvirtd_timeout=7, group='snapext')
        self.start()
        self.watch.assert_called_once_with(self.driver._host._uri, 7)
        self.watch.return_value.start.assert_called_once_with()

    def test_a_libvirtd_of_another_host_is_not_watched(self):
        self.driver._host._uri = 'qemu+ssh://host/system'
        self.start()
        self.watch.assert_not_called()

    def test_libvirtd_is_not_watched_where_that_is_turned_off(self):
        self.flags(libvirtd_timeout=0, group='snapext')
        self.start()
        self.watch.assert_not_called()

    def test_a_connection_that_is_lost_is_told_to_nova_alone(self):
        self.start()
        self.driver._handle_conn_event(False, 'lost')
        self.enabled.assert_called_once_with(False, 'lost')
        self.assertEqual(['image'], self.left())


class GuardTest(RecoveryTestCase):
    """What Nova starts or moves a guest by."""

    def calls(self, name):
        """Call a guarded method, with Nova's own in the background."""
        return getattr(self.driver, name)(None, self.instance_)

    def test_each_refuses_an_instance_that_can_not_be_made_whole(self):
        _path, record = self.overlay()
        self.leave(record)
        with mock.patch.object(overlay.Overlay, 'merge',
                               side_effect=ValueError('two histories')):
            for name in driver.GUARDED:
                error = self.assertRaises(exception.NotRecovered,
                                          self.calls, name)
                self.assertIn('two histories', str(error))

    def test_each_refuses_an_instance_while_its_snapshot_is_taken(self):
        with self.driver._only_one(self.instance_.uuid):
            for name in driver.GUARDED:
                self.assertRaises(exception.SnapshotOutstanding,
                                  self.calls, name)

    def test_a_second_snapshot_is_refused_and_the_first_goes_on(self):
        def again():
            with self.driver._only_one(self.instance_.uuid):
                pass

        with self.driver._only_one(self.instance_.uuid):
            for _ in range(2):
                self.assertRaises(exception.SnapshotOutstanding, again)
        again()

    def test_nothing_of_nova_s_starts_a_guest_past_them(self):
        """Look at all that makes a definition or starts a domain.

        What is not guarded itself is called by guarded methods alone.
        """
        callers = _callers()
        starts = {'_get_guest_xml', '_create_guest', 'launch',
                  '_create_guest_with_network'}
        unguarded, seen = set(starts), set()
        while unguarded - seen:
            name = (unguarded - seen).pop()
            seen.add(name)
            unguarded |= {caller for caller in callers.get(name, ())
                          if caller not in (*driver.GUARDED, 'snapshot')}
        self.assertEqual(KNOWN, seen - starts)


#: Past the guards, and why that is right.
KNOWN = {
    '_hard_reboot',                   # by power_on, reboot, resume_state...
    '_soft_reboot',                   # by reboot
    '_get_existing_domain_xml',       # by resume and live migrations
    '_resume_guest_after_snapshot',   # by snapshot, which cleans up first
    'finish_migration',               # of a disk that its source let go of
}


def _callers():
    """Map the names of what LibvirtDriver's methods call to their names."""
    callers = {}
    tree = ast.parse(textwrap.dedent(inspect.getsource(
        nova_driver.LibvirtDriver)))
    for method in tree.body[0].body:
        if not isinstance(method, ast.FunctionDef):
            continue
        for node in ast.walk(method):
            if isinstance(node, ast.Call) and isinstance(
                    node.func, ast.Attribute):
                callers.setdefault(node.func.attr, set()).add(method.name)
    return callers
