# SPDX-License-Identifier: Apache-2.0

import pathlib

from nova_snapext import conf
from tests.unit import base

SAMPLE = (pathlib.Path(__file__).parents[2] / 'etc' /
          'nova-snapext.conf.sample')


class ConfTest(base.TestCase):

    def test_work_directory_defaults_to_that_of_nova(self):
        self.flags(snapshots_directory='/some/where', group='libvirt')
        self.assertEqual('/some/where', conf.CONF.snapext.work_directory)

    def test_sample_contains_every_option(self):
        sample = SAMPLE.read_text()
        for option in conf.ALL_OPTS:
            self.assertIn(f'\n#{option.name} = ', sample)

    def test_every_option_has_help(self):
        for option in conf.ALL_OPTS:
            self.assertTrue(option.help.strip(), option.name)
