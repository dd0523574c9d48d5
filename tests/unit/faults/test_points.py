# SPDX-License-Identifier: Apache-2.0

import functools
import importlib

from tests.faults import points
from tests.unit import base


class FaultPointsTest(base.TestCase):

    def test_every_point_is_of_a_function_that_there_is(self):
        for function in points.FUNCTIONS:
            module, _, name = function.partition(':')
            found = functools.reduce(
                getattr, name.split('.'), importlib.import_module(module))
            self.assertTrue(callable(found), function)

    def test_the_points_of_a_strategy_have_names_of_their_own(self):
        for case in points.CASES:
            names = [point.identifier for point in case.points]
            self.assertEqual(len(names), len(set(names)), names)
