# SPDX-License-Identifier: Apache-2.0

from nova_snapext.hypervisor import image_header
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

    def test_chain_names_each_image_and_says_where_it_ends(self):
        images = [image_header.Image('/i/disk', 'qcow2', 'file'),
                  image_header.Image('/i/base', 'qcow2', 'file')]
        node = image_opts.chain(images)
        self.assertEqual('/i/base', node['backing']['file']['filename'])
        self.assertIsNone(node['backing']['backing'])

    def test_raw_end_of_a_chain_has_no_option_of_its_backing_file(self):
        self.assertNotIn('backing', image_opts.chain(
            [image_header.Image('/i/disk', 'raw', 'file')]))

    def test_file_name_is_json(self):
        self.assertEqual(
            'json:{"driver": "qcow2", "file": {"driver": "file", '
            '"filename": "/i/disk"}, "backing": null}',
            image_opts.filename(image_opts.alone('/i/disk')))
