# SPDX-License-Identifier: Apache-2.0

import functools
import importlib
import inspect
import sys

from tests.faults import points
from tests.unit import base


def owner_and_name(function):
    """Return the module or class of a point's function, and its name."""
    module, _, qualified_name = function.partition(':')
    *outer, name = qualified_name.split('.')
    return functools.reduce(
        getattr, outer, importlib.import_module(module)), name


class FaultPointsTest(base.TestCase):

    def setUp(self):
        super().setUp()
        # All that nova-compute imports of the package.
        importlib.import_module('nova_snapext.driver')

    def test_function_of_each_point_exists(self):
        for function in points.FUNCTIONS:
            owner, name = owner_and_name(function)
            # Not an inherited function: the hook replaces it right here.
            self.assertIn(name, vars(owner), function)
            self.assertTrue(callable(getattr(owner, name)), function)

    def test_call_returns_when_the_step_is_done(self):
        for function in points.FUNCTIONS:
            owner, name = owner_and_name(function)
            called = inspect.unwrap(getattr(owner, name))
            self.assertFalse(inspect.isgeneratorfunction(called), function)

    def test_caller_finds_the_wrapped_function_in_its_module(self):
        loaded = [module for name, module in sys.modules.items()
                  if name.split('.')[0] == 'nova_snapext']
        for function in points.FUNCTIONS:
            owner, name = owner_and_name(function)
            if owner not in loaded:
                continue  # a method, or not ours
            # "from module import function" would bypass the wrapper.
            bound = [module.__name__ for module in loaded
                     if any(value is getattr(owner, name)
                            for value in vars(module).values())]
            self.assertEqual([owner.__name__], bound, function)

    def test_function_is_not_one_that_privsep_runs_in_its_daemon(self):
        # The hook is not in the daemon: sudo clears the environment.
        for function in points.FUNCTIONS:
            self.assertNotIn('privsep', function)

    def test_points_of_a_case_have_unique_names(self):
        for cases in (
            {case: case.points
             for case in (*points.CASES, *points.CEPH_CASES)},
            points.ERRORS, points.RELEASE_ERRORS, points.HANGS,
            points.CEPH_HANGS, points.RECOVERY,
        ):
            for case_points in cases.values():
                names = [point.identifier for point in case_points]
                self.assertEqual(len(names), len(set(names)), names)
