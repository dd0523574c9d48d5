# SPDX-License-Identifier: Apache-2.0

import io
import pathlib

from oslo_config import cfg
from oslo_config import generator

from tests.unit import base

ETC = pathlib.Path(__file__).parents[2] / 'etc'


class SampleConfigTest(base.TestCase):

    def generate(self):
        """Return a new sample, as ``tox -e genconfig`` writes it."""
        options = cfg.ConfigOpts()
        generator.register_cli_opts(options)
        options(['--config-file', str(
            ETC / 'nova-snapext-config-generator.conf')],
            default_config_files=[], default_config_dirs=[])
        sample = io.StringIO()
        generator.generate(options, sample)
        return sample.getvalue()

    def test_sample_in_repository_is_the_same_as_a_new_one(self):
        self.assertEqual(
            self.generate(), (ETC / 'nova-snapext.conf.sample').read_text(),
            'Options have changed: run "tox -e genconfig"')
