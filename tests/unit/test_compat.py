# SPDX-License-Identifier: Apache-2.0

import ast
from concurrent import futures
import importlib.metadata
import pathlib
import queue
import subprocess
import sys
import threading
import types
from unittest import mock

import fixtures
from nova.compute import manager
from nova import service
from nova.virt import fake
from nova.virt.libvirt import driver as nova_driver
from nova.virt.libvirt import host
from oslo_context import context as oslo_context
from oslotest import base

import nova_snapext
from nova_snapext import compat
from nova_snapext import driver
from nova_snapext import exception
from tests.unit import base as unit_base

PACKAGE = pathlib.Path(nova_snapext.__file__).parent

# Names that only look private: of Python, and the type of lxml's elements.
PUBLIC = {'_exit', '_Element', '_current_frames'}

# Nova 31 to 34 do not all have these.
LACKED = ('import thread_pool_factory', 'utils.get_eventlet',
          'utils.tpool_wrap', 'utils.concurrency_mode_threading',
          'import monkey_patch', '._shutdown_in_progress')


class CheckTest(base.BaseTestCase):

    def patch(self, target, name, value):
        self.useFixture(fixtures.MockPatchObject(target, name, value))

    def expect(self, name):
        """Make one name the only one that is checked."""
        self.patch(compat, 'NAMES', (name,))

    def assert_reported(self, *texts):
        [difference] = compat.check()
        for text in texts:
            self.assertIn(text, difference)

    def test_installed_packages_are_as_expected(self):
        self.assertEqual([], compat.check())

    def test_every_name_has_a_purpose(self):
        for name in compat.NAMES:
            self.assertTrue(name.purpose.startswith('to '), name)

    def test_missing_method_is_reported(self):
        self.expect(compat.Function(compat.DRIVER, '_gone', 'to test'))
        self.assert_reported('LibvirtDriver._gone', 'does not exist',
                             'to test')

    def test_changed_parameters_are_reported(self):
        def changed(self, context, live_snapshot, current_power_state,
                    instance, reason=None):
            self._needs_suspend_resume_for_snapshot()

        self.patch(nova_driver.LibvirtDriver, '_suspend_guest_for_snapshot',
                   changed)
        self.assert_reported(
            '_suspend_guest_for_snapshot', 'instance, reason), not')

    def test_missing_keyword_is_reported(self):
        self.expect(compat.Function(
            'glanceclient.v2.images:Controller', 'upload', 'to test',
            keywords=('image_size', 'colour')))
        self.assert_reported('it has no parameter colour')

    def test_override_that_nova_does_not_call_is_reported(self):
        def snapshot(self, context, instance, image_id, update_task_state):
            self._suspend_guest_for_snapshot()
            self._resume_guest_after_snapshot()
            self._create_snapshot_metadata()
            return self.image_backend

        self.patch(nova_driver.LibvirtDriver, 'snapshot', snapshot)
        self.assert_reported(
            '_live_snapshot', 'LibvirtDriver.snapshot does not use it')

    def test_name_in_an_inner_function_is_found(self):
        def snapshot(self, context, instance, image_id, update_task_state):
            def inner():
                self._live_snapshot()
                self._suspend_guest_for_snapshot()
                self._resume_guest_after_snapshot()
                self._create_snapshot_metadata()
                return self.image_backend

            inner()

        self.patch(nova_driver.LibvirtDriver, 'snapshot', snapshot)
        self.assertEqual([], compat.check())

    def test_lock_that_nova_renames_is_reported(self):
        def init(self, *args, **kwargs):
            self._lock = threading.Lock()
            self._uri = self._conn_event_handler = None
            self._event_handler = None
            # It is only read here.
            return self._wrapped_conn_lock

        self.patch(host.Host, '__init__', init)
        self.assert_reported('Host._wrapped_conn_lock',
                             'Host.__init__ does not set it')

    def test_lock_that_nova_does_not_use_is_reported(self):
        self.patch(host.Host, '_get_connection', lambda self: None)
        self.assert_reported('Host._wrapped_conn_lock',
                             'Host._get_connection does not use it')

    def test_missing_class_and_module_are_reported(self):
        for owner, text in (('nova.virt.libvirt.host:Gost', 'Gost'),
                            ('nova.virt.nowhere:Host', 'nowhere')):
            self.expect(compat.Name(owner, '_x', 'to test'))
            self.assert_reported(text)

    def test_function_without_python_code_is_not_judged(self):
        self.patch(nova_driver.LibvirtDriver, 'snapshot', print)
        self.assertEqual([], compat.check())

    def test_difference_keeps_the_driver_from_starting(self):
        self.expect(compat.Function(compat.DRIVER, '_gone', 'to test'))
        error = self.assertRaises(
            exception.CompatibilityError, driver.SnapextDriver,
            fake.FakeVirtAPI(), read_only=True)
        for text in ('LibvirtDriver._gone', 'Nova 31 (2025.1) to 34 (2026.2)',
                     'nova-snapext check', compat.versions()):
            self.assertIn(text, str(error))

    def test_module_is_imported_without_nova(self):
        subprocess.run(
            (sys.executable, '-c',
             'import sys; import nova_snapext.compat; '
             'sys.exit("nova" in sys.modules)'), check=True)


