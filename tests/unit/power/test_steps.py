# SPDX-License-Identifier: Apache-2.0

import inspect

from tests.functional.power import steps
from tests.unit import base


class PowerStepsTest(base.TestCase):

    def test_function_of_each_step_exists(self):
        for function in steps.FUNCTIONS:
            owner, name = steps.owner_and_name(function)
            # Not an inherited function: it is replaced right here.
            self.assertIn(name, vars(owner), function)

    def test_call_returns_when_the_step_is_done(self):
        for function in steps.FUNCTIONS:
            owner, name = steps.owner_and_name(function)
            self.assertFalse(inspect.isgeneratorfunction(
                inspect.unwrap(getattr(owner, name))), function)

    def test_steps_of_a_case_have_unique_names(self):
        for case in (*steps.STEPS.values(), steps.RECOVERY):
            names = [point.identifier for point in case]
            self.assertEqual(len(names), len(set(names)), names)
