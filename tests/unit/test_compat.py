# SPDX-License-Identifier: Apache-2.0

import ast
import pathlib
import subprocess
import sys
import threading
import types

import fixtures
from nova.compute import manager
from nova.virt import fake
from nova.virt.libvirt import driver as nova_driver
from nova.virt.libvirt import host
from oslotest import base

import nova_snapext
from nova_snapext import compat
from nova_snapext import driver
from nova_snapext import exception

PACKAGE = pathlib.Path(nova_snapext.__file__).parent

# Names that only look private: of Python, and the type of lxml's elements.
PUBLIC = {'_exit', '_Element'}


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
        for text in ('LibvirtDriver._gone', 'Nova 34 (2026.2) or newer',
                     'nova-snapext check', compat.versions()):
            self.assertIn(text, str(error))

    def test_module_is_imported_without_nova(self):
        subprocess.run(
            (sys.executable, '-c',
             'import sys; import nova_snapext.compat; '
             'sys.exit("nova" in sys.modules)'), check=True)


class ShutdownEventTest(base.BaseTestCase):

    def test_event_is_the_one_of_the_compute_manager(self):
        compute = types.SimpleNamespace(
            _shutdown_in_progress=threading.Event(), reportclient=None)
        self.assertIs(
            compute._shutdown_in_progress,
            compat.shutdown_event(manager.ComputeVirtAPI(compute)))

    def test_driver_without_nova_compute_has_no_event(self):
        self.assertIsNone(compat.shutdown_event(fake.FakeVirtAPI()))

    def test_manager_without_the_event_is_an_error(self):
        virtapi = manager.ComputeVirtAPI(
            types.SimpleNamespace(reportclient=None))
        self.assertRaises(AttributeError, compat.shutdown_event, virtapi)


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
