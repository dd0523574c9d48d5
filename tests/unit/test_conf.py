# SPDX-License-Identifier: Apache-2.0

import pathlib

from nova_snapext import conf
from tests.unit import base

SAMPLE = (pathlib.Path(__file__).parents[2] / 'etc' /
          'nova-snapext.conf.sample')


class ConfTest(base.TestCase):

    def test_directories_are_nova_s_own_unless_configured(self):
        self.flags(snapshots_directory='/some/where', group='libvirt')
        self.assertEqual('/some/where', conf.CONF.snapext.freeze_directory)

    def test_the_sample_has_every_option(self):
        sample = SAMPLE.read_text()
        for option in conf.ALL_OPTS:
            self.assertIn(f'\n#{option.name} = ', sample)

    def test_every_option_has_help(self):
        for option in conf.ALL_OPTS:
            self.assertTrue(option.help.strip(), option.name)
