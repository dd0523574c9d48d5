# SPDX-License-Identifier: Apache-2.0

from nova_snapext.hypervisor import image_opts
from tests.unit import base


class ImageOptsTest(base.TestCase):

    def test_nested_node_becomes_dotted_options(self):
        self.assertEqual(
            'driver=qcow2,file.driver=file,file.filename=/i/disk',
            image_opts.join(image_opts.node('/i/disk', 'qcow2')))

    def test_block_device_has_its_own_driver(self):
        self.assertEqual(
            'driver=raw,file.driver=host_device,file.filename=/dev/vg/disk',
            image_opts.join(image_opts.node('/dev/vg/disk', 'raw', 'block')))

    def test_comma_in_path_is_doubled(self):
        self.assertIn(
            'file.filename=/i/a,,b',
            image_opts.join(image_opts.node('/i/a,b', 'raw')))