class NativeThreadsTest(base.BaseTestCase):

    def test_each_thread_of_a_command_can_call_libvirt(self):
        program = """
import threading
from nova_snapext import compat
compat.use_native_threads()
from nova.virt.libvirt import host
from nova_snapext import compat
assert compat.concurrency_mode_threading()
found = host.Host('test:///default')
names = []
for _number in range(2):
    thread = threading.Thread(target=lambda: names.extend(
        guest.name for guest in found.list_guests()), daemon=True)
    thread.start()
    thread.join(60)
assert names == ['test', 'test'], names
"""
        self.run_program(program)

    def test_thread_that_waits_for_an_event_stops_no_command(self):
        # Nova waits so for the events of its connection to libvirt.
        self.run_program("""
import queue
import sys
import threading
from nova_snapext import compat
compat.use_native_threads()
events, dispatched = queue.Queue(), threading.Event()
compat.spawn(lambda: events.get() and dispatched.set())
if 'eventlet' in sys.modules:
    sys.modules['eventlet'].sleep(0)
events.put('an event')
assert dispatched.wait(60)
""")

    def run_program(self, program):
        subprocess.run([sys.executable, '-c', program], check=True,
                       timeout=120)


class ReleaseTestCase(base.BaseTestCase):

    def patch(self, target, name, value):
        return self.useFixture(fixtures.MockPatchObject(
            target, name, value)).mock

    def release(self, version):
        self.patch(importlib.metadata, 'version', lambda _package: version)


class ReleaseTest(ReleaseTestCase):

    def test_older_nova_keeps_the_driver_from_starting(self):
        self.release('30.3.0')
        error = self.assertRaises(
            exception.CompatibilityError, driver.SnapextDriver,
            fake.FakeVirtAPI(), read_only=True)
        self.assertIn('Nova 30.3.0 is too old: nova-snapext needs Nova 31',
                      str(error))

    def test_newer_nova_is_a_warning(self):
        self.patch(compat, 'NAMES', ())
        log = self.useFixture(fixtures.FakeLogger())
        for version, warned in (('34.9.0', False), ('35.0.0', True)):
            self.release(version)
            compat.require()
            self.assertEqual(warned, f'Nova {version} is newer' in log.output)

    def test_newer_nova_that_differs_keeps_the_driver_from_starting(self):
        self.patch(compat, 'NAMES', (
            compat.Function(compat.DRIVER, '_gone', 'to test'),))
        self.release('35.0.0')
        self.assertRaises(exception.CompatibilityError, compat.require)

    def test_name_is_checked_in_the_releases_that_have_it(self):
        self.patch(compat, 'NAMES', (
            compat.Function(compat.DRIVER, '_gone', 'to test', first_nova=33,
                            last_nova=34),))
        for version, found in (('32.2.1', 0), ('33.0.0', 1), ('34.0.0', 1),
                               ('35.0.0', 0)):
            self.release(version)
            self.assertEqual(found, len(compat.check()), version)


