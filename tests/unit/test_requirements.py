# SPDX-License-Identifier: Apache-2.0

import pathlib

from oslotest import base
from packaging import requirements
from packaging import utils

ROOT = pathlib.Path(__file__).parents[2]

#: Not in our copies of the branches' files: the host's own library decides.
UNCONSTRAINED = {'libvirt-python'}


def parse(path):
    """Return the requirements of a file, by name."""
    lines = (line.partition('#')[0].strip()
             for line in path.read_text().splitlines())
    found = [requirements.Requirement(line) for line in lines if line]
    return {utils.canonicalize_name(requirement.name): requirement
            for requirement in found}


class RequirementsTest(base.BaseTestCase):
    """Nova's branches install what we require with their constraints."""

    def test_each_branch_has_versions_that_satisfy_all_requirements(self):
        ours = parse(ROOT / 'requirements.txt')
        branches = sorted((ROOT / 'tools' / 'constraints').glob('*.txt'))
        self.assertEqual(4, len(branches))
        for branch in branches:
            constraints = parse(branch)
            self.assertEqual(UNCONSTRAINED, ours.keys() - constraints.keys(),
                             branch.name)
            for name in ours.keys() - UNCONSTRAINED:
                [pin] = constraints[name].specifier
                self.assertIn(pin.version, ours[name].specifier,
                              f'{branch.name} has {name} {pin.version}')
