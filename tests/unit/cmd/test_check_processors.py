# SPDX-License-Identifier: Apache-2.0

import argparse
import json
import pathlib

import fixtures
import jsonschema

from nova_snapext.cmd.check import command
from nova_snapext.cmd.check import item
from nova_snapext.cmd.check import processors
from tests.unit import base

SCHEMA = pathlib.Path(__file__).parents[3] / 'doc/source/cli/check-schema.json'

PRESSURE = """\
some avg10=1.29 avg60=2.02 avg300={} total=27662916266
full avg10=99.00 avg60=99.00 avg300=99.00 total=0
"""


class ProcessorsTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.file = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path) / 'cpu'
        self.useFixture(fixtures.MockPatchObject(
            processors, 'PRESSURE', str(self.file)))

    def found(self, pressure):
        self.file.write_text(PRESSURE.format(pressure))
        return self.item()

    def item(self):
        """Return the only item's text and remedy; it is ok in each case."""
        found = [*processors.cpus(item.Host(argparse.Namespace()))]
        self.assertEqual([('cpus', item.Status.OK)],
                         [(one.name, one.status) for one in found])
        jsonschema.validate(command.as_json(found),
                            json.loads(SCHEMA.read_text()))
        return found[0].text, found[0].remedy

    def test_host_whose_cpus_are_all_used_is_told_of_external(self):
        text, remedy = self.found('93.40')
        self.assertIn('waited for a CPU in 93 % of', text)
        self.assertIn('external is faster than backup', text)
        self.assertIn('[snapext]strategy = external,auto,', remedy)

    def test_remedy_keeps_the_other_strategies_of_the_operator(self):
        self.flags(strategy='backup,cold', group='snapext')
        self.assertIn('strategy = external,backup,cold,',
                      self.found('93.40')[1])

    def test_host_with_free_cpus_needs_nothing(self):
        text, remedy = self.found('12.00')
        self.assertIn('in 12 % of', text)
        self.assertEqual('', remedy)

    def test_nothing_is_advised_that_is_done_or_impossible(self):
        for options in ({'strategy': 'external,auto'}, {'strategy': 'cold'},
                        {'strategy': 'native'}):
            self.flags(group='snapext', **options)
            self.assertEqual('', self.found('93.40')[1], options)
        self.flags(strategy='auto', group='snapext')
        self.flags(images_type='rbd', group='libvirt')
        self.assertEqual('', self.found('93.40')[1])

    def test_kernel_that_does_not_tell_is_no_fault(self):
        text, remedy = self.item()
        self.assertIn('not known', text)
        self.assertEqual('', remedy)
