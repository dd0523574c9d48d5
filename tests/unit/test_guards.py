# SPDX-License-Identifier: Apache-2.0

import ast
import inspect
import textwrap
from unittest import mock

from nova.virt.libvirt import driver as nova_driver

from nova_snapext import driver
from nova_snapext import exception
from nova_snapext import guards
from nova_snapext.resources import overlay
from tests.unit.recovery import base

#: Methods that start a guest and are not guarded, with the reason.
UNGUARDED = {
    '_hard_reboot',                   # called by power_on, reboot, ...
    '_soft_reboot',                   # called by reboot
    '_get_existing_domain_xml',       # called by resume and live migrations
    '_resume_guest_after_snapshot',   # called by snapshot, which recovers
    'finish_migration',               # the source host released the disk
}


class GuardTest(base.RecoveryTestCase):

    def call(self, name):
        return getattr(self.driver, name)(None, self.instance_)

    def test_instance_that_can_not_be_recovered_is_refused_by_each(self):
        _path, record = self.overlay()
        self.leave(record)
        with mock.patch.object(overlay.Overlay, 'merge',
                               side_effect=ValueError('two histories')):
            for name in guards.GUARDED:
                error = self.assertRaises(exception.NotRecovered,
                                          self.call, name)
                self.assertIn('two histories', str(error))

    def test_instance_with_a_running_snapshot_is_refused_by_each(self):
        with self.driver.gate.exclusive(self.instance_.uuid):
            for name in guards.GUARDED:
                self.assertRaises(exception.SnapshotInProgress,
                                  self.call, name)

    def test_recovered_instance_reaches_nova_s_method(self):
        recovered = self.patch(self.driver.gate, 'ensure_recovered')
        for name in guards.GUARDED:
            _self, _context, _instance, *others = inspect.signature(
                getattr(self.driver, name).__func__).parameters
            arguments = ['context', self.instance_, *others[:-1]]
            last = {others[-1]: 'by name'} if others else {}
            nova = self.patch(nova_driver.LibvirtDriver, name)
            self.assertIs(nova.return_value, getattr(
                self.driver, name)(*arguments, **last))
            nova.assert_called_once_with(*arguments, **last)
            recovered.assert_called_with('context', self.instance_)

    def test_guarded_methods_have_nova_s_signatures(self):
        self.assertEqual(10, len(guards.GUARDED))
        for name in guards.GUARDED:
            ours, nova_s = (getattr(cls, name) for cls in (
                driver.SnapextDriver, nova_driver.LibvirtDriver))
            self.assertIsNot(ours, nova_s)
            self.assertEqual(inspect.signature(nova_s),
                             inspect.signature(ours))
            # Nova's test of its drivers' signatures asks this way.
            self.assertEqual(inspect.getfullargspec(nova_s)[:-1],
                             inspect.getfullargspec(ours)[:-1])
            self.assertEqual(
                ['self', 'context', 'instance'],
                list(inspect.signature(ours).parameters)[:3])

    def test_no_method_of_nova_starts_a_guest_without_a_guard(self):
        """Check all methods that write a definition or start a domain.

        A method without a guard is called by guarded methods alone.
        """
        callers = _callers()
        starts = {'_get_guest_xml', '_create_guest', 'launch',
                  '_create_guest_with_network'}
        unguarded, seen = set(starts), set()
        while unguarded - seen:
            name = (unguarded - seen).pop()
            seen.add(name)
            unguarded |= {caller for caller in callers.get(name, ())
                          if caller not in (*guards.GUARDED, 'snapshot')}
        self.assertEqual(UNGUARDED, seen - starts)


def _callers():
    """Return the callers of each method that LibvirtDriver's methods call."""
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