class DifferenceTest(unit_base.TestCase):
    """Functions that some of the supported releases lack."""

    def test_function_runs_in_the_background_with_the_context(self):
        request = oslo_context.RequestContext(overwrite=True)
        found = queue.Queue()
        compat.spawn(lambda: found.put(oslo_context.get_current()))
        self.assertIs(request, found.get(timeout=10))

    def test_no_thread_of_a_pool_is_needed_under_eventlet(self):
        """A native thread must not wait for a lock of green threads."""
        with mock.patch.object(compat, 'concurrency_mode_threading',
                               return_value=False), \
                mock.patch.object(futures, 'ThreadPoolExecutor') as pool:
            executor = compat.thread_pool(2, 'test')
            self.assertEqual(3, executor.submit(max, 3, 1).result())
            self.assertRaises(ZeroDivisionError,
                              executor.submit(divmod, 1, 0).result)
            executor.shutdown(cancel_futures=True)
        pool.assert_not_called()

    def test_only_this_module_uses_pools(self):
        """Apart from the worker, which has none under eventlet."""
        for path in PACKAGE.rglob('*.py'):
            if path.name not in ('compat.py', 'worker.py'):
                self.assertNotIn('ThreadPoolExecutor', path.read_text(), path)

    def test_only_this_module_uses_functions_that_releases_lack(self):
        for path in PACKAGE.rglob('*.py'):
            if path.name != 'compat.py':
                text = path.read_text()
                for name in LACKED:
                    self.assertNotIn(name, text, path)


class ShutdownEventTest(ReleaseTestCase):

    def setUp(self):
        super().setUp()
        compat.observe_stop.cache_clear()
        self.addCleanup(compat.observe_stop.cache_clear)
        self.compute = types.SimpleNamespace(reportclient=None)
        self.virtapi = manager.ComputeVirtAPI(self.compute)

    def test_event_is_the_one_of_the_compute_manager(self):
        self.patch(compat, 'nova_release', lambda: 34)
        self.compute._shutdown_in_progress = threading.Event()
        self.assertIs(self.compute._shutdown_in_progress,
                      compat.shutdown_event(self.virtapi))

    def test_driver_without_nova_compute_has_no_event(self):
        self.assertIsNone(compat.shutdown_event(fake.FakeVirtAPI()))

    def test_manager_without_the_event_is_an_error(self):
        self.patch(compat, 'nova_release', lambda: 34)
        self.assertRaises(
            AttributeError, compat.shutdown_event, self.virtapi)

    def test_stop_of_an_older_service_sets_the_event_first(self):
        self.patch(compat, 'nova_release', lambda: 33)
        seen = []
        self.patch(service.Service, 'stop', lambda _self: seen.append(
            compat.shutdown_event(self.virtapi).is_set()))
        event = compat.shutdown_event(self.virtapi)
        self.assertFalse(event.is_set())
        service.Service.stop(mock.sentinel.service)
        self.assertEqual([True], seen)
        self.assertIs(event, compat.shutdown_event(self.virtapi))


class CompletenessTest(base.BaseTestCase):

    def test_every_foreign_private_name_in_use_is_listed(self):
        """A private name is foreign if the package never defines it."""
        used, defined = {}, set()
        for path in PACKAGE.rglob('*.py'):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and isinstance(
                        node.ctx, ast.Load) and _is_private(node.attr):
                    used.setdefault(node.attr, path.name)
                else:
                    defined.update(_defined(node))
        listed = {name.name for name in compat.NAMES}
        self.assertEqual({}, {
            name: where for name, where in used.items()
            if name not in defined | listed | PUBLIC})


def _is_private(name):
    return name.startswith('_') and not name.startswith('__')


def _defined(node):
    """Return the names that a node of a syntax tree defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Attribute) and isinstance(
            node.value, ast.Name) and node.value.id in ('self', 'cls'):
        return {node.attr}
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return {node.id}
    return set()
